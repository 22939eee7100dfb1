"""A data set that grows keeps what was packed of it."""

import hashlib
import io
import random
import zlib
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.storage import FolderStorage
from pipeline.packing.pack import pack, pack_raw
from pipeline.packing.packed import PackedDataset, load_manifest, read_packed, read_samples
from sskt.datasets import DatasetSettings, RawDataset, Record
from tests.sskt.datasets.pictures import flat_folder, picture, save

CHOSEN = DatasetSettings(kind="digits")
EACH = settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def storage(tmp_path) -> FolderStorage:
    return FolderStorage(str(tmp_path / "storage"))


def record(key, label=0, split=None, *, shade: int | None = None, mode: str = "L") -> Record:
    seed = sum(str(key).encode()) if shade is None else shade
    return Record(str(key), label, split, lambda: picture(seed, mode=mode))


def raw_of(records, classes=("a", "b"), *, multi_label: bool = False) -> RawDataset:
    signature = repr([(each.key, each.label, each.split, each.load().tobytes()) for each in records])
    return RawDataset("made", tuple(classes), records, signature, multi_label=multi_label)


def pack_records(records, storage, **named) -> PackedDataset:
    return pack_raw(raw_of(records, **named), CHOSEN, storage)


def twenty(name: str = "") -> list[Record]:
    return [record(f"{name}{index:02d}", index % 2) for index in range(20)]


def splits_of(packed, storage) -> dict[str, str]:
    return {sample.key: sample.split for sample in read_samples(packed, storage)}


def pool_of(packed, storage) -> list[str]:
    return [sample.key for sample in read_samples(packed, storage)][: packed.pool]


def assert_grown(before: PackedDataset, after: PackedDataset, storage) -> None:
    old, new = splits_of(before, storage), splits_of(after, storage)
    assert old.items() <= new.items()
    assert pool_of(after, storage)[: before.pool] == pool_of(before, storage)
    assert after.blocks[: len(before.blocks)] == before.blocks
    assert after.blocks[-1].stop == after.pool
    assert after.not_grown is None
    arrays, was = read_packed(after, storage), read_packed(before, storage)
    np.testing.assert_array_equal(arrays.images[: before.pool], was.images[: before.pool])
    assert (np.diff(arrays.splits) >= 0).all()


def assert_afresh(records, storage, tmp_path, reason: str, **named) -> None:
    """Packed beside an earlier one, these are packed as if there were none."""
    packed = pack_records(records, storage, **named)
    alone = pack_records(records, FolderStorage(str(tmp_path / "alone")), **named)
    earlier = packed.not_grown.partition(": ")[0]
    assert packed.not_grown == f"{earlier}: {reason}"
    assert load_manifest(storage, earlier) is not None
    assert len(packed.blocks) == 1
    assert replace(packed, not_grown=None) == alone


@EACH
@given(random=st.randoms(use_true_random=False), multi_label=st.booleans())
def test_ids_and_splits_stay_however_the_data_grows(tmp_path, random: random.Random, multi_label):
    storage = FolderStorage(str(tmp_path / str(random.getrandbits(64))))
    records = [record(f"m{index}", index % 2) for index in range(20)]
    packs = []
    for step in range(4):
        if step:
            names = {f"{random.choice('azm0')}{random.getrandbits(40)}" for _ in range(random.randrange(12))}
            records += [
                record(name, random.choice((0, 1, -1))) for name in sorted(names - {each.key for each in records})
            ]
        random.shuffle(records)
        sets = [replace(each, label=(each.label,)) if each.label >= 0 else each for each in records]
        packs.append(pack_records(sets if multi_label else list(records), storage, multi_label=multi_label))
    for place, before in enumerate(packs):
        for after in packs[place:]:
            assert_grown(before, after, storage)
    assert splits_of(packs[-1], storage).keys() == {each.key for each in records}


def test_a_block_is_named_by_the_pictures_before_its_end_and_nothing_else(storage):
    first = pack_records(twenty(), storage)
    grown = pack_records([*twenty(), *twenty("more")], storage)
    assert [block.stop for block in grown.blocks] == [first.pool, grown.pool]
    assert grown.blocks[0] == first.blocks[0] != grown.blocks[1]
    assert grown.fingerprint != first.fingerprint

    images = read_packed(grown, storage).images
    for block in grown.blocks:
        content = hashlib.sha256(b'{"channels":1,"size":8}')
        for image in images[: block.stop]:
            content.update(hashlib.blake2b(image.tobytes(), digest_size=16).digest())
        assert block.fingerprint == content.hexdigest()


def test_keys_and_labels_are_no_part_of_a_block(storage):
    chosen = replace(CHOSEN, validation=0, test=0)
    same = [record("x", 0, shade=1), record("y", 1, shade=1)]
    others = [record("p", 1, shade=1), record("q", 0, shade=1)]
    found = [pack_raw(raw_of(records), chosen, storage) for records in (same, others)]
    assert found[0].blocks == found[1].blocks
    assert found[0].fingerprint != found[1].fingerprint


def test_another_order_of_the_same_pictures_is_another_block(storage):
    chosen = [replace(CHOSEN, validation=0, test=0, seed=seed) for seed in (0, 1)]
    found = [pack_raw(raw_of(twenty()), each, storage).blocks for each in chosen]
    assert [blocks[0].stop for blocks in found] == [20, 20]
    assert found[0] != found[1]


def test_two_ways_to_the_same_data_share_what_they_have_in_common(tmp_path):
    a, b, c = twenty("a"), twenty("b"), twenty("c")
    here, there, alone = (FolderStorage(str(tmp_path / name)) for name in ("here", "there", "alone"))
    slow = [pack_records(records, here) for records in (a, a + b, a + b + c)]
    quick = [pack_records(records, there) for records in (a, a + b + c)]
    assert [len(packed.blocks) for packed in (*slow, *quick)] == [1, 2, 3, 1, 2]
    assert slow[-1].blocks[0] == quick[-1].blocks[0] == slow[0].blocks[0]
    assert slow[-1].blocks[1:] != quick[-1].blocks[1:]
    once = pack_records(a + b + c, alone)
    assert (len(once.blocks), once.not_grown) == (1, None)


def test_the_largest_that_is_all_there_is_extended(storage):
    a, b, c = twenty("a"), twenty("b"), twenty("c")
    small, large = (pack_records(records, storage) for records in (a, a + b))
    assert pack_records(a + b + c, storage).blocks[:2] == large.blocks
    without = pack_records(a + c, storage)
    assert without.blocks[:1] == small.blocks
    assert without.not_grown is None


def test_only_packings_of_the_same_settings_count(storage):
    pack_records(twenty(), storage)
    other = pack_raw(raw_of([*twenty(), *twenty("more")]), replace(CHOSEN, seed=1), storage)
    assert (len(other.blocks), other.not_grown) == (1, None)


def test_data_that_only_looks_newer_is_packed_alike(storage):
    a, b = twenty("a"), twenty("b")
    pack_records(a, storage)
    grown = pack_records(a + b, storage)
    touched = pack_raw(replace(raw_of(a + b), signature="touched"), CHOSEN, storage)
    assert touched.pack_id != grown.pack_id
    assert replace(touched, pack_id=grown.pack_id, signature=grown.signature) == grown


def test_more_to_test_on_leaves_the_pool_as_it_is(storage):
    before = pack_records(twenty(), storage)
    after = pack_records([*twenty(), record("more", 0, "test"), record("other", 1, "validation")], storage)
    assert_grown(before, after, storage)
    assert after.blocks == before.blocks
    assert (after.validation, after.test) == (before.validation + 1, before.test + 1)


@pytest.mark.parametrize("which", ["train", "validation", "test"])
@pytest.mark.parametrize("how", ["changed", "is gone"])
def test_a_changed_or_removed_image_of_any_split_is_named(storage, tmp_path, which, how):
    before = pack_records(twenty(), storage)
    key = next(key for key, split in splits_of(before, storage).items() if split == which)
    now = [each for each in twenty() if each.key != key] + twenty("more")
    if how == "changed":
        image = picture(sum(key.encode()), mode="L")
        image.putpixel((7, 7), image.getpixel((7, 7)) ^ 1)
        now.append(Record(key, int(key) % 2, None, lambda: image))
    assert_afresh(now, storage, tmp_path, f"image {key!r} {how}")


@pytest.mark.parametrize(
    ("was", "now", "told"),
    [
        ("train", "test", "split 'train' to split 'test'"),
        ("test", None, "split 'test' to no split"),
        (None, "train", "no split to split 'train'"),
    ],
)
def test_an_image_that_the_data_moves_to_another_split_is_named(storage, tmp_path, was, now, told):
    pack_records([*twenty(), record("x", 0, was)], storage)
    assert_afresh([*twenty(), *twenty("more"), record("x", 0, now)], storage, tmp_path, f"image 'x' moved from {told}")


def test_training_images_that_were_held_out_are_so_for_ever(storage):
    """Data with a training split alone; what was held out of it stays so when a test split comes."""
    old = [replace(each, split="train") for each in twenty()]
    before = pack_records(old, storage)
    after = pack_records([*old, *(replace(each, split="test") for each in twenty("more"))], storage)
    assert_grown(before, after, storage)
    assert (before.test, after.test) == (4, 24)


def test_images_that_turn_to_colour_are_other_images(storage, tmp_path):
    pack_records(twenty(), storage)
    now = [*twenty(), record("colour", mode="RGB")]
    assert_afresh(now, storage, tmp_path, "images are 3x8x8, not 1x8x8")


def test_labels_may_change(storage):
    before = pack_records([*twenty(), record("unlabelled", -1)], storage)
    now = [replace(each, label=1 - each.label) for each in twenty()]
    after = pack_records([*now, record("unlabelled", 1), *twenty("more")], storage)
    assert_grown(before, after, storage)
    keys = list(splits_of(after, storage))
    labels = dict(zip(keys, read_packed(after, storage).labels.tolist(), strict=True))
    assert all(labels[each.key] == each.label for each in now)
    assert labels["unlabelled"] == 1


def test_held_out_images_may_not_lose_their_label(storage, tmp_path):
    before = pack_records(twenty(), storage)
    keys = {split: key for key, split in reversed(splits_of(before, storage).items())}
    without = {
        split: [replace(each, label=-1) if each.key == key else each for each in twenty()]
        for split, key in keys.items()
    }
    assert_grown(before, pack_records(without["train"], storage), storage)
    reason = f"image {keys['test']!r} is of the test split and has lost its label"
    assert_afresh(without["test"], FolderStorage(storage.uri), tmp_path, reason)


@pytest.mark.parametrize("multi_label", [False, True])
def test_a_class_may_come_in_between(storage, multi_label):
    def labelled(label):
        return (label,) if multi_label else label

    old = [replace(each, label=labelled(each.label)) for each in twenty()]
    before = pack_records(old, storage, classes=("cat", "dog"), multi_label=multi_label)
    moved = [replace(each, label=labelled(2 * (int(each.key) % 2))) for each in twenty()]
    new = [record(f"0cow{index}", labelled(1)) for index in range(10)]
    after = pack_records([*new, *moved], storage, classes=("cat", "cow", "dog"), multi_label=multi_label)
    assert_grown(before, after, storage)
    was, now = read_packed(before, storage).labels[: before.pool], read_packed(after, storage).labels
    shifted = now[: before.pool]
    np.testing.assert_array_equal(was, shifted[:, [0, 2]] if multi_label else shifted // 2)
    assert after.labelled == (before.labelled[0], 7, before.labelled[1])
    np.testing.assert_array_equal(now[before.pool : after.pool], np.array([[0, 1, 0] if multi_label else 1] * 7))


def test_a_class_that_is_gone_leaves_its_images_gone_too(tmp_path):
    root, storage = flat_folder(tmp_path / "raw", ("cat", "cow", "dog")), FolderStorage(str(tmp_path / "storage"))
    chosen = DatasetSettings(kind="folder", path=str(root))
    before = pack(chosen, storage)
    save(root / "bee" / "00.png", 1)
    for index in range(5):
        save(root / "bee" / f"{index}.png", 900 + index)
    grown = pack(chosen, storage)
    assert_grown(before, grown, storage)
    assert (before.classes, grown.classes) == (("cat", "cow", "dog"), ("bee", "cat", "cow", "dog"))
    for file in (root / "cow").iterdir():
        file.unlink()
    (root / "cow").rmdir()
    afresh = pack(chosen, storage)
    assert afresh.not_grown.startswith(f"{grown.pack_id}: image 'cow/")
    assert len(afresh.blocks) == 1


def test_parquet_grows_by_rows_and_by_files(tmp_path):
    def write(name: str, count: int) -> None:
        rows = [{"image": {"bytes": encoded(f"{name}{row}")}, "label": row % 2} for row in range(count)]
        (tmp_path / "raw").mkdir(exist_ok=True)
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "raw" / f"{name}.parquet")

    chosen, storage = DatasetSettings(kind="parquet", path=str(tmp_path / "raw")), FolderStorage(str(tmp_path / "s"))
    write("m", 20)
    first = pack(chosen, storage)
    write("m", 30)
    longer = pack(chosen, storage)
    write("a", 10)
    more = pack(chosen, storage)
    for before, after in ((first, longer), (longer, more), (first, more)):
        assert_grown(before, after, storage)
    assert [len(packed.blocks) for packed in (first, longer, more)] == [1, 2, 3]
    assert (first.rows, longer.rows, more.rows) == (20, 30, 40)


def encoded(name: str) -> bytes:
    file = io.BytesIO()
    picture(zlib.crc32(name.encode())).save(file, "PNG")
    return file.getvalue()


def test_a_packing_killed_before_its_end_is_never_extended(tmp_path):
    class Full(FolderStorage):
        def write(self, key: str, data: bytes) -> None:
            if key.endswith("manifest.json"):
                raise OSError("killed")
            super().write(key, data)

    whole, full = FolderStorage(str(tmp_path)), Full(str(tmp_path))
    with pytest.raises(OSError, match="killed"):
        pack_records(twenty(), full)
    assert any(key.endswith("part-00000.parquet") for key in whole.keys("datasets"))
    first = pack_records([*twenty(), *twenty("a")], whole)
    assert (len(first.blocks), first.not_grown) == (1, None)
    with pytest.raises(OSError, match="killed"):
        pack_records([*twenty(), *twenty("a"), *twenty("b")], full)
    after = pack_records([*twenty(), *twenty("a"), *twenty("b"), *twenty("c")], whole)
    assert [block.stop for block in after.blocks] == [first.pool, after.pool]


def test_a_damaged_packing_is_not_extended_and_a_damaged_manifest_is_none(storage, tmp_path):
    before = pack_records(twenty(), storage)
    manifest, part = f"{before.prefix}/manifest.json", f"{before.prefix}/part-00000.parquet"
    good = storage.read(part)
    storage.write(part, good[:-9])
    told = pack_records([*twenty(), *twenty("a")], storage)
    assert told.not_grown.startswith(f"{before.pack_id}: {part}: sha256 of its {len(good) - 9} bytes is ")
    assert len(told.blocks) == 1
    storage.write(part, good)
    storage.delete(f"{told.prefix}/manifest.json")
    for wrong in (storage.read(manifest)[:-9], storage.read(manifest).replace(b'"version":3', b'"version":2')):
        storage.write(manifest, wrong)
        afresh = pack_records([*twenty(), *twenty("b"), record(len(wrong))], storage)
        assert (len(afresh.blocks), afresh.not_grown) == (1, None)
        storage.delete(f"{afresh.prefix}/manifest.json")
