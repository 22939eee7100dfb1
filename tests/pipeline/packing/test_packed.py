import hashlib
import io
import json
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.storage import FolderStorage
from pipeline.packing.pack import pack_raw
from pipeline.packing.packed import (
    PackedDataset,
    copy_rows,
    image_format,
    load_manifest,
    read_images,
    read_packed,
    read_samples,
)
from sskt.datasets import SPLITS, DatasetSettings, RawDataset, Record
from sskt.errors import DamagedError
from tests.sskt.datasets.pictures import picture


@pytest.fixture
def storage(tmp_path) -> FolderStorage:
    return FolderStorage(str(tmp_path))


@pytest.fixture
def packed(storage) -> PackedDataset:
    """Twenty pictures in two parts, the second one made by hand from the first."""
    records = [Record(str(index), index % 2, None, lambda index=index: picture(index)) for index in range(20)]
    whole = pack_raw(RawDataset("made", ("a", "b"), records, "x"), DatasetSettings(kind="digits"), storage)
    table = read_table(storage, whole, 0)
    first = replace_part(storage, replace(whole, parts=whole.parts * 2), 0, table.slice(0, 12))
    return replace_part(storage, first, 1, table.slice(12))


def read_table(storage, packed, number) -> pa.Table:
    return pq.read_table(pa.BufferReader(storage.read(f"{packed.prefix}/{packed.parts[number].name}")))


def replace_part(storage, packed, number, table) -> PackedDataset:
    """Store `table` as that part, with a manifest that agrees."""
    file = io.BytesIO()
    pq.write_table(table, file, row_group_size=5)
    name = f"part-{number:05d}.parquet"
    storage.write(f"{packed.prefix}/{name}", file.getvalue())
    part = replace(
        packed.parts[number], name=name, rows=table.num_rows, sha256=hashlib.sha256(file.getvalue()).hexdigest()
    )
    return replace(packed, parts=tuple(part if place == number else old for place, old in enumerate(packed.parts)))


def refused(packed, storage) -> str:
    with pytest.raises(DamagedError) as caught:
        read_packed(packed, storage)
    return str(caught.value)


def test_arrays_are_the_rows_in_order(storage, packed):
    arrays = read_packed(packed, storage)
    assert (arrays.images.dtype, arrays.labels.dtype, arrays.splits.dtype) == (np.uint8, np.int64, np.int8)
    rows = pa.concat_tables([read_table(storage, packed, number) for number in (0, 1)]).to_pydict()
    assert arrays.images.shape == (20, 3, 8, 8)
    for row, key in enumerate(rows["key"]):
        np.testing.assert_array_equal(arrays.images[row].transpose(1, 2, 0), np.asarray(picture(int(key))))
        assert arrays.labels[row] == int(key) % 2
    assert arrays.splits.tolist() == [0] * 14 + [1] * 2 + [2] * 4


@pytest.fixture
def packed_multi(storage) -> PackedDataset:
    """Twelve pictures in two parts, of three classes that may hold together."""
    label = {0: (0, 2), 1: (1,), 2: ()}
    records = [Record(str(index), label[index % 3], "train", lambda index=index: picture(index)) for index in range(12)]
    raw = RawDataset("made", ("a", "b", "c"), records, "x", multi_label=True)
    whole = pack_raw(raw, DatasetSettings(kind="digits", validation=0, test=0), storage)
    table = read_table(storage, whole, 0)
    first = replace_part(storage, replace(whole, parts=whole.parts * 2), 0, table.slice(0, 7))
    return replace_part(storage, first, 1, table.slice(7))


def test_labels_of_a_multi_label_set_are_rows_of_classes(storage, packed_multi):
    arrays = read_packed(packed_multi, storage)
    assert (arrays.labels.dtype, arrays.labels.shape) == (np.int8, (12, 3))
    rows = pa.concat_tables([read_table(storage, packed_multi, number) for number in (0, 1)]).to_pydict()
    expected = {0: [1, 0, 1], 1: [0, 1, 0], 2: [0, 0, 0]}
    assert arrays.labels.tolist() == [expected[int(key) % 3] for key in rows["key"]]
    assert rows["label"] == [bytes(expected[int(key) % 3]) for key in rows["key"]]


def test_the_label_column_has_to_be_of_the_manifest_s_kind(storage, packed, packed_multi):
    one_label = replace(packed_multi, multi_label=False)
    assert "part-00000.parquet: label is not a column of type int32" in refused(one_label, storage)
    fewer = replace(packed_multi, classes=("a", "b"))
    assert "label is not a column of type fixed_size_binary[2]" in refused(fewer, storage)
    many = replace(packed, multi_label=True)
    assert "label is not a column of type fixed_size_binary[2]" in refused(many, storage)


def test_images_are_copied_from_chunks_that_start_within_a_buffer():
    whole = np.arange(40, dtype=np.uint8).reshape(10, 1, 2, 2)
    array = pa.FixedSizeBinaryArray.from_buffers(pa.binary(4), 10, [None, pa.py_buffer(whole)])
    found = np.empty((7, 1, 2, 2), np.uint8)
    copy_rows(pa.chunked_array([array.slice(2, 3), array.slice(6)]), found)
    np.testing.assert_array_equal(found, whole[[2, 3, 4, 6, 7, 8, 9]])


def test_a_changed_byte_is_noticed_wherever_it_is(storage, packed):
    key = f"{packed.prefix}/part-00001.parquet"
    good = storage.read(key)
    for place in (0, 100, len(good) // 2, len(good) - 1):
        data = bytearray(good)
        data[place] ^= 1
        storage.write(key, bytes(data))
        assert refused(packed, storage).startswith(f"{key}: sha256 of its {len(good)} bytes is ")
    storage.write(key, good)
    read_packed(packed, storage)


def test_a_truncated_or_missing_part_is_named(storage, packed):
    key = f"{packed.prefix}/part-00000.parquet"
    storage.write(key, storage.read(key)[:100])
    assert refused(packed, storage).startswith(f"{key}: sha256 of its 100 bytes is ")
    storage.delete(key)
    assert refused(packed, storage) == f"{key} is missing; delete {packed.prefix}/manifest.json to pack again"


def test_a_part_that_does_not_fit_the_manifest_is_named(storage, packed):
    key = f"{packed.prefix}/part-00001.parquet"
    table = read_table(storage, packed, 1)
    short = replace_part(storage, packed, 1, table.slice(0, 7))
    assert refused(short, storage) == (
        f"{packed.prefix}/manifest.json: rows is 20, but its parts hold 19; delete it to pack again"
    )
    lying = replace(short, parts=(short.parts[0], replace(short.parts[1], rows=8)))
    assert f"{key}: rows is 7, not 8" in refused(lying, storage)
    swapped = replace_part(storage, packed, 1, table.take([1, 0, *range(2, 8)]))
    assert f"{key}: id is not 12..19 in order" in refused(swapped, storage)
    unsplit = replace_part(storage, packed, 1, table.drop_columns("split"))
    assert f"{key}: split is not a column of type int8" in refused(unsplit, storage)
    wide = replace_part(storage, packed, 1, table.set_column(2, "label", table["label"].cast(pa.int64())))
    assert f"{key}: label is not a column of type int32" in refused(wide, storage)


def test_images_of_another_size_are_noticed(storage, packed):
    assert "image is not a column of type fixed_size_binary[243]" in refused(replace(packed, size=9), storage)


def test_a_manifest_survives_storage(storage, packed):
    key = f"{packed.prefix}/manifest.json"
    loaded = load_manifest(storage, packed.pack_id)
    assert loaded is not None
    assert replace(loaded, parts=packed.parts) == packed
    assert load_manifest(storage, "0" * 16) is None
    data = storage.read(key)
    assert data == json.dumps(json.loads(data), sort_keys=True, separators=(",", ":")).encode()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "version: Input should be 3"),
        ({"rows": "many"}, "rows: Input should be a valid integer"),
        ({"multi_label": "maybe"}, "multi_label: Input should be a valid boolean"),
        ({"pool": None}, "pool: Input should be a valid integer"),
        ({"extra": 1}, "extra: Unexpected keyword argument"),
        ({"blocks": [{"stop": 3}]}, "blocks.0.fingerprint: Field required"),
        ({"parts": [{"name": "x"}]}, "parts.0.rows: Field required"),
        ({"pack_id": "0" * 16}, "pack_id is '0000000000000000'; it belongs elsewhere"),
    ],
)
def test_a_damaged_manifest_names_its_field(storage, packed, change, message):
    key = f"{packed.prefix}/manifest.json"
    storage.write(key, json.dumps({**json.loads(storage.read(key)), **change}).encode())
    with pytest.raises(DamagedError) as caught:
        load_manifest(storage, packed.pack_id)
    assert str(caught.value).startswith(f"{key}: {message}")
    assert str(caught.value).endswith("delete it to pack again")


def test_half_a_manifest_is_damaged(storage, packed):
    key = f"{packed.prefix}/manifest.json"
    storage.write(key, storage.read(key)[:-20])
    with pytest.raises(DamagedError, match=r"manifest.json: the whole: Invalid JSON"):
        load_manifest(storage, packed.pack_id)


def test_the_image_format_is_what_a_network_has_to_know(packed):
    found = image_format(packed)
    assert (found.channels, found.size, found.mean, found.std) == (3, 8, packed.mean, packed.std)


def test_images_of_adjacent_samples_are_read_alone(storage, packed):
    everything = read_packed(packed, storage).images
    assert len(packed.parts) > 1
    for first in range(packed.rows):
        for last in range(first, packed.rows + 1):
            np.testing.assert_array_equal(read_images(packed, storage, range(first, last)), everything[first:last])


def test_samples_come_in_order_with_the_split_they_have_and_the_one_the_data_named(storage, packed, packed_multi):
    arrays = read_packed(packed, storage)
    samples = list(read_samples(packed, storage))
    np.testing.assert_array_equal(np.stack([sample.pixels for sample in samples]), arrays.images)
    assert [SPLITS.index(sample.split) for sample in samples] == arrays.splits.tolist()
    assert sorted(int(sample.key) for sample in samples) == list(range(20))
    assert {sample.own_split for sample in samples} == {None}
    assert {sample.own_split for sample in read_samples(packed_multi, storage)} == {"train"}
    storage.delete(f"{packed.prefix}/part-00001.parquet")
    with pytest.raises(DamagedError, match=r"part-00001.parquet is missing"):
        list(read_samples(packed, storage))
