import numpy as np
import pyarrow.parquet as pq
import pytest

from cluster.storage import FolderStorage
from pipeline.columns import write_columns
from pipeline.packing import pack as packing
from pipeline.packing.pack import pack_raw
from pipeline.packing.packed import PackedDataset, read_packed
from pipeline.packing.parts import PartReader, read_labels, splits_of
from sskt.datasets import UNLABELLED, DatasetSettings, RawDataset, Record
from sskt.errors import DamagedError
from tests.sskt.datasets.pictures import picture


class Counting(FolderStorage):
    """Counts what is read."""

    def __init__(self, root: str) -> None:
        super().__init__(root)
        self.reads: list[str] = []

    def read(self, key: str) -> bytes | None:
        self.reads.append(key)
        return super().read(key)


@pytest.fixture
def storage(tmp_path) -> Counting:
    return Counting(str(tmp_path))


def packed_in_parts(storage, monkeypatch, *, multi_label=False) -> PackedDataset:
    """Twenty pictures, six a part, two row groups each; every fifth without a label."""

    def label(index):
        if multi_label:
            return (index % 2, 2)
        return UNLABELLED if index % 5 == 4 else index % 2

    monkeypatch.setattr(packing, "_PART_BYTES", 8 * 8 * 3 * 6)
    monkeypatch.setattr(packing, "ROW_GROUP", 4)
    ignored = (1, 2) if multi_label else ()
    records = [
        Record(str(index), label(index), None, lambda index=index: picture(index), ignored) for index in range(20)
    ]
    raw = RawDataset("made", ("a", "b", "c") if multi_label else ("a", "b"), records, "x", multi_label=multi_label)
    return pack_raw(raw, DatasetSettings(kind="digits"), storage)


@pytest.fixture
def packed(storage, monkeypatch) -> PackedDataset:
    return packed_in_parts(storage, monkeypatch)


def test_the_parts_are_the_images(packed, storage):
    whole, reader = read_packed(packed, storage), PartReader(packed, storage)
    assert packed.part_edges == (0, 6, 12, 18, 20)
    for _ in range(2):
        parts = [reader(number) for number in range(4)]
        assert np.array_equal(np.concatenate(parts), whole.images)


@pytest.mark.parametrize("multi_label", [False, True])
def test_labels_and_splits_are_those_of_the_whole(storage, monkeypatch, multi_label):
    packed = packed_in_parts(storage, monkeypatch, multi_label=multi_label)
    whole = read_packed(packed, storage)
    for _ in range(2):
        labels = read_labels(packed, storage)
        assert labels.dtype == whole.labels.dtype
        assert np.array_equal(labels, whole.labels)
    assert np.array_equal(splits_of(packed), whole.splits)
    assert (whole.labels < 0).any()


def test_parts_are_read_for_their_labels_once(packed, storage):
    read_labels(packed, storage)
    storage.reads.clear()
    read_labels(packed, storage)
    assert storage.reads == [f"{packed.prefix}/labels.parquet"]


def flipped(storage, key, place):
    data = bytearray(storage.path(key).read_bytes())
    data[place] ^= 1
    storage.path(key).write_bytes(bytes(data))


@pytest.mark.parametrize("seen", [False, True])
def test_a_part_that_has_changed_is_named_also_when_it_was_whole_before(packed, storage, seen):
    reader, key = PartReader(packed, storage), f"{packed.prefix}/{packed.parts[2].name}"
    if seen:
        reader(2)
    for place in (20, 300, -9):
        flipped(storage, key, place)
        with pytest.raises(DamagedError, match=r"part-00002\.parquet: sha256 of its"):
            reader(2)
        flipped(storage, key, place)
    assert len(reader(2)) == 6
    storage.delete(key)
    with pytest.raises(DamagedError, match=r"part-00002\.parquet is missing"):
        reader(2)


def test_a_part_is_read_from_the_storage_once_for_each_time_it_is_asked_for(packed, storage):
    reader = PartReader(packed, storage)
    storage.reads.clear()
    for _ in range(2):
        reader(1)
    assert storage.reads == [f"{packed.prefix}/part-00001.parquet"] * 2


def test_labels_that_are_damaged_or_of_another_set_are_refused(packed, storage):
    labels, key = read_labels(packed, storage), f"{packed.prefix}/labels.parquet"
    whole = storage.path(key).read_bytes()
    refused = 0
    for place in range(0, len(whole), 7):
        flipped(storage, key, place)
        try:
            assert np.array_equal(read_labels(packed, storage), labels), "where no label is"
        except DamagedError as error:
            assert f"{key} " in str(error)
            refused += 1
        flipped(storage, key, place)
    assert refused > 10
    statement = pq.read_metadata(storage.path(key)).metadata[b"sskt"]
    fewer = write_columns({"label": labels[:-1].astype("<i4").reshape(-1, 1)}, statement=statement)
    for other in (b"nothing", b"", fewer, write_columns({"other": np.zeros((20, 1), np.uint8)}, statement=statement)):
        storage.write(key, other)
        with pytest.raises(DamagedError, match=r"labels\.parquet .*delete it"):
            read_labels(packed, storage)


def test_labels_are_not_derived_from_damaged_parts(packed, storage):
    flipped(storage, f"{packed.prefix}/{packed.parts[3].name}", 40)
    with pytest.raises(DamagedError, match=r"part-00003\.parquet"):
        read_labels(packed, storage)
    assert f"{packed.prefix}/labels.parquet" not in set(storage.keys("datasets"))
