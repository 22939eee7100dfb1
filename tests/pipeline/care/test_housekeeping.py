"""Tables of a storage; and clearing it of what no experiment needs, of that alone."""

import os
import re
import time

import pytest

from cluster.storage import FolderStorage
from pipeline.caches.claims import claim_key
from pipeline.caches.labels import manifest_key, shard_key
from pipeline.care.housekeeping import BUSY_SECONDS, collect, diff_caches, find_waste, list_caches
from pipeline.planning.experiment import load_experiment
from pipeline.planning.specs import GraphSpec
from pipeline.stages import found_plan
from pipeline.trials.attempts import trial_claim
from sskt.errors import InputError
from tests.pipeline.caches.test_segments import make
from tests.pipeline.care.test_inventory import with_labels, write_result
from tests.pipeline.planning.test_specs import SPEC
from tests.pipeline.trials.test_trials import prepared, with_methods


def keys(storage, prefix=""):
    return set(storage.keys(prefix))


def age(storage, seconds=2 * BUSY_SECONDS, prefix=""):
    """Make objects old."""
    for key in keys(storage, prefix):
        os.utime(storage.path(key), (time.time() - seconds,) * 2)


def test_the_tables_say_what_is_there(experiment_file):
    with_methods(experiment_file, "method: smooth, sources: [wise], neighbours: 5")
    plan, storage = prepared(experiment_file)
    spec, (graph,) = plan.caches["wise"]["embedding"], plan.graphs_for(plan.trials).values()
    write_result(storage, "1", [["wise", spec.id]], method="smooth", neighbours=5)
    age(storage, 3 * 3600)
    size = sum(len(storage.read(key)) for key in keys(storage, "caches")) / 1e6
    head, row, nothing, graphs_head, graph_row = list_caches(storage)
    columns = "cache source output encoding samples views MB state age results"
    assert head.split() == columns.split()
    assert re.split(r"  +", row) == [
        spec.id, "small_cnn (wise)", "embedding", "fp16", f"{plan.packed.name} 0..107", "0..2", f"{size:.2f}", "whole",
        "3 h", "1",
    ]  # fmt: skip
    assert nothing == ""
    assert graphs_head.startswith("graph ")
    assert graph_row.split()[:3] == [graph.id, spec.id, "5"]
    assert graph_row.split()[-4:] == ["whole", "3", "h", "1"]
    storage.delete(graph.record_key)
    storage.write(manifest_key(spec.segment(0, 0, 3)), b"damaged")
    told = "\n".join(list_caches(storage))
    assert f"damaged: {manifest_key(spec.segment(0, 0, 3))} (its checksum is wrong)" in told
    assert f"{graph.id}  ?" in told
    assert "lacks its file or its record" in told


def test_columns_are_aligned_and_a_storage_without_caches_says_so(tmp_path):
    storage = FolderStorage(str(tmp_path))
    storage.write("results/1.json", b"{}")
    assert list_caches(storage) == ["no caches", "", "no graphs"]
    make(storage, SPEC.segment(0, 0, 4))
    make(storage, with_labels(output="embedding").segment(0, 0, 4))
    make(storage, SPEC.segment(0, 4, 8))
    head, *rows, _, nothing = list_caches(storage)
    assert len(rows) == 2
    for name in ("source", "views", "state", "results"):
        assert all(row[head.index(name) - 1] == " " != row[head.index(name)] for row in rows)
    assert any("0..3, 4..7" in row for row in rows)
    assert nothing == "no graphs"


def test_two_caches_are_compared_by_the_start_of_their_ids(tmp_path):
    storage, other = FolderStorage(str(tmp_path)), with_labels(output="embedding")
    make(storage, SPEC.segment(0, 0, 4))
    make(storage, other.segment(0, 0, 4))
    head, line = diff_caches(storage, SPEC.id[:10], other.id[:10])
    assert head.split() == ["field", SPEC.id[:10], other.id[:10]]
    assert line.split() == ["output", "logits", "embedding"]
    assert diff_caches(storage, SPEC.id, SPEC.id[:12]) == ["identical"]
    with pytest.raises(InputError, match="'nothing' is unknown; there are: "):
        diff_caches(storage, SPEC.id, "nothing")


def litter(storage):
    """All kinds of things that an experiment may have left: those that can go, those that have to stay."""
    gone, kept = with_labels(output="embedding"), ("results/old.json", "networks/old.safetensors", "failures/old.json")
    make(storage, gone.segment(0, 0, 4))
    graph = GraphSpec(embedding=gone, neighbours=3)
    going = [graph.key, graph.record_key, "quarantine/caches/a/views-00000-00001/shard-00000.parquet"]
    going += ["checkpoints/old/epoch-000003", "caches/0123456789abcdef/manifest.json"]
    staying = [*kept, "checkpoints/unfinished/epoch-000003", "pilots/a.json", "datasets/other/part-00000.parquet"]
    for key in (*going, *staying):
        storage.write(key, b"something")
    return {*going, *(key for key in keys(storage, f"caches/{gone.id}"))}


def test_what_no_experiment_needs_goes_and_all_else_stays(experiment_file):
    plan, storage = prepared(experiment_file)
    before = keys(storage)
    going = litter(storage)
    age(storage)
    everything = keys(storage)
    said = collect(storage, [plan], delete=False)
    assert keys(storage) == everything
    assert said[-1].endswith(": nothing was removed; --yes removes it")
    told = collect(storage, [plan], delete=True)
    assert told[:-1] == said[:-1]
    assert told[-1].startswith("gc      5 found, 0.0")
    assert told[-1].endswith(" MB: removed")
    assert everything - keys(storage) == going
    assert before <= keys(storage)
    assert collect(storage, [plan], delete=True) == ["gc      nothing to remove"]


def test_every_experiment_that_is_named_keeps_what_it_needs(experiment_file):
    small, storage = prepared(experiment_file)
    wide, _ = prepared(experiment_file, "views.count=5", "cache.encoding=fp32")
    with_methods(experiment_file, "method: smooth, sources: [wise], neighbours: 5")
    graph, _ = prepared(experiment_file)
    age(storage)
    plans = [small, wide, graph]
    assert find_waste(storage, plans) == []
    names = {
        number: {pile.name for pile in find_waste(storage, [plan for plan in plans if plan is not plans[number]])}
        for number in range(3)
    }
    assert names[0] == {small.caches["wise"]["logits"].segment(0, 0, 3).prefix}
    assert names[1] == {wide.caches["wise"]["logits"].segment(0, 0, 5).prefix}
    (spec,) = graph.graphs_for(graph.trials).values()
    assert names[2] == {spec.embedding.segment(0, 0, 3).prefix, spec.key.removesuffix(".parquet")}


def test_of_a_needed_cache_the_segments_go_that_others_replace(experiment_file):
    few, storage = prepared(experiment_file)
    spec = few.caches["wise"]["logits"]
    source = spec.segment(0, 0, 3)
    for key in keys(storage, "caches"):
        storage.delete(key)
    prepared(experiment_file, "views.count=5")
    wide = spec.segment(0, 0, 5)
    make_like(storage, source)
    age(storage)
    assert [pile.name for pile in find_waste(storage, [few])] == [source.prefix]
    collect(storage, [few], delete=True)
    assert keys(storage, "caches") == set(storage.keys(wide.prefix))
    assert find_waste(storage, [few]) == []


def make_like(storage, segment):
    """Something where a segment would lie."""
    storage.write(shard_key(segment, 0), b"")


@pytest.mark.parametrize(
    ("finished", "object_age", "claim_age", "kept"),
    [
        (True, 2, None, False),
        (True, 0, None, False),
        (True, 2, 0.9, True),
        (True, 2, 1.1, False),
        (False, 0.9, None, True),
        (False, 1.1, None, False),
        (False, 1.1, 0.9, True),
    ],
)
def test_what_may_be_in_the_making_is_kept(experiment_file, finished, object_age, claim_age, kept):
    """Ages are in hours."""
    plan, storage = prepared(experiment_file)
    segment = with_labels(output="embedding").segment(0, 0, 4)
    make(storage, segment, finish=finished)
    age(storage, object_age * BUSY_SECONDS, segment.prefix)
    if claim_age is not None:
        storage.write(claim_key(segment, 1), b"somebody")
        os.utime(storage.path(claim_key(segment, 1)), (time.time() - claim_age * BUSY_SECONDS,) * 2)
    said = collect(storage, [plan], delete=True)
    assert bool(keys(storage, segment.prefix)) == kept
    assert ("kept: somebody may be making it right now" in said[0]) == kept
    assert (said[-1] == "gc      nothing to remove") == kept


def test_a_graph_that_is_being_made_is_kept(experiment_file):
    plan, storage = prepared(experiment_file)
    storage.write("graphs/0123.parquet", b"data")
    collect(storage, [plan], delete=True)
    assert keys(storage, "graphs") == {"graphs/0123.parquet"}
    storage.write("graphs/0123.json", b"record")
    collect(storage, [plan], delete=True)
    assert keys(storage, "graphs") == set()


def test_claims_on_trials_are_kept_as_long_as_somebody_renews_them(experiment_file):
    plan, storage = prepared(experiment_file)
    for run_key, hours in (("dead", 1.1), ("alive", 0.9)):
        storage.write(trial_claim(run_key), b"somebody")
        os.utime(storage.path(trial_claim(run_key)), (time.time() - hours * BUSY_SECONDS,) * 2)
    collect(storage, [plan], delete=True)
    assert keys(storage, "claims") == {trial_claim("alive")}


class StoppedError(Exception):
    """Stands for the death of the process."""


@pytest.mark.parametrize("survived", range(8))
def test_what_an_interrupted_removal_leaves_never_looks_whole(experiment_file, survived, monkeypatch):
    plan, storage = prepared(experiment_file)
    segment = with_labels(output="embedding").segment(0, 0, 4)
    make(storage, segment)
    age(storage)
    assert len(keys(storage, segment.prefix)) == 7
    left = iter(range(survived))
    delete = storage.delete

    def dying(key):
        if next(left, None) is None:
            raise StoppedError
        delete(key)

    monkeypatch.setattr(storage, "delete", dying)
    if survived < 7:
        with pytest.raises(StoppedError):
            collect(storage, [plan], delete=True)
    else:
        collect(storage, [plan], delete=True)
    there = keys(storage, segment.prefix)
    assert (manifest_key(segment) in there) == (survived == 0)
    for key in there:
        if key.endswith(".json") and survived:
            assert key.replace(".json", ".parquet") in there, "no record without its data"


def test_an_experiment_as_it_is_found_needs_what_the_stages_made(experiment_file):
    _, storage = prepared(experiment_file)
    age(storage)
    plan = found_plan(load_experiment(str(experiment_file)), storage)
    assert find_waste(storage, [plan]) == []
