"""Streamed trials from end to end, without Ray: by the plain runner, from damaged and slow storages, killed."""

import dataclasses
import os
import pickle
import shutil
import time

import numpy as np
import pytest
import torch

from cluster.near import FOLDER
from cluster.storage import FolderStorage
from pipeline.packing import pack as packing
from pipeline.planning import feeding
from pipeline.planning.experiment import load_experiment
from pipeline.stages import Stages
from pipeline.trials import streaming
from pipeline.trials.attempts import attempt
from pipeline.trials.results import read_failure, read_result
from pipeline.trials.streaming import StreamedImages
from pipeline.trials.trials import gather_materials, make_feed, network_key, run_trial
from sskt.errors import DamagedError, InputError, LeavingError
from sskt.export import import_bytes
from sskt.streamed import Shelf, StreamedFeed
from tests.object_store import at_first, proxy_of, use
from tests.pipeline.trials.test_trials import CPU, KilledError, prepared

STREAMED = ("resources.feed=streamed", "resources.runner=plain", "seeds=[0]")


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch, tmp_path):
    """Ten images a part, of which a window holds four; what a node keeps is the test's own."""
    monkeypatch.setattr(packing, "_PART_BYTES", 12 * 12 * 10)
    monkeypatch.setattr(Shelf.__init__, "__kwdefaults__", {"window": 4})
    monkeypatch.setattr("sskt.streamed.AHEAD", 2)
    monkeypatch.setenv(FOLDER, str(tmp_path / "node"))


@pytest.fixture
def streamed(experiment_file):
    """The plan, its storage, and what its trials train from: scratch, and sskt from a cache and the whole pool."""
    plan, storage = prepared(experiment_file, *STREAMED)
    return plan, storage, gather_materials(plan, storage, plan.trials)


def forget(storage, planned):
    for key in (f"results/{planned.run_key}.json", network_key(planned.run_key)):
        storage.delete(key)


def weights(storage, planned):
    exported = import_bytes(storage.read(network_key(planned.run_key)))
    return torch.cat([weight.flatten() for weight in exported.parameters()])


def test_what_travels_to_a_streamed_trial_holds_no_image_and_no_label_of_a_source(streamed):
    plan, _, materials = streamed
    assert isinstance(materials.images, StreamedImages)
    assert len(pickle.dumps(dataclasses.replace(materials, labels=None, splits=None))) < 60_000
    assert materials.labels.nbytes == 8 * plan.packed.rows
    assert isinstance(make_feed(plan.trials[1], materials, CPU), StreamedFeed)


def test_a_sweep_by_the_plain_runner_streams_and_a_second_one_finds_all_done(experiment_file):
    prepared(experiment_file, *STREAMED)
    lines = []
    stages = Stages(load_experiment(str(experiment_file), changes=STREAMED), lines.append)
    for done in (2, 0):
        plan = stages.pack()
        outcome = stages.sweep(plan)
        assert (outcome.done, outcome.failures) == (done, {})
    results = [read_result(stages.storage, one.run_key) for one in plan.trials]
    assert [result["spec"]["feed"]["part_rows"] for result in results] == [10, 10]
    assert results[1]["label_rows"] == 3 * 4 * 32
    assert all(result["test"]["accuracy"] > 40 for result in results)


def test_a_streamed_batch_is_what_a_resident_feed_has_of_the_same_samples(experiment_file, streamed):
    plan, storage, materials = streamed
    other = Stages(load_experiment(str(experiment_file), changes=["seeds=[0]"]), lambda line: None).pack()
    resident = make_feed(other.trials[1], gather_materials(other, storage, other.trials), CPU)
    feed = make_feed(plan.trials[1], materials, CPU)
    batch = feed.batch(2)
    assert torch.equal(batch.images, resident.gallery.show(batch.ids, views=batch.views))
    said = resident.outputs["wise"](batch.images, ids=batch.ids, views=batch.views)
    assert torch.equal(batch.outputs["wise"]["logits"], said["logits"])
    assert torch.equal(feed.set.labels, resident.set.labels)
    assert torch.equal(feed.set.splits, resident.set.splits)
    assert len(set((batch.ids // 10).tolist())) > 2


@pytest.mark.parametrize("steps", [5, 7])
def test_a_trial_that_dies_in_the_midst_of_an_epoch_goes_on_to_the_same_result(streamed, steps):
    plan, storage, materials = streamed
    planned, beats = plan.trials[1], iter(range(1000))
    whole = run_trial(planned, materials, CPU)
    expected = weights(storage, planned)
    forget(storage, planned)

    def die():
        if next(beats) == steps:
            raise KilledError

    with pytest.raises(KilledError):
        run_trial(planned, materials, dataclasses.replace(CPU, beat=die))
    resumed = run_trial(planned, materials, CPU)
    assert torch.equal(weights(storage, planned), expected)
    for name in ("history", "test", "label_rows", "by_class"):
        assert resumed[name] == whole[name]


def test_a_trial_that_leaves_its_node_in_the_midst_of_an_epoch_goes_on_to_the_same_result(streamed):
    plan, storage, materials = streamed
    planned, asked = plan.trials[1], iter(range(100))
    whole = run_trial(planned, materials, CPU)
    expected = weights(storage, planned)
    forget(storage, planned)
    with pytest.raises(LeavingError):
        run_trial(planned, materials, dataclasses.replace(CPU, leaving=lambda: next(asked) == 6))
    resumed = run_trial(planned, materials, CPU)
    assert torch.equal(weights(storage, planned), expected)
    assert resumed["history"] == whole["history"]


def test_a_damaged_part_fails_the_trial_by_its_name(streamed):
    plan, storage, materials = streamed
    key = f"{plan.packed.prefix}/{plan.packed.parts[1].name}"
    storage.write(key, storage.read(key)[:-1] + b"x")
    ended = attempt(plan.trials[0], materials, CPU)
    assert ended.state == "failed"
    assert "part-00001.parquet: sha256 of its" in ended.reason
    assert read_failure(storage, plan.trials[0].run_key).reason == ended.reason


def test_pixels_the_sources_did_not_see_stop_a_training_when_their_part_comes(streamed):
    plan, _, materials = streamed
    place = next(iter(materials.golden))
    sample, view = place.split("/")
    wrong = dataclasses.replace(materials, golden=materials.golden | {place: "0" * 16})
    feed = make_feed(plan.trials[1], wrong, CPU)
    with pytest.raises(DamagedError, match=f"view {view} of sample {sample} is not what the sources saw"):
        for step in range(40):
            feed.batch(step)


def test_a_storage_that_stalls_shows_as_waiting_in_the_result(streamed, monkeypatch):
    plan, storage, materials = streamed
    planned, quick = plan.trials[0], run_trial(plan.trials[0], materials, CPU)
    forget(storage, planned)
    read = FolderStorage.read

    def slowly(self, key):
        time.sleep(0.1 if "part-" in key else 0)
        return read(self, key)

    monkeypatch.setattr(FolderStorage, "read", slowly)
    slow = run_trial(planned, materials, CPU)
    assert slow["waited_seconds"] > quick["waited_seconds"] + 0.08
    assert slow["history"] == quick["history"], "what is trained is the same"


@pytest.mark.parametrize("kept_gb", [0, 1])
def test_from_a_bucket_it_trains_the_same_whatever_the_node_keeps_and_the_server_does(
    experiment_file, streamed, bucket_uri, object_store, monkeypatch, kept_gb
):
    plan, storage, materials = streamed
    expected = run_trial(plan.trials[1], materials, CPU)
    changes = (f"storage={bucket_uri}", f"resources.node_cache_gb={kept_gb}")
    with proxy_of(object_store.port) as proxy:
        use(proxy.endpoint, monkeypatch)
        there, bucket = prepared(experiment_file, *STREAMED, *changes)
        parts = gather_materials(there, bucket, there.trials)
        shutil.rmtree(os.environ[FOLDER], ignore_errors=True)
        proxy.requests.clear()
        proxy.answers.clear()
        proxy.rule = at_first("503", "half", concerned=lambda method, path: method == "GET" and "/part-" in path)
        result = run_trial(there.trials[1], parts, CPU)
        asked, answers = list(proxy.requests), list(proxy.answers)
    fetched = sum("/part-" in path and (method, status) == ("GET", 200) for method, path, status, _ in answers)
    fetched -= sum("/part-" in path and wrong == "half" for _, path, wrong in asked)
    parts_of_set = len(plan.packed.parts)
    assert fetched == parts_of_set if kept_gb else fetched > parts_of_set, "what a node keeps it fetches once"
    assert {wrong for *_, wrong in asked} == {None, "503", "half"}
    assert (result["history"], result["test"]) == (expected["history"], expected["test"])
    assert torch.equal(weights(bucket, there.trials[1]), weights(storage, plan.trials[1]))


def test_a_set_that_this_machine_cannot_hold_is_refused_before_it_is_read(experiment_file, monkeypatch):
    plan, storage = prepared(experiment_file, "seeds=[0]")
    monkeypatch.setattr(streaming, "image_bytes", lambda packed: 10**15)
    with pytest.raises(InputError, match=r"resources.feed is 'auto'.*they take \d+ GB.*set it to 'streamed'"):
        gather_materials(plan, storage, plan.trials)


def test_a_set_that_grows_too_large_for_memory_is_streamed_without_being_asked(experiment_file, monkeypatch):
    monkeypatch.setattr(feeding, "RESIDENT_GB", 1e-6)
    plan, storage = prepared(experiment_file, "seeds=[0]")
    result = run_trial(plan.trials[1], gather_materials(plan, storage, plan.trials), CPU)
    assert result["spec"]["feed"]["kind"] == "streamed"
    assert np.isfinite(result["history"][-1]["loss"])
