"""Verifying caches and graphs: the right ones pass, every kind of damage is named, put aside, and nothing else."""

import dataclasses
import hashlib
import re

import numpy as np
import pytest
import torch

from pipeline.caches.claims import claim_key
from pipeline.caches.graphs import COLUMNS, load_graph
from pipeline.caches.labels import (
    Made,
    commit_shard,
    finish_segment,
    manifest_key,
    read_record,
    read_shard,
    record_key,
    shard_key,
)
from pipeline.canonical import seal, unseal
from pipeline.care.verify import verify
from pipeline.columns import write_columns
from sskt.errors import InputError
from tests.pipeline.trials.test_trials import prepared, with_methods


@pytest.fixture
def sound(experiment_file):
    plan, storage = prepared(experiment_file)
    spec = plan.caches["wise"]["logits"]
    return plan, storage, spec, spec.segment(0, 0, spec.view_count)


def verdict_of(plan, storage, fraction=0.001):
    (verdict,) = verify(plan, storage, fraction=fraction)
    return verdict


def everything(storage):
    return {key: storage.read(key) for key in storage.keys("")}


def flip(storage, key, at=-30):
    data = bytearray(storage.read(key))
    data[at] ^= 4
    storage.write(key, bytes(data))


@pytest.mark.parametrize("encoding", ["fp32", "fp16", "u8"])
def test_what_is_right_is_said_to_be_and_stays_as_it_is(experiment_file, encoding):
    plan, storage = prepared(experiment_file, f"cache.encoding={encoding}")
    before, passes = everything(storage), plan.sources["wise"].passes
    verdict = verdict_of(plan, storage)
    assert verdict.problems == []
    assert re.search(
        r"^verify  wise logits: sound; 108 of 108 samples x 3 views; 16 samples run again: off by \S+, \S+ beyond "
        rf"rounding, allowed \S+ \[{plan.caches['wise']['logits'].id}\]$",
        str(verdict),
    )
    assert plan.sources["wise"].passes == passes + 2 * 16 * 3
    assert everything(storage) == before
    assert "run again" not in str(verdict_of(plan, storage, 0))
    assert plan.sources["wise"].passes == passes + 2 * 16 * 3


def test_caches_of_mixed_images_are_verified_too(experiment_file):
    plan, storage = prepared(experiment_file, "grid={training.mix: [mixup, cutmix]}")
    before = everything(storage)
    assert [verdict.name for verdict in verify(plan, storage, fraction=0.001)] == [
        "wise logits", "wise mixup logits", "wise cutmix logits",
    ]  # fmt: skip
    verdicts = list(verify(plan, storage, fraction=0.001))
    assert [(verdict.problems, verdict.reruns[0].samples) for verdict in verdicts] == [([], 16)] * 3
    assert everything(storage) == before
    one, other = (plan.caches["wise"][f"{kind} logits"].segment(0, 0, 3) for kind in ("mixup", "cutmix"))
    for shard in range(one.shards):  # what is said of other mixtures, under sound checksums
        payload = read_shard(storage, other, read_record(storage, other, shard))
        golden = read_record(storage, one, shard).golden
        commit_shard(storage, one, shard=shard, made=Made(payload=payload, golden=golden, passes=0, seconds=0))
    finish_segment(storage, one, [read_record(storage, one, shard) for shard in range(one.shards)])
    bad = [verdict.name for verdict in verify(plan, storage, fraction=0.1) if verdict.problems]
    assert bad == ["wise mixup logits"]


def sealed_again(storage, key, change):
    """Change an object that has a checksum, and give it the checksum of what it is now."""
    value = unseal(storage.read(key))
    change(value)
    storage.write(key, seal(value))


def spoil_pixels(record):
    record["golden"] = dict.fromkeys(record["golden"], "0" * 16)


DAMAGES = {
    "a flipped bit": (lambda storage, of: flip(storage, shard_key(of, 1)), "shard 1: its checksum differs"),
    "no data": (lambda storage, of: storage.delete(shard_key(of, 1)), "shard 1: the file is missing"),
    "another shard's data": (
        lambda storage, of: storage.write(shard_key(of, 1), storage.read(shard_key(of, 0))),
        "shard 1: its checksum differs",
    ),
    "no record": (lambda storage, of: storage.delete(record_key(of, 1)), "shard 1: its record is missing or damaged"),
    "a damaged record": (
        lambda storage, of: flip(storage, record_key(of, 1)),
        "shard 1: its record is missing or damaged",
    ),
    "another shard's record": (
        lambda storage, of: storage.write(record_key(of, 1), storage.read(record_key(of, 0))),
        "shard 1: its record is missing or damaged",
    ),
    "a record of other views": (
        lambda storage, of: sealed_again(storage, record_key(of, 1), lambda raw: raw["views"].reverse()),
        "its views are not those",
    ),
    "a record of no pixels": (
        lambda storage, of: sealed_again(storage, record_key(of, 1), lambda raw: raw["golden"].clear()),
        "remembers the pixels of no view",
    ),
    "other pixels": (
        lambda storage, of: sealed_again(storage, record_key(of, 1), spoil_pixels),
        "is not what the sources saw",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_bad_shard_is_named_and_put_aside_and_nothing_else_changes(sound, damage):
    plan, storage, _, segment = sound
    hurt, says = DAMAGES[damage]
    hurt(storage, segment)
    before, mine = everything(storage), {shard_key(segment, 1), record_key(segment, 1)}
    verdict = verdict_of(plan, storage)
    assert says in verdict.problems[0]
    assert verdict.aside == 1
    assert "1 shards put aside, `cache` makes them again; 64 of 108 samples x 3 views" in str(verdict)
    assert "\n" not in str(verdict)
    after = everything(storage)
    assert not mine & set(after)
    data = before.get(shard_key(segment, 1))
    aside = {} if data is None else {f"quarantine/{shard_key(segment, 1)}": data}
    assert after == {key: data for key, data in before.items() if key not in mine} | aside


def remake(storage, segment, shard, payload):
    """A shard all of whose checksums are right, whatever it holds."""
    record = read_record(storage, segment, shard)
    made = Made(payload=payload, golden=record.golden, passes=record.passes, seconds=record.seconds)
    records = [read_record(storage, segment, other) for other in range(segment.shards)]
    records[shard] = commit_shard(storage, segment, shard=shard, made=made)
    finish_segment(storage, segment, records)


def test_only_running_the_source_again_finds_labels_that_were_wrong_from_the_start(sound):
    plan, storage, spec, segment = sound
    width, rows = spec.labels.width, len(segment.id_range(1))
    values = torch.randn(rows * 3, width, generator=torch.Generator().manual_seed(0))
    remake(storage, segment, 1, spec.labels.encoder.encode(values).numpy().reshape(rows, 3, -1))
    assert verdict_of(plan, storage, 0).problems == []
    verdict = verdict_of(plan, storage)
    (problem,) = verdict.problems
    assert re.search(r"shard 1: \d+ samples, the first \d+, are not what the source says", problem)
    assert f"quarantine/{shard_key(segment, 1)}" in everything(storage)
    assert storage.read(record_key(segment, 0)) is not None


@pytest.mark.parametrize(
    ("hurt", "says"),
    [
        (lambda storage, key: flip(storage, key), "manifest.json is damaged"),
        (lambda storage, key: storage.delete(key), "its manifest is missing"),
        (lambda storage, key: sealed_again(storage, key, lambda raw: raw["shards"].pop()), "differs from the records"),
        (
            lambda storage, key: sealed_again(storage, key, lambda raw: raw["shards"][0].update(crc32=1)),
            "differs from the records",
        ),
        (
            lambda storage, key: sealed_again(storage, key, lambda raw: raw["identity"].update(pool="other")),
            "differs from the experiment in pool",
        ),
    ],
)
def test_a_bad_manifest_is_named_and_no_shard_is_put_aside(sound, hurt, says):
    plan, storage, _, segment = sound
    hurt(storage, manifest_key(segment))
    before = everything(storage)
    verdict = verdict_of(plan, storage)
    assert says in verdict.problems[0]
    assert (len(verdict.problems), verdict.aside) == (1, 0)
    assert everything(storage) == before


def test_what_was_never_made_and_what_is_being_made_is_missing_and_left_alone(sound):
    plan, storage, _, segment = sound
    storage.delete(record_key(segment, 1))
    storage.delete(manifest_key(segment))
    storage.write(claim_key(segment, 1), b"somebody")
    before = everything(storage)
    verdict = verdict_of(plan, storage)
    assert verdict.problems == ["BAD: not whole, 1 of 2 shards are missing; run `cache`"]
    assert everything(storage) == before
    for key in list(storage.keys("caches")):
        storage.delete(key)
    assert "BAD: not whole, 2 of 2 shards are missing; run `cache`; 0 of 108 samples" in str(verdict_of(plan, storage))


@pytest.fixture
def with_graph(experiment_file):
    with_methods(experiment_file, "method: smooth, sources: [wise], neighbours: 5")
    plan, storage = prepared(experiment_file)
    (graph,) = plan.graphs_for(plan.trials).values()
    return plan, storage, graph


def test_graphs_are_verified_too(with_graph):
    plan, storage, graph = with_graph
    cache, found = verify(plan, storage, fraction=0.001)
    assert str(cache).startswith("verify  wise embedding: sound")
    assert str(found) == f"verify  graph of wise, 5 neighbours: sound [{graph.id}]"
    flip(storage, graph.key, 600)
    *_, found = verify(plan, storage, fraction=0)
    assert found.problems == ["BAD: missing or damaged; `cache` makes it again"]


@pytest.mark.parametrize("change", ["twice", "itself", "outside", "no number"])
def test_a_graph_that_is_wrong_in_itself_is_put_aside(with_graph, change):
    plan, storage, graph = with_graph
    arrays = {name: array.copy() for name, array in load_graph(storage, graph).items()}
    if change == "no number":
        arrays["similarity"][3, 1] = np.nan
    else:
        arrays["ids"][3, 1] = {"twice": arrays["ids"][3, 0], "itself": 3, "outside": 108}[change]
    statement = b'{"graph":"' + graph.id.encode() + b'"}'
    data = write_columns({name: arrays[name].astype(kind) for name, kind in COLUMNS.items()}, statement=statement)
    storage.write(graph.key, data)
    storage.write(graph.record_key, seal({"id": graph.id, "sha256": hashlib.sha256(data).hexdigest()}))
    assert load_graph(storage, graph) is not None
    *_, found = verify(plan, storage, fraction=0)
    assert "not different samples" in found.problems[0]
    assert load_graph(storage, graph) is None
    assert storage.read(f"quarantine/{graph.key}") == data


def test_an_experiment_without_caches_has_nothing_to_verify(experiment_file):
    plan, storage = prepared(with_methods(experiment_file, "method: scratch"))
    assert list(verify(plan, storage, fraction=0.001)) == []


@pytest.mark.parametrize("fraction", [-0.1, 1.5, float("nan")])
def test_a_fraction_that_is_none_is_refused(sound, fraction):
    with pytest.raises(InputError, match=r"--rerun is .*; it has to be between 0 and 1"):
        verdict_of(*sound[:2], fraction)


@pytest.mark.skipif(torch.cuda.is_available(), reason="asks for a machine without a GPU")
def test_what_a_gpu_said_is_not_compared_with_what_a_cpu_says(sound):
    plan, storage, *_ = sound
    resources = dataclasses.replace(plan.experiment.resources, gpus_per_source_worker=1)
    other = dataclasses.replace(plan, experiment=dataclasses.replace(plan.experiment, resources=resources))
    with pytest.raises(InputError, match="--rerun: the caches come from a GPU"):
        list(verify(other, storage, fraction=0.001))
    assert verdict_of(other, storage, 0).problems == []
