"""What lies on a storage, told from what is on it alone."""

import dataclasses

import pytest

from cluster.storage import FolderStorage
from pipeline.caches.labels import manifest_key, record_key, shard_key
from pipeline.canonical import canonical, seal
from pipeline.care.inventory import (
    dependents,
    differences,
    find_cache,
    graph_origins,
    open_inventory,
    stored_caches,
)
from pipeline.packing.packed import PackedDataset, save_manifest
from pipeline.planning.specs import GraphSpec, graph_id
from sskt.errors import DamagedError, InputError
from tests.pipeline.caches.test_segments import make
from tests.pipeline.planning.test_specs import GROWN, LABELS, SPEC

WHOLE = SPEC.segment(0, 0, 4)


def with_labels(**changes):
    return dataclasses.replace(SPEC, labels=dataclasses.replace(LABELS, **changes))


@pytest.fixture
def storage(tmp_path):
    storage = FolderStorage(str(tmp_path))
    make(storage, WHOLE)
    return storage


def only(storage):
    (cache,) = stored_caches(storage)
    return cache


def write_result(storage, key, sources, method="scratch", **options):
    spec = {"sources": sources, "trial": {"method": method, "options": options}}
    storage.write(f"results/{key}.json", canonical({"spec": spec}).encode())


def test_a_storage_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"nowhere' does not exist or holds nothing"):
        open_inventory(FolderStorage(str(tmp_path / "nowhere")))
    with pytest.raises(InputError, match="does not exist or holds nothing"):
        open_inventory(FolderStorage(str(tmp_path)))


def test_a_cache_is_known_by_its_manifest(storage):
    cache = only(storage)
    assert (cache.id, cache.state, list(cache.segments)) == (SPEC.id, "whole", [WHOLE])
    assert sum(found.bytes for found in cache.objects) == sum(len(storage.read(key)) for key in storage.keys("caches"))


def test_the_ranges_of_views_of_a_cache_are_its_segments(storage):
    make(storage, SPEC.segment(0, 4, 6), shards=[0, 2], finish=False)
    cache = only(storage)
    assert list(cache.segments) == [WHOLE, SPEC.segment(0, 4, 6)]
    assert cache.state == "lacks 1 of 6 shards"


def drop(*keys):
    return lambda storage: [storage.delete(key) for key in keys]


@pytest.mark.parametrize(
    ("hurt", "state"),
    [
        (drop(shard_key(WHOLE, 1)), "lacks 1 of 3 shards"),
        (drop(record_key(WHOLE, 1), shard_key(WHOLE, 1), shard_key(WHOLE, 2)), "lacks 2 of 3 shards"),
        (drop(manifest_key(WHOLE)), "begun, 3 shards, no manifest"),
        (lambda s: s.write(manifest_key(WHOLE), b"x"), "damaged: caches/{id}/views-00000-00004/manifest.json"),
        (lambda s: s.write(manifest_key(WHOLE), s.read(manifest_key(WHOLE))[:-4]), "damaged: caches/{id}/views-"),
        (lambda s: s.write(f"caches/{SPEC.id}/shard-00000.parquet", b"x"), "damaged: caches/{id} holds what this"),
        (lambda s: s.write(f"caches/{SPEC.id}/views-1-2-3/x", b"x"), "damaged: caches/{id}/views-1-2-3 holds what"),
    ],
)
def test_what_is_missing_or_damaged_is_said(storage, hurt, state):
    hurt(storage)
    assert only(storage).state.startswith(state.format(id=SPEC.id))


def test_shards_without_a_manifest_beside_a_whole_segment_are_not_whole(storage):
    make(storage, SPEC.segment(0, 4, 6), finish=False)
    assert only(storage).state == "lacks a manifest"


def test_the_manifest_of_another_cache_tells_nothing(storage, tmp_path):
    other = FolderStorage(str(tmp_path / "other"))
    segment = with_labels(width=11).segment(0, 0, 4)
    storage.write(f"caches/{segment.id}/views-00000-00004/manifest.json", storage.read(manifest_key(WHOLE)))
    found = {cache.id: cache.state for cache in stored_caches(storage)}
    assert found[SPEC.id] == "whole"
    assert "it is of another cache" in found[segment.id]
    assert stored_caches(other) == []


def packed(blocks):
    return PackedDataset(
        pack_id="p", name="digits", classes=("a",), multi_label=False, rows=300, pool=blocks[-1].stop, unlabelled=0,
        labelled=(1,), validation=1, test=1, channels=1, size=8, mean=(0.5,), std=(0.5,), fingerprint="f",
        blocks=blocks, not_grown=None, parts=(), unreadable=(), settings={}, signature="s",
    )  # fmt: skip


def test_results_count_for_all_blocks_they_came_from(storage):
    make(storage, GROWN.segment(1, 0, 4))
    save_manifest(packed(GROWN.blocks), storage)
    write_result(storage, "1", [["wise", SPEC.id]])
    write_result(storage, "2", [["oracle", GROWN.id, "another"], ["live one", "live", {"weights": "abc"}]])
    write_result(storage, "3", [["wise", {"weights": "abc"}]])
    write_result(storage, "4", [])
    storage.write("results/5.json", b"damaged")
    told = dependents(storage, stored_caches(storage))
    assert (told.results[SPEC.id], told.results[GROWN.id], told.results["another"]) == (2, 1, 1)
    assert (told.names[SPEC.id], told.names[GROWN.id]) == ({"wise", "oracle"}, {"oracle"})


def test_blocks_of_other_labels_or_other_pools_do_not_count(storage):
    make(storage, with_labels(source={"weights": "abd"}).segment(0, 0, 4))
    make(storage, GROWN.segment(1, 0, 4))
    write_result(storage, "1", [["wise", GROWN.id]])
    assert dependents(storage, stored_caches(storage)).results == {GROWN.id: 1}
    save_manifest(packed(GROWN.blocks), storage)
    assert dependents(storage, stored_caches(storage)).results == {GROWN.id: 1, SPEC.id: 1}


def test_graphs_are_known_by_the_hash_that_is_their_name(storage):
    embedding = with_labels(output="embedding")
    make(storage, embedding.segment(0, 0, 4))
    graph = GraphSpec(embedding=embedding, neighbours=7)
    caches = stored_caches(storage)
    assert graph_origins(caches, [graph.id, "0123"]) == {graph.id: (embedding.id, 7)}
    assert graph_origins(caches, [graph_id(SPEC.id, 7)]) == {}, "only embeddings have graphs"
    write_result(storage, "1", [["wise", embedding.id]], method="smooth", neighbours=7)
    write_result(storage, "2", [["wise", embedding.id]], method="smooth", neighbours=8)
    write_result(storage, "3", [["wise", embedding.id]], method="embed")
    write_result(storage, "4", [["wise", embedding.id]], method="method of old", neighbours=7)
    write_result(storage, "5", [["wise", embedding.id]], method="smooth", option_of_old=7)
    assert dependents(storage, caches).graphs[graph.id] == 1


def test_an_id_may_be_shortened_as_long_as_it_is_one(storage):
    for width in range(11, 40):
        storage.write(f"{with_labels(width=width).segment(0, 0, 4).prefix}/shard-00000.claim", b"")
    caches = stored_caches(storage)
    assert find_cache(caches, SPEC.id[:9]).id == SPEC.id
    with pytest.raises(InputError, match=rf"cache 'xyz' is unknown; there are: .*{SPEC.id}"):
        find_cache(caches, "xyz")
    with pytest.raises(InputError, match=r"cache '' is the start of 30; name one of: "):
        find_cache(caches, "")
    with pytest.raises(InputError, match="there are: none"):
        find_cache([], "a")


def test_every_difference_of_two_identities_is_named(storage):
    other = with_labels(
        source={"weights": "abd", "preprocessing": {"size": 8}}, encoding="fp32",
        views={"operations": [["hflip", 0]], "seed": 0}, numerics={"device": "cpu", "threads": 2},
    )  # fmt: skip
    storage.write(manifest_key(other.segment(0, 0, 4)), sealed(other))
    one, two = (find_cache(stored_caches(storage), spec.id) for spec in (SPEC, other))
    assert set(differences(one, two)) == {
        ("source.weights", "abc", "abd"),
        ("source.preprocessing.size", "-", "8"),
        ("views.operations", "[]", '[["hflip",0]]'),
        ("encoding", "fp16", "fp32"),
        ("numerics.threads", "-", "2"),
    }
    assert differences(one, one) == []
    assert {(name, right, left) for name, left, right in differences(one, two)} == set(differences(two, one))


def sealed(spec):
    return seal({"id": spec.id, "identity": spec.segment(0, 0, 4).identity(), "shards": []})


def test_a_cache_that_nothing_is_known_of_is_not_compared(storage):
    storage.delete(manifest_key(WHOLE))
    with pytest.raises(DamagedError, match="has no manifest that can be read"):
        differences(only(storage), only(storage))
