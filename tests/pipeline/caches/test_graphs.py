"""Graphs of nearest neighbours on storage: right, found, and never trusted once damaged."""

import dataclasses
import hashlib

import numpy as np
import pytest

from cluster.metrics import Work
from cluster.resources import ResourceError
from cluster.storage import FolderStorage
from pipeline.caches.graphs import ensure_graphs, load_graph, make_graph
from pipeline.caches.labels import Made, commit_shard, finish_segment, manifest_key, shard_key
from pipeline.caches.segments import read_cache, require_cache
from pipeline.canonical import seal
from pipeline.packing.packed import PoolBlock
from pipeline.planning.settings import ResourceSettings
from pipeline.planning.specs import CacheSpec, GraphSpec, Labels
from sskt.errors import DamagedError, SsktError

ROWS, VIEWS, WIDTH, COUNT = 150, 3, 5, 4
LABELS = Labels(
    source={"weights": "abc"}, views={"operations": [], "seed": 0}, output="embedding", kind="", width=WIDTH,
    encoding="fp16", numerics={"device": "cpu"},
)  # fmt: skip
EMBEDDING = CacheSpec(labels=LABELS, blocks=(PoolBlock(stop=ROWS, fingerprint="pool"),), view_count=VIEWS)
OTHER = dataclasses.replace(EMBEDDING, blocks=(PoolBlock(stop=ROWS, fingerprint="other"),))
SEGMENT = EMBEDDING.segment(0, 0, VIEWS)
SPEC = GraphSpec(embedding=EMBEDDING, neighbours=COUNT)


def write_cache(storage, spec, *, seed):
    """Embeddings of three views of every sample, no two alike."""
    values = np.random.default_rng(seed).normal(size=(ROWS, VIEWS, WIDTH)).astype("<f2")
    segment, records = spec.segment(0, 0, VIEWS), []
    for shard in range(segment.shards):
        ids = segment.id_range(shard)
        made = Made(payload=values[ids.start : ids.stop].view(np.uint8), golden={}, passes=len(ids), seconds=0.0)
        records.append(commit_shard(storage, segment, shard=shard, made=made))
    finish_segment(storage, segment, records)


@pytest.fixture
def storage(tmp_path):
    storage = FolderStorage(str(tmp_path))
    write_cache(storage, EMBEDDING, seed=0)
    write_cache(storage, OTHER, seed=1)
    return storage


def first_views(storage, spec):
    """float64 [P, D], decoded from the cache by NumPy alone."""
    stored = read_cache(storage, require_cache(storage, spec, source="wise"))
    return np.ascontiguousarray(stored[:, 0]).view("<f2").astype(np.float64)


def slow_neighbours(rows, count):
    """Every pair by itself: ids and cosines of the `count` nearest others, nearest first."""
    ids, cosines = [], []
    for own, row in enumerate(rows):
        near = [
            (float(row @ other) / float(np.sqrt(row @ row) * np.sqrt(other @ other)), number)
            for number, other in enumerate(rows)
            if number != own
        ]
        best = sorted(near, reverse=True)[:count]
        ids.append([number for _, number in best])
        cosines.append([cosine for cosine, _ in best])
    return np.array(ids), np.array(cosines)


def same(left, right):
    return left is not None and all(np.array_equal(left[name], right[name]) for name in ("ids", "similarity"))


@pytest.mark.parametrize("count", [1, COUNT, ROWS - 1])
def test_a_graph_is_that_of_the_first_views(storage, count):
    spec = dataclasses.replace(SPEC, neighbours=count)
    make_graph(storage.uri, spec, resources=ResourceSettings(), work=Work())
    graph = load_graph(storage, spec)
    ids, cosines = slow_neighbours(first_views(storage, EMBEDDING), count)
    assert graph["ids"].shape == graph["similarity"].shape == (ROWS, count)
    np.testing.assert_array_equal(graph["ids"], ids)
    np.testing.assert_allclose(graph["similarity"], cosines, atol=1e-6)


def test_what_makes_another_graph_gives_it_another_name():
    specs = [SPEC, dataclasses.replace(SPEC, neighbours=COUNT + 1), dataclasses.replace(SPEC, embedding=OTHER)]
    assert len({spec.id for spec in specs}) == len({spec.key for spec in specs}) == 3
    assert dataclasses.replace(SPEC).id == SPEC.id


def test_a_graph_that_was_never_made_is_absent(storage):
    assert load_graph(storage, SPEC) is None


def test_no_graph_comes_from_a_cache_that_is_not_whole_or_not_sound(storage):
    storage.write(shard_key(SEGMENT, 1), b"damaged")
    with pytest.raises(DamagedError, match="shard 1: its checksum differs"):
        make_graph(storage.uri, SPEC, resources=ResourceSettings(), work=Work())
    storage.delete(manifest_key(SEGMENT))
    with pytest.raises(DamagedError, match=rf"cache {EMBEDDING.id} of source .* is not whole; run `cache`"):
        make_graph(storage.uri, SPEC, resources=ResourceSettings(), work=Work())
    assert load_graph(storage, SPEC) is None


def copy_graph(storage, spec):
    """Put another graph, and its record, where this one lies."""
    make_graph(storage.uri, spec, resources=ResourceSettings(), work=Work())
    storage.write(SPEC.key, storage.read(spec.key))
    storage.write(SPEC.record_key, storage.read(spec.record_key))


def flip_byte(storage, at):
    data = storage.read(SPEC.key)
    at %= len(data)
    storage.write(SPEC.key, data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :])


DAMAGES = {
    "first byte": lambda storage: flip_byte(storage, 0),
    "a byte inside": lambda storage: flip_byte(storage, 700),
    "last byte": lambda storage: flip_byte(storage, -1),
    "cut short": lambda storage: storage.write(SPEC.key, storage.read(SPEC.key)[:-5]),
    "empty": lambda storage: storage.write(SPEC.key, b""),
    "no file": lambda storage: storage.delete(SPEC.key),
    "no record": lambda storage: storage.delete(SPEC.record_key),
    "record cut short": lambda storage: storage.write(SPEC.record_key, storage.read(SPEC.record_key)[:-5]),
    "record of no text": lambda storage: storage.write(SPEC.record_key, b"\xff\xfe"),
    "record without a checksum": lambda storage: storage.write(SPEC.record_key, b'{"id":"x"}'),
    "record of nothing": lambda storage: storage.write(SPEC.record_key, b"[]"),
    "another file": lambda storage: storage.write(SPEC.key, storage.read(shard_key(SEGMENT, 0))),
    "another source's": lambda storage: copy_graph(storage, GraphSpec(embedding=OTHER, neighbours=COUNT)),
    "another number": lambda storage: copy_graph(storage, GraphSpec(embedding=EMBEDDING, neighbours=COUNT + 1)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_graph_is_absent_and_can_be_made_again(storage, damage):
    make_graph(storage.uri, SPEC, resources=ResourceSettings(), work=Work())
    right = load_graph(storage, SPEC)
    written = storage.read(SPEC.key)
    DAMAGES[damage](storage)
    assert load_graph(storage, SPEC) is None
    make_graph(storage.uri, SPEC, resources=ResourceSettings(), work=Work())
    assert same(load_graph(storage, SPEC), right)
    assert storage.read(SPEC.key) == written


def test_a_record_that_fits_a_foreign_file_does_not_make_it_right(storage):
    """The checksum alone would pass: columns are missing, or the file is no Parquet at all."""
    for foreign in (storage.read(shard_key(SEGMENT, 0)), b"no parquet"):
        storage.write(SPEC.key, foreign)
        record = {"id": SPEC.id, "sha256": hashlib.sha256(foreign).hexdigest()}
        storage.write(SPEC.record_key, seal(record))
        assert load_graph(storage, SPEC) is None


@pytest.mark.usefixtures("ray_session")
def test_what_is_there_is_found_and_what_is_not_is_made(storage, tmp_path):
    wanted = {"wise": SPEC, "other": GraphSpec(embedding=OTHER, neighbours=COUNT)}
    assert ensure_graphs(storage, {}, resources=ResourceSettings()) == []
    assert ensure_graphs(storage, wanted, resources=ResourceSettings()) == ["wise", "other"]
    graphs = {name: load_graph(storage, spec) for name, spec in wanted.items()}
    written = {file: file.stat().st_mtime_ns for file in tmp_path.glob("graphs/*")}
    assert len(written) == 4
    assert ensure_graphs(storage, wanted, resources=ResourceSettings()) == []
    assert {file: file.stat().st_mtime_ns for file in tmp_path.glob("graphs/*")} == written
    flip_byte(storage, 700)
    assert ensure_graphs(storage, wanted, resources=ResourceSettings()) == ["wise"]
    assert all(same(load_graph(storage, spec), graphs[name]) for name, spec in wanted.items())


def test_nothing_missing_starts_no_session(storage, monkeypatch):
    make_graph(storage.uri, SPEC, resources=ResourceSettings(), work=Work())
    monkeypatch.setattr("pipeline.caches.graphs.start_session", lambda: pytest.fail("a session was started"))
    assert ensure_graphs(storage, {"wise": SPEC}, resources=ResourceSettings()) == []


@pytest.mark.usefixtures("ray_session")
def test_a_failure_is_one_line_that_names_the_graph(storage):
    storage.delete(manifest_key(SEGMENT))
    with pytest.raises(SsktError, match=r"graph of wise: .*is not whole; run `cache`") as raised:
        ensure_graphs(storage, {"wise": SPEC}, resources=ResourceSettings())
    assert "\n" not in str(raised.value)


@pytest.mark.usefixtures("ray_session")
def test_more_than_the_cluster_has_is_refused_instead_of_waited_for(storage):
    with pytest.raises(ResourceError, match="needs 999 CPUs"):
        ensure_graphs(storage, {"wise": SPEC}, resources=ResourceSettings(cpus_per_source_worker=999))
