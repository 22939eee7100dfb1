import dataclasses
import itertools
import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.storage import FolderStorage
from pipeline.labels import (
    CacheSpec,
    commit_shard,
    finish_cache,
    load_manifest,
    read_cache,
    read_record,
    read_shard,
    record_key,
    shard_key,
)
from sskt.errors import DamagedError

SPEC = CacheSpec(
    source={"weights": "abc"},
    dataset="fingerprint",
    views={"operations": [], "seed": 0},
    view_count=3,
    rows=150,
    output="logits",
    turned=False,
    width=10,
    encoding="fp16",
    numerics={"device": "cpu"},
)


def payload(spec: CacheSpec, shard: int) -> np.ndarray:
    rows = len(spec.id_range(shard))
    return np.random.default_rng(shard).integers(0, 256, (rows, spec.row_bytes), dtype=np.uint8)


def commit(storage: FolderStorage, spec: CacheSpec, shard: int):
    rows = payload(spec, shard)
    return commit_shard(storage, spec, shard=shard, payload=rows, passes=3 * len(rows), seconds=0.1)


def write_cache(storage: FolderStorage, spec: CacheSpec = SPEC):
    records = [commit(storage, spec, shard) for shard in range(spec.shards)]
    return finish_cache(storage, spec, records)


def test_shards_own_fixed_ranges_that_cover_every_id_once():
    for rows in (1, 63, 64, 65, 1000, 50_000, 1_281_167):
        spec = dataclasses.replace(SPEC, rows=rows)
        first_and_last = [spec.id_range(shard) for shard in range(spec.shards)]
        assert first_and_last[0].start == 0
        assert first_and_last[-1].stop == rows
        assert all(a.stop == b.start for a, b in itertools.pairwise(first_and_last))
        assert all(len(ids) > 0 for ids in first_and_last)


def test_what_was_written_is_read(tmp_path):
    storage = FolderStorage(str(tmp_path))
    manifest = write_cache(storage)
    assert load_manifest(storage, SPEC) == manifest
    read = read_cache(storage, SPEC, manifest)
    assert read.shape == (150, 3, 20)
    expected = np.concatenate([payload(SPEC, shard) for shard in range(SPEC.shards)])
    np.testing.assert_array_equal(read.reshape(150, 60), expected)
    assert (manifest.passes, manifest.bytes) == (450, sum(record.bytes for record in manifest.shards))


def test_a_shard_is_plain_parquet_with_one_binary_cell_a_sample(tmp_path):
    storage = FolderStorage(str(tmp_path))
    write_cache(storage)
    table = pq.read_table(tmp_path / shard_key(SPEC, 1))
    assert table.schema.field("logits").type == pa.binary(60)
    stated = json.loads(table.schema.metadata[b"sskt"])
    assert stated == {"cache": SPEC.id, "shard": 1, "first_id": 64, "rows": 64, "views": 3}


def test_the_same_labels_have_the_same_bytes_wherever_they_are_made(tmp_path):
    one, two = FolderStorage(str(tmp_path / "one")), FolderStorage(str(tmp_path / "two"))
    assert write_cache(one).content == write_cache(two).content
    for shard in range(SPEC.shards):
        assert one.read(shard_key(SPEC, shard)) == two.read(shard_key(SPEC, shard))


@pytest.mark.parametrize("field", [field.name for field in dataclasses.fields(CacheSpec)])
def test_any_difference_is_another_cache(field):
    others = {
        "source": {"weights": "abd"},
        "dataset": "other",
        "views": {"operations": [], "seed": 1},
        "view_count": 4,
        "rows": 151,
        "output": "embedding",
        "turned": True,
        "width": 11,
        "encoding": "fp32",
        "numerics": {"device": "cuda"},
    }
    assert dataclasses.replace(SPEC, **{field: others[field]}).id != SPEC.id


def test_every_damaged_byte_is_found(tmp_path):
    storage = FolderStorage(str(tmp_path))
    manifest = write_cache(storage)
    data = storage.read(shard_key(SPEC, 1))
    generator = np.random.default_rng(0)
    flips = [data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :] for at in generator.integers(0, len(data), 200)]
    for damaged in (*flips, data[:-1], data + b"\0", b""):
        storage.write(shard_key(SPEC, 1), damaged)
        with pytest.raises(DamagedError, match=rf"cache {SPEC.id}, shard 1: sha256 differs"):
            read_cache(storage, SPEC, manifest)


def test_a_shard_under_another_shards_name_is_found(tmp_path):
    storage = FolderStorage(str(tmp_path))
    manifest = write_cache(storage)
    data = storage.read(shard_key(SPEC, 0))
    storage.write(shard_key(SPEC, 1), data)
    lying = dataclasses.replace(manifest.shards[1], sha256=manifest.shards[0].sha256)
    with pytest.raises(DamagedError, match=r"shard 1: the file says it is another shard \(shard, first_id differ\)"):
        read_shard(storage, SPEC, lying)


def test_a_missing_shard_is_found(tmp_path):
    storage = FolderStorage(str(tmp_path))
    manifest = write_cache(storage)
    storage.delete(shard_key(SPEC, 2))
    with pytest.raises(DamagedError, match="shard 2: the file is missing"):
        read_cache(storage, SPEC, manifest)


def test_a_cache_is_whole_only_with_all_its_records(tmp_path):
    storage = FolderStorage(str(tmp_path))
    records = [commit(storage, SPEC, shard) for shard in (0, 2)]
    with pytest.raises(DamagedError, match="2 of 3 shards have a record"):
        finish_cache(storage, SPEC, records)
    assert load_manifest(storage, SPEC) is None


def test_a_damaged_record_means_the_shard_is_made_again(tmp_path):
    storage = FolderStorage(str(tmp_path))
    write_cache(storage)
    for damaged in (b"", b"{", b"[]", b'{"shard":0}'):
        storage.write(record_key(SPEC, 0), damaged)
        assert read_record(storage, SPEC, 0) is None


def test_a_damaged_or_foreign_manifest_is_refused(tmp_path):
    storage = FolderStorage(str(tmp_path))
    write_cache(storage)
    key = f"{SPEC.prefix}/manifest.json"
    data = storage.read(key)
    storage.write(key, data[:50])
    with pytest.raises(DamagedError, match=f"cache {SPEC.id}: manifest.json is damaged"):
        load_manifest(storage, SPEC)
    storage.write(key, data.replace(b'"dataset":"fingerprint"', b'"dataset":"fingerprunt"'))
    with pytest.raises(DamagedError, match=r"manifest.json differs from the experiment in dataset"):
        load_manifest(storage, SPEC)
