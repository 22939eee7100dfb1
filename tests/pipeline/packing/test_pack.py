import hashlib
import os
import random
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from cluster.storage import FolderStorage
from pipeline.packing.pack import pack, pack_raw, part_rows
from pipeline.packing.packed import load_manifest, read_packed
from sskt.datasets import DatasetSettings, RawDataset, Record
from sskt.errors import InputError
from tests.pipeline.packing.test_parquet_images import CIFAR10, needs_cifar10
from tests.sskt.datasets.pictures import flat_folder, picture, save

DIGITS = DatasetSettings(kind="digits")


class Loads:
    """Loads a picture, and counts how often."""

    def __init__(self) -> None:
        self.count = 0

    def record(self, key: str, label: int, image: Image.Image | None = None) -> Record:
        return Record(key, label, None, lambda: self.load(key, image))

    def load(self, key: str, image: Image.Image | None) -> Image.Image:
        self.count += 1
        return picture(sum(key.encode()), mode="L") if image is None else image


def raw_of(records: list[Record], classes: int = 2) -> RawDataset:
    return RawDataset("made", tuple(f"c{label}" for label in range(classes)), records, "signature")


def made(count: int = 40) -> list[Record]:
    return [Loads().record(f"{index:03d}", index % 2) for index in range(count)]


def folder(path: Path, **values) -> DatasetSettings:
    return DatasetSettings(kind="folder", path=str(path), **values)


def store(path: Path) -> FolderStorage:
    return FolderStorage(str(path))


def parts(storage: FolderStorage, packed) -> list[bytes]:
    return [storage.read(f"{packed.prefix}/{part.name}") for part in packed.parts]


def table(storage: FolderStorage, packed) -> dict[str, list]:
    tables = [pq.read_table(pa.BufferReader(data)) for data in parts(storage, packed)]
    return pa.concat_tables(tables).to_pydict()


def refused(raw: RawDataset, chosen: DatasetSettings, storage: FolderStorage) -> str:
    with pytest.raises(InputError) as caught:
        pack_raw(raw, chosen, storage)
    assert list(storage.keys("datasets")) == []
    return str(caught.value)


def test_every_image_comes_out_once_with_its_own_label(tmp_path):
    packed = pack(folder(flat_folder(tmp_path / "raw")), store(tmp_path / "s"))
    rows = table(store(tmp_path / "s"), packed)
    assert sorted(rows["key"]) == [f"{name}/{index:02d}.png" for name in ("cat", "dog") for index in range(10)]
    assert rows["id"] == list(range(20))
    for key, label, image in zip(rows["key"], rows["label"], rows["image"], strict=True):
        assert ("cat", "dog")[label] == key[:3]
        original = picture(1000 * label + int(key[4:6]))
        assert image == np.asarray(original).transpose(2, 0, 1).tobytes()


def test_the_pool_comes_first_then_validation_then_test(tmp_path):
    root = flat_folder(tmp_path / "raw")
    for index in range(3):
        save(root / "unlabelled" / f"{index}.png", 5000 + index)
    packed = pack(folder(root), store(tmp_path / "s"))
    rows = table(store(tmp_path / "s"), packed)
    assert rows["split"] == [0] * 17 + [1] * 2 + [2] * 4
    assert (packed.rows, packed.pool, packed.validation, packed.test, packed.unlabelled) == (23, 17, 2, 4, 3)
    assert [rows["label"][17:].count(label) for label in (0, 1)] == [3, 3]
    unlabelled = [row for row, label in enumerate(rows["label"]) if label == -1]
    assert len(unlabelled) == 3
    assert max(unlabelled) < 17


def test_the_manifest_says_what_is_packed(tmp_path):
    chosen = folder(flat_folder(tmp_path / "raw"), seed=3)
    storage = store(tmp_path / "s")
    packed = pack(chosen, storage)
    assert (packed.name, packed.classes, packed.channels, packed.size) == ("raw", ("cat", "dog"), 3, 8)
    assert packed.settings["seed"] == 3
    assert packed.settings["path"] == str(tmp_path / "raw")
    assert packed.unreadable == ()
    assert [part.sha256 for part in packed.parts] == [hashlib.sha256(x).hexdigest() for x in parts(storage, packed)]
    pool = read_packed(packed, storage).images[: packed.pool] / 255
    np.testing.assert_allclose(packed.mean, pool.mean((0, 2, 3)), atol=1e-6)
    np.testing.assert_allclose(packed.std, pool.std((0, 2, 3)), atol=1e-6)


def test_mean_and_std_ignore_what_is_held_out(tmp_path):
    grey = {"train": 100, "validation": 0, "test": 255}
    records = [
        Record(f"{split}{index}", 0, split, lambda value=value: Image.new("L", (2, 2), value))
        for split, value in grey.items()
        for index in range(3)
    ]
    packed = pack_raw(raw_of(records, 1), DIGITS, store(tmp_path))
    assert packed.mean == (round(100 / 255, 6),)
    assert packed.std == (1.0,)  # not 0, which nothing can be divided by


def test_real_digits_are_packed_stratified(tmp_path):
    storage = store(tmp_path)
    packed = pack(DIGITS, storage)
    assert (packed.rows, packed.channels, packed.size) == (1797, 1, 8)
    arrays = read_packed(packed, storage)
    counts = np.array([np.bincount(arrays.labels[arrays.splits == split], minlength=10) for split in range(3)])
    whole = counts.sum(0)
    np.testing.assert_array_equal(whole, [178, 182, 177, 183, 181, 182, 181, 179, 174, 180])
    np.testing.assert_array_equal(counts[2], np.ceil(whole * 0.2))
    np.testing.assert_array_equal(counts[1], np.ceil(whole * 0.1))


def test_packing_again_decodes_nothing(tmp_path):
    loads, storage = Loads(), store(tmp_path)
    raw = raw_of([loads.record(str(index), index % 2) for index in range(20)])
    first = pack_raw(raw, DIGITS, storage)
    assert loads.count == 20
    assert pack_raw(raw, DIGITS, storage) == first
    assert loads.count == 20


def test_other_settings_or_other_raw_data_are_packed_beside(tmp_path):
    storage, raw = store(tmp_path), raw_of(made())
    ids = {
        pack_raw(raw, DIGITS, storage).pack_id,
        pack_raw(raw, replace(DIGITS, seed=1), storage).pack_id,
        pack_raw(replace(raw, signature="changed"), DIGITS, storage).pack_id,
    }
    assert {key.split("/")[1] for key in storage.keys("datasets")} == ids
    assert len(ids) == 3


def test_the_same_content_has_the_same_fingerprint_elsewhere(tmp_path):
    here, there = flat_folder(tmp_path / "here"), tmp_path / "there" / "other-name"
    shutil.copytree(here, there)
    for index, file in enumerate(sorted(there.rglob("*.png"))):
        os.utime(file, (index, index))
    storage = store(tmp_path / "s")
    first, second = pack(folder(here), storage), pack(folder(there), storage)
    assert first.pack_id != second.pack_id
    assert first.signature != second.signature
    assert first.fingerprint == second.fingerprint
    assert parts(storage, first) == parts(storage, second)


def test_the_content_of_single_label_data_keeps_its_fingerprint(tmp_path):
    records = made()
    records[30:] = [replace(record, label=-1) for record in records[30:]]
    # As it was when packed data was of version 2; caches and results are named by it.
    assert pack_raw(raw_of(records), DIGITS, store(tmp_path)).fingerprint.startswith("222dc4757d27ddc0")


def multi(*labels: int | tuple[int, ...], classes: int = 3) -> RawDataset:
    records = [Loads().record(f"{index:03d}", label) for index, label in enumerate(labels)]
    return replace(raw_of(records, classes), multi_label=True)


def test_a_multi_label_set_says_what_holds_what_does_not_and_what_nobody_can_tell(tmp_path):
    raw = multi((0, 1), (), (1, 2), -1, (0,), (2,))
    records = list(raw.records)
    records[4] = replace(records[4], ignored=(0, 2))  # 0 holds for another object, 2 is only hard to see
    records[5] = replace(records[5], ignored=(0, 1))
    storage = store(tmp_path)
    packed = pack_raw(replace(raw, records=records), replace(DIGITS, validation=0, test=0), storage)
    labels = dict(zip(table(storage, packed)["key"], read_packed(packed, storage).labels.tolist(), strict=True))
    assert labels == {
        "000": [1, 1, 0],
        "001": [0, 0, 0],
        "002": [0, 1, 1],
        "003": [-1, -1, -1],
        "004": [1, 0, -1],
        "005": [-1, -1, 1],
    }
    assert packed.multi_label
    assert (packed.labelled, packed.unlabelled, packed.pool) == ((2, 2, 2), 1, 6)


def test_counts_of_a_multi_label_set_are_those_of_the_training_images(tmp_path):
    raw, storage = multi(*[(0,), (0, 1), (1, 2), ()] * 10, -1, -1), store(tmp_path)
    packed = pack_raw(raw, replace(DIGITS, validation=0.1, test=0.2), storage)
    arrays = read_packed(packed, storage)
    assert packed.labelled == tuple((arrays.labels[arrays.splits == 0] == 1).sum(axis=0).tolist())
    assert (packed.labelled[0], packed.labelled[2]) == (14, 7)
    assert (packed.pool, packed.validation, packed.test, packed.unlabelled) == (30, 4, 8, 2)
    assert pack_raw(raw, replace(DIGITS, validation=0.1, test=0.2), storage) == packed


@pytest.mark.parametrize("change", [(0, 2), (), -1, "ignored"])
def test_another_set_of_labels_has_another_fingerprint(tmp_path, change):
    raw, chosen = multi((0, 1), (1,), (0, 2), (2,), (0,)), replace(DIGITS, validation=0, test=0)
    before = pack_raw(raw, chosen, store(tmp_path / "before"))
    records = list(raw.records)
    records[0] = replace(records[0], ignored=(2,)) if change == "ignored" else replace(records[0], label=change)
    after = pack_raw(replace(raw, records=records), chosen, store(tmp_path / "after"))
    assert after.fingerprint != before.fingerprint


def test_one_label_and_a_set_of_one_are_other_content(tmp_path):
    one, chosen = raw_of(made()), replace(DIGITS, validation=0, test=0)
    sets = [replace(record, label=(record.label,)) for record in one.records]
    many = replace(one, records=sets, signature="sets", multi_label=True)
    found = [pack_raw(raw, chosen, store(tmp_path)) for raw in (one, many)]
    assert found[0].fingerprint != found[1].fingerprint
    assert found[0].labelled == found[1].labelled == (20, 20)


def test_a_set_without_any_label_is_refused(tmp_path):
    assert "no image has a label" in refused(multi(-1, (), classes=0), DIGITS, store(tmp_path))


def test_pairs_of_digits_are_packed(tmp_path):
    storage = store(tmp_path)
    packed = pack(DatasetSettings(kind="digit_pairs"), storage)
    assert (packed.rows, packed.channels, packed.size, packed.multi_label) == (1797, 1, 16, True)
    arrays = read_packed(packed, storage)
    assert set(arrays.labels.sum(axis=1).tolist()) == {1, 2}
    assert packed.labelled == tuple((arrays.labels[: packed.pool] == 1).sum(axis=0).tolist())
    # Stratified by the rarest class only, and yet every class has about the share it should have.
    shares = np.array([(arrays.labels[arrays.splits == split] == 1).sum(axis=0) for split in range(3)])
    np.testing.assert_allclose(shares[2] / shares.sum(axis=0), 0.2, atol=0.06)


@pytest.mark.parametrize("change", ["pixel", "label", "seed", "split", "class", "key"])
def test_other_content_has_another_fingerprint(tmp_path, change):
    raw, chosen = raw_of(made()), replace(DIGITS, validation=0, test=0.25)
    before = pack_raw(raw, chosen, store(tmp_path / "before")).fingerprint
    records = list(raw.records)
    if change == "pixel":
        image = records[5].load()
        image.putpixel((0, 0), image.getpixel((0, 0)) ^ 1)
        records[5] = replace(records[5], load=lambda: image)
    if change == "label":
        records = [replace(record, label=1 - record.label) for record in records]  # in the same order as before
    if change == "key":
        records[5] = replace(records[5], key="other")
    raw = replace(raw, records=records, classes=("c0", "c2") if change == "class" else raw.classes)
    if change == "seed":
        chosen = replace(chosen, seed=1)
    if change == "split":
        chosen = replace(chosen, validation=0.25, test=0)  # the same images, in the same order
    assert pack_raw(raw, chosen, store(tmp_path / "after")).fingerprint != before


@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(random=st.randoms(use_true_random=False))
def test_the_order_of_reading_does_not_matter(tmp_path, random: random.Random):
    records = [*made(), *(Record(f"bad{index}", 0, None, lambda: Image.open("/dev/null")) for index in range(5))]
    chosen = replace(DIGITS, max_unreadable=5)
    expected = pack_raw(raw_of(records), chosen, store(tmp_path / "in-order"))
    random.shuffle(records)
    shuffled = pack_raw(raw_of(records), chosen, store(tmp_path / str(random.getrandbits(64))))
    assert shuffled == expected  # the manifest holds the checksums of the parts


def test_an_added_image_leaves_the_others_in_order(tmp_path):
    root, storage = flat_folder(tmp_path / "raw"), store(tmp_path / "s")
    chosen = folder(root, validation=0, test=0)
    before = table(storage, pack(chosen, storage))["key"]
    save(root / "cat" / "new.png", 77)
    elsewhere = store(tmp_path / "elsewhere")
    afresh = table(elsewhere, pack(chosen, elsewhere))["key"]
    assert [key for key in afresh if key != "cat/new.png"] == before != sorted(before)
    assert table(storage, pack(chosen, storage))["key"] == [*before, "cat/new.png"]


def test_without_a_manifest_it_is_packed_again(tmp_path):
    storage, raw = store(tmp_path), raw_of(made())
    packed = pack_raw(raw, DIGITS, storage)
    good = parts(storage, packed)
    storage.delete(f"{packed.prefix}/manifest.json")
    storage.write(f"{packed.prefix}/part-00000.parquet", b"half of")
    assert load_manifest(storage, packed.pack_id) is None
    assert pack_raw(raw, DIGITS, storage) == packed
    assert parts(storage, packed) == good


def test_a_failed_packing_leaves_no_manifest(tmp_path):
    class Full(FolderStorage):
        def write(self, key: str, data: bytes) -> None:
            if "part-00001" in key:
                raise OSError("no space left")
            super().write(key, data)

    records = [Loads().record(str(index), 0, Image.new("L", (2, 2), index % 256)) for index in range(8200)]
    storage = Full(str(tmp_path))
    with pytest.raises(OSError, match="no space left"):
        pack_raw(raw_of(records, 1), DIGITS, storage)
    assert [key.rsplit("/")[-1] for key in storage.keys("datasets")] == ["part-00000.parquet"]


def test_parts_are_bounded_in_rows_and_in_bytes(tmp_path):
    assert part_rows(8 * 8) == part_rows(2048) == 8192
    assert part_rows(32 * 32 * 3) == 5461
    assert part_rows(224 * 224 * 3) == 111
    assert part_rows(1 << 25) == 1

    storage = store(tmp_path)
    records = [Loads().record(str(index), 0, Image.new("L", (2, 2), index % 256)) for index in range(8200)]
    packed = pack_raw(raw_of(records, 1), DIGITS, storage)
    assert [(part.name, part.rows) for part in packed.parts] == [
        ("part-00000.parquet", 8192),
        ("part-00001.parquet", 8),
    ]
    file = pq.ParquetFile(storage.path(f"{packed.prefix}/part-00000.parquet"))
    assert [file.metadata.row_group(group).num_rows for group in range(file.num_row_groups)] == [1024] * 8
    assert file.schema_arrow == pa.schema(
        {"id": pa.int64(), "key": pa.string(), "label": pa.int32(), "split": pa.int8(), "own_split": pa.int8()}
    ).append(pa.field("image", pa.binary(4)))
    arrays = read_packed(packed, storage)
    np.testing.assert_array_equal(arrays.images[:, 0, 0, 0], [int(k) % 256 for k in table(storage, packed)["key"]])


def test_grey_stays_grey_only_if_all_of_it_is(tmp_path):
    grey = [Loads().record(str(index), 0, picture(index, mode="L")) for index in range(10)]
    mixed = [*grey, Loads().record("colour", 0, picture(99))]
    assert pack_raw(raw_of(grey, 1), DIGITS, store(tmp_path / "a")).channels == 1
    assert pack_raw(raw_of(grey, 1), replace(DIGITS, channels=3), store(tmp_path / "b")).channels == 3
    assert pack_raw(raw_of(mixed, 1), replace(DIGITS, channels=1), store(tmp_path / "c")).channels == 1
    packed = pack_raw(raw_of(mixed, 1), DIGITS, store(tmp_path / "d"))
    assert packed.channels == 3
    rows = table(store(tmp_path / "d"), packed)
    images = dict(zip(rows["key"], rows["image"], strict=True))
    assert images["3"] == np.asarray(picture(3, mode="L")).tobytes() * 3
    assert images["colour"] == np.asarray(picture(99)).transpose(2, 0, 1).tobytes()


def test_images_are_brought_to_one_size(tmp_path):
    root = flat_folder(tmp_path / "raw")
    save(root / "cat" / "wide.png", 1, (40, 20))
    packed = pack(folder(root, image_size=16), store(tmp_path / "s"))
    assert packed.size == 16
    assert packed.rows == 21


def test_different_sizes_need_an_image_size(tmp_path):
    root = flat_folder(tmp_path / "raw")
    save(root / "dog" / "big.png", 1, (12, 12))
    with pytest.raises(InputError) as caught:
        pack(folder(root), store(tmp_path / "s"))
    assert str(caught.value) == (
        "dataset.image_size is not set, but image 'cat/00.png' is 8x8 and 'dog/big.png' is 12x12; "
        "set it, for example to 8"
    )
    save(root / "cat" / "00.png", 1, (9, 8))
    with pytest.raises(InputError, match=r"but image 'cat/00.png' is 9x8, not square; set it, for example to 8$"):
        pack(folder(root), store(tmp_path / "s"))


def test_unreadable_images_are_refused_by_name_or_left_out(tmp_path):
    root, storage = flat_folder(tmp_path / "raw"), store(tmp_path / "s")
    (root / "cat" / "bad.png").write_bytes(b"no image")
    whole = (root / "dog" / "00.png").read_bytes()
    (root / "dog" / "cut.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(InputError) as caught:
        pack(folder(root, max_unreadable=1), storage)
    message = str(caught.value)
    assert message.startswith("dataset.max_unreadable is 1, but 2 image(s) cannot be read: 'cat/bad.png' (cannot ident")
    assert "; 'dog/cut.png' (" in message
    assert message.endswith("; repair or remove them, or set it to 2 to leave them out")
    assert "\n" not in message
    assert list(storage.keys("datasets")) == []

    packed = pack(folder(root, max_unreadable=2), storage)
    assert packed.unreadable == ("cat/bad.png", "dog/cut.png")
    assert packed.rows == 20
    (root / "cat" / "bad.png").unlink()
    (root / "dog" / "cut.png").unlink()
    assert pack(folder(root), storage).fingerprint == packed.fingerprint


def test_only_the_first_unreadable_images_are_listed(tmp_path):
    records = [Record(str(index), 0, None, lambda: Image.open("/dev/null")) for index in range(9)]
    message = refused(raw_of(records, 1), DIGITS, store(tmp_path))
    assert "but 9 image(s) cannot be read: '0' (" in message
    assert "'2' (" in message
    assert "'3'" not in message
    assert refused(raw_of(records, 1), replace(DIGITS, max_unreadable=9), store(tmp_path)) == (
        "dataset: 'made' holds no readable image"
    )


def test_a_class_without_training_images_is_refused(tmp_path):
    assert "class 'c2' has no labelled image to train on" in refused(raw_of(made(), 3), DIGITS, store(tmp_path))


def test_progress_counts_every_image(tmp_path):
    seen = []
    pack_raw(raw_of(made(600)), DIGITS, store(tmp_path), progress=lambda done, total: seen.append((done, total)))
    assert seen[-1] == (600, 600)
    assert seen == sorted(set(seen))


@pytest.mark.slow
@needs_cifar10
def test_real_parquet(tmp_path):
    storage = store(tmp_path)
    chosen = DatasetSettings(kind="parquet", path=str(CIFAR10 / "test.parquet"))
    packed = pack(chosen, storage)
    assert (packed.rows, packed.pool, packed.validation, packed.test) == (10000, 7000, 1000, 2000)
    assert (packed.channels, packed.size) == (3, 32)
    np.testing.assert_allclose(packed.mean, [0.494, 0.485, 0.450], atol=0.003)  # published for the test images
    assert np.bincount(read_packed(packed, storage).labels).tolist() == [1000] * 10
    assert pack(chosen, storage) == packed
