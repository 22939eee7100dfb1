import os
import threading
import time

import numpy as np
import pytest

from cluster.near import FOLDER
from cluster.storage import FolderStorage
from pipeline.caches import mapped
from pipeline.caches.labels import shard_key
from pipeline.caches.mapped import map_cache
from pipeline.caches.segments import open_cache, read_cache, segments_of
from sskt.errors import DamagedError, SsktError
from tests.pipeline.caches.test_segments import MIXED, TURNED, make, said, with_views
from tests.pipeline.planning.test_specs import GROWN, SPEC


@pytest.fixture
def node(tmp_path, monkeypatch):
    """Where the copies of a node lie."""
    monkeypatch.setenv(FOLDER, str(tmp_path / "node"))
    return tmp_path / "node" / f"sskt-{os.getuid()}" / "labels"


def whole(tmp_path, spec):
    """A storage with a cache that was made piece by piece."""
    storage = FolderStorage(str(tmp_path / "store"))
    make(storage, SPEC.segment(0, 0, 4))
    for segment in segments_of(storage, spec):
        if not storage.path(f"{segment.prefix}/manifest.json").exists():
            make(storage, segment)
    return storage, open_cache(storage, spec)


@pytest.mark.parametrize("spec", [SPEC, with_views(GROWN, 6), with_views(SPEC, 3), TURNED, MIXED])
def test_what_is_mapped_is_what_would_be_read(tmp_path, node, spec):
    storage, cache = whole(tmp_path, spec)
    payload = map_cache(storage, cache)
    np.testing.assert_array_equal(payload, read_cache(storage, cache))
    assert not payload.flags.writeable
    assert [path.stat().st_size for path in node.iterdir()] == [payload.nbytes]


def test_a_node_has_one_copy_and_reads_the_storage_once(tmp_path, node):
    storage, cache = whole(tmp_path, SPEC)
    copies = []
    threads = [threading.Thread(target=lambda: copies.append(map_cache(storage, cache))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for shard in range(SPEC.segment(0, 0, 4).shards):
        storage.delete(shard_key(SPEC.segment(0, 0, 4), shard))
    copies.append(map_cache(storage, cache))
    assert all(np.array_equal(copy, said(SPEC, range(150), range(4))) for copy in copies)
    assert len(list(node.iterdir())) == 1


def test_other_views_are_another_copy(tmp_path, node):
    storage, cache = whole(tmp_path, SPEC)
    first = map_cache(storage, cache)
    second = map_cache(storage, open_cache(storage, with_views(SPEC, 2)))
    assert (first.shape[1], second.shape[1]) == (4, 2)
    assert len(list(node.iterdir())) == 2


def test_a_damaged_shard_is_not_copied(tmp_path, node):
    storage, cache = whole(tmp_path, SPEC)
    key = shard_key(SPEC.segment(0, 0, 4), 1)
    data = bytearray(storage.read(key))
    data[len(data) // 2] ^= 1
    storage.write(key, bytes(data))
    with pytest.raises(DamagedError, match="shard 1: its checksum differs"):
        map_cache(storage, cache)
    assert [path.suffix for path in node.iterdir()] == [".part"]
    make(storage, SPEC.segment(0, 0, 4), shards=[1], finish=False)
    assert len(map_cache(storage, cache)) == 150
    assert [path.suffix for path in node.iterdir()] == [""]


def test_what_lies_unused_is_removed_and_what_is_mapped_stays(tmp_path, node, monkeypatch):
    storage, cache = whole(tmp_path, SPEC)
    specs = [with_views(SPEC, count) for count in (1, 2, 3)]
    used = map_cache(storage, cache)
    unused = map_cache(storage, open_cache(storage, specs[0]))
    assert len(unused) == 150
    del unused
    map_cache(storage, open_cache(storage, specs[1]))
    assert len(list(node.iterdir())) == 3, "trials of a sweep take turns"
    monkeypatch.setattr(mapped, "UNUSED_SECONDS", -1.0)
    map_cache(storage, open_cache(storage, specs[2]))
    assert sorted(path.stat().st_size for path in node.iterdir()) == sorted([used.nbytes, used.nbytes * 3 // 4])
    np.testing.assert_array_equal(used, said(SPEC, range(150), range(4)))


def test_a_disk_without_room_is_named_before_anything_is_written(tmp_path, node, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    storage, cache = whole(tmp_path, SPEC)
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(SsktError, match=rf"cache {SPEC.id}: .* GB of labels cannot be kept.*No space left.*{FOLDER}"):
        map_cache(storage, cache)


def test_a_used_copy_counts_as_used_now(tmp_path, node):
    storage, cache = whole(tmp_path, SPEC)
    map_cache(storage, cache)
    (copy,) = node.iterdir()
    os.utime(copy, (0, 0))
    map_cache(storage, cache)
    assert time.time() - copy.stat().st_mtime < 60
