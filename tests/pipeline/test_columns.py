"""Rows of bytes as columns of Parquet."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.columns import read_rows, write_columns


def read(data: bytes) -> pa.Table:
    return pq.read_table(io.BytesIO(data))


@pytest.mark.parametrize("kind", ["uint8", "<i4", "<f4"])
@pytest.mark.parametrize("shape", [(1, 1), (7, 3), (5, 2, 4)])
def test_what_was_written_is_read(kind, shape):
    values = np.random.default_rng(0).integers(0, 200, shape).astype(kind)
    table = read(write_columns({"values": values}, statement=b"mine"))
    rows = read_rows(table.column("values"))
    assert rows.dtype == np.uint8
    assert rows.shape == (shape[0], values[0].nbytes)
    np.testing.assert_array_equal(rows.view(kind).reshape(shape), values)


def test_columns_of_several_kinds_lie_side_by_side_below_a_statement():
    columns = {"ids": np.arange(6, dtype="<i4").reshape(3, 2), "near": np.ones((3, 2), "<f8")}
    table = read(write_columns(columns, statement=b"whose it is"))
    assert table.schema.metadata[b"sskt"] == b"whose it is"
    assert [(field.name, field.type, field.nullable) for field in table.schema] == [
        ("ids", pa.binary(8), False),
        ("near", pa.binary(16), False),
    ]


def test_rows_that_are_not_adjacent_in_memory_are_written_as_they_are_seen():
    values = np.arange(24, dtype=np.uint8).reshape(4, 6)
    for seen in (values[:, ::2], values.T, values[::-1]):
        table = read(write_columns({"values": seen}, statement=b""))
        np.testing.assert_array_equal(read_rows(table.column("values")), seen)


def test_chunks_and_slices_of_a_column_are_joined_in_order():
    values = np.arange(40, dtype=np.uint8).reshape(10, 4)
    column = read(write_columns({"values": values}, statement=b"")).column("values")
    pieces = pa.chunked_array([column.chunk(0).slice(6, 3), column.chunk(0).slice(1, 2)])
    np.testing.assert_array_equal(read_rows(pieces), values[[6, 7, 8, 1, 2]])


def test_the_same_rows_have_the_same_bytes():
    values = np.arange(12, dtype=np.uint8).reshape(3, 4)
    first, second = (write_columns({"values": values.copy()}, statement=b"mine") for _ in range(2))
    assert first == second
