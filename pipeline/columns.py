"""Rows of bytes as one fixed-size binary column of Parquet, and back: an order quicker than lists of numbers."""

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq


def write_columns(columns: dict[str, np.ndarray], *, statement: bytes) -> bytes:
    """Return a Parquet file of the bytes of any [rows, ...]; statement: what the file says of itself."""
    arrays = {name: _binary(rows) for name, rows in columns.items()}
    fields = [pa.field(name, array.type, nullable=False) for name, array in arrays.items()]
    table = pa.Table.from_arrays(list(arrays.values()), schema=pa.schema(fields, metadata={"sskt": statement}))
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, compression="none", use_dictionary=False, write_statistics=False)
    return bytes(sink.getvalue())


def read_rows(column: pa.ChunkedArray) -> np.ndarray:
    """Return uint8 [rows, bytes], copied only where they lie in several pieces; not to be written to."""
    width = column.type.byte_width
    chunks = [
        np.frombuffer(chunk.buffers()[1], dtype=np.uint8, count=len(chunk) * width, offset=chunk.offset * width)
        for chunk in column.chunks
    ]
    return (chunks[0] if len(chunks) == 1 else np.concatenate(chunks)).reshape(-1, width)


def _binary(rows: np.ndarray) -> pa.FixedSizeBinaryArray:
    flat = np.ascontiguousarray(rows)
    kind = pa.binary(flat[0].nbytes)
    return pa.FixedSizeBinaryArray.from_buffers(kind, len(flat), [None, pa.py_buffer(flat)])
