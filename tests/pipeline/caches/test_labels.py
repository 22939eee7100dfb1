import dataclasses
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.storage import FolderStorage
from pipeline.caches.labels import (
    Made,
    Manifest,
    commit_shard,
    finish_segment,
    load_manifest,
    manifest_key,
    quarantine,
    read_record,
    read_segment,
    read_shard,
    record_key,
    shard_key,
)
from pipeline.planning.specs import Labels, Segment
from sskt.errors import DamagedError

LABELS = Labels(
    source={"weights": "abc"},
    views={"operations": [], "seed": 0},
    output="logits",
    kind="",
    width=10,
    encoding="fp16",
    numerics={"device": "cpu"},
)
SPEC = Segment(labels=LABELS, pool="fingerprint", first=0, stop=150, first_view=0, stop_view=3)


def payload(spec: Segment, shard: int) -> np.ndarray:
    rows = len(spec.id_range(shard))
    return np.random.default_rng(shard).integers(0, 256, (rows, 3, spec.row_bytes // 3), dtype=np.uint8)


def commit(storage: FolderStorage, spec: Segment, shard: int):
    rows = payload(spec, shard)
    made = Made(payload=rows, golden={f"{spec.id_range(shard).start}/0": "abc"}, passes=3 * len(rows), seconds=0.1)
    return commit_shard(storage, spec, shard=shard, made=made)


def write_cache(storage: FolderStorage, spec: Segment = SPEC):
    records = [commit(storage, spec, shard) for shard in range(spec.shards)]
    return finish_segment(storage, spec, records)


def test_what_was_written_is_read(tmp_path):
    storage = FolderStorage(str(tmp_path))
    manifest = write_cache(storage)
    assert load_manifest(storage, SPEC) == manifest
    read = read_segment(storage, SPEC, manifest)
    assert read.shape == (150, 3, 20)
    expected = np.concatenate([payload(SPEC, shard) for shard in range(SPEC.shards)])
    np.testing.assert_array_equal(read, expected)


def test_a_shard_is_plain_parquet_with_one_binary_cell_a_sample(tmp_path):
    storage = FolderStorage(str(tmp_path))
    write_cache(storage)
    table = pq.read_table(tmp_path / shard_key(SPEC, 1))
    assert table.schema.field("logits").type == pa.binary(60)
    stated = json.loads(table.schema.metadata[b"sskt"])
    assert stated == {"cache": SPEC.id, "shard": 1, "first_id": 64, "rows": 64, "views": [0, 3]}


def test_the_same_labels_have_the_same_bytes_wherever_they_are_made(tmp_path):
    one, two = FolderStorage(str(tmp_path / "one")), FolderStorage(str(tmp_path / "two"))
    assert write_cache(one) == write_cache(two)
    for shard in range(SPEC.shards):
        assert one.read(shard_key(SPEC, shard)) == two.read(shard_key(SPEC, shard))


def test_every_damaged_byte_is_found(tmp_path):
    storage = FolderStorage(str(tmp_path))
    manifest = write_cache(storage)
    data = storage.read(shard_key(SPEC, 1))
    generator = np.random.default_rng(0)
    flips = [data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :] for at in generator.integers(0, len(data), 200)]
    for damaged in (*flips, data[:-1], data + b"\0", b""):
        storage.write(shard_key(SPEC, 1), damaged)
        with pytest.raises(DamagedError, match=rf"cache {SPEC.id}, views 0\.\.2, shard 1: its checksum differs"):
            read_segment(storage, SPEC, manifest)


def test_a_shard_under_another_shards_name_is_found(tmp_path):
    storage = FolderStorage(str(tmp_path))
    manifest = write_cache(storage)
    data = storage.read(shard_key(SPEC, 0))
    storage.write(shard_key(SPEC, 1), data)
    lying = dataclasses.replace(manifest.shards[1], crc32=manifest.shards[0].crc32)
    with pytest.raises(DamagedError, match=r"shard 1: the file says it is another shard \(shard, first_id differ\)"):
        read_shard(storage, SPEC, lying)


def test_a_missing_shard_is_found(tmp_path):
    storage = FolderStorage(str(tmp_path))
    manifest = write_cache(storage)
    storage.delete(shard_key(SPEC, 2))
    with pytest.raises(DamagedError, match="shard 2: the file is missing"):
        read_segment(storage, SPEC, manifest)


def test_a_cache_is_whole_only_with_all_its_records(tmp_path):
    storage = FolderStorage(str(tmp_path))
    records = [commit(storage, SPEC, shard) for shard in (0, 2)]
    with pytest.raises(DamagedError, match="2 of 3 shards have a record"):
        finish_segment(storage, SPEC, records)
    assert load_manifest(storage, SPEC) is None


def test_a_damaged_record_means_the_shard_is_made_again(tmp_path):
    storage = FolderStorage(str(tmp_path))
    write_cache(storage)
    another = storage.read(record_key(SPEC, 1))
    for damaged in (b"", b"{", b"[]", b'{"shard":0}', another):
        storage.write(record_key(SPEC, 0), damaged)
        assert read_record(storage, SPEC, 0) is None


def test_a_damaged_or_foreign_manifest_is_refused(tmp_path):
    storage = FolderStorage(str(tmp_path))
    write_cache(storage)
    data = storage.read(manifest_key(SPEC))
    storage.write(manifest_key(SPEC), data[:50])
    with pytest.raises(DamagedError, match=r"manifest.json is damaged \(its checksum is wrong\)"):
        load_manifest(storage, SPEC)
    foreign = dataclasses.replace(SPEC, pool="fingerprunt")
    storage.write(manifest_key(SPEC), data)
    write_cache(storage, foreign)
    storage.write(manifest_key(SPEC), storage.read(manifest_key(foreign)))
    with pytest.raises(DamagedError, match=r"manifest.json differs from the experiment in pool"):
        load_manifest(storage, SPEC)


def test_a_quarantined_shard_is_out_of_the_way_and_not_lost(tmp_path):
    storage = FolderStorage(str(tmp_path))
    write_cache(storage)
    data = storage.read(shard_key(SPEC, 1))
    quarantine(storage, SPEC, 1)
    assert storage.read(f"quarantine/{shard_key(SPEC, 1)}") == data
    assert storage.read(shard_key(SPEC, 1)) is None
    assert read_record(storage, SPEC, 1) is None


def test_a_thousand_damages_are_all_found(tmp_path):
    """Single flipped bytes and truncations of shards, records and the manifest."""
    storage, generator = FolderStorage(str(tmp_path)), np.random.default_rng(1)
    manifest = write_cache(storage)
    keys = [manifest_key(SPEC), *(key(SPEC, shard) for shard in range(SPEC.shards) for key in (shard_key, record_key))]
    for _ in range(1000):
        key = keys[generator.integers(len(keys))]
        whole = storage.read(key)
        at = int(generator.integers(len(whole)))
        flipped = whole[:at] + bytes([whole[at] ^ (1 << int(generator.integers(8)))]) + whole[at + 1 :]
        storage.write(key, flipped if generator.random() < 0.7 else whole[:at])
        assert not trusted(storage, manifest), (key, at)
        storage.write(key, whole)
    assert trusted(storage, manifest)


def trusted(storage: FolderStorage, manifest: Manifest) -> bool:
    """Whether everything of the segment is what it was."""
    try:
        records = [read_record(storage, SPEC, shard) for shard in range(SPEC.shards)]
        read_segment(storage, SPEC, manifest)
        return load_manifest(storage, SPEC) == manifest and records == list(manifest.shards)
    except DamagedError as error:
        return "shard" not in str(error) and "manifest" not in str(error)  # an error that names neither is no help
