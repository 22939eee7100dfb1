"""Trials in this process: cached labels against a live source, resuming, what a result says."""

import pytest
import torch

from cluster.resources import Resources
from pipeline.canonical import digest
from pipeline.experiment import load_experiment
from pipeline.labels import finish_cache
from pipeline.results import read_result
from pipeline.runners import run_plain
from pipeline.shards import ShardJob, make_shard
from pipeline.stages import Stages
from pipeline.trials import Process, gather_materials, make_feed, make_method, network_key, run_trial
from sskt.errors import DamagedError
from sskt.export import import_bytes
from sskt.feeds import LiveOutputs

CPU = Process(device=torch.device("cpu"), threads=1)


def prepared(file, *changes):
    """A plan whose caches were made here, without Ray."""
    stages = Stages(load_experiment(str(file), changes=changes), lambda line: None)
    plan = stages.pack()
    for name, specs in plan.caches_for(plan.trials).items():
        job = ShardJob(
            storage_uri=stages.storage.uri, specs=specs, source_name=name, source=plan.experiment.sources[name],
            recipe=plan.recipe, batch_size=64, threads=1, device="cpu", packed=plan.packed,
        )  # fmt: skip
        for spec in specs.values():
            shards = [make_shard(plan.sources[name], job, shard=s, outputs=(spec.output,)) for s in range(spec.shards)]
            finish_cache(stages.storage, spec, [records[spec.output] for records in shards])
    return plan, stages.storage


@pytest.mark.parametrize(("encoding", "bound"), [("fp16", 1e-3), ("fp32", 1e-6)])
def test_the_first_step_from_the_cache_is_that_of_a_live_source(experiment_file, encoding, bound):
    plan, storage = prepared(experiment_file, f"cache.encoding={encoding}")
    planned = plan.trials[2]
    materials = gather_materials(plan, storage, [planned])
    losses = []
    for live in (False, True):
        feed = make_feed(planned, materials, CPU)
        if live:
            feed.outputs = {"wise": LiveOutputs(plan.sources["wise"], ("logits",))}
        method = make_method(planned, materials, feed=feed, process=CPU)
        method.train(mode=True)
        batch = feed.batch(0)
        losses.append(method.step(batch)["loss"].item())
    assert plan.sources["wise"].passes == len(batch.ids) + plan.packed.pool * 3
    assert abs(losses[0] - losses[1]) < bound


def test_a_result_says_what_was_trained_and_how(experiment_file):
    plan, storage = prepared(experiment_file)
    planned = plan.trials[2]
    materials = gather_materials(plan, storage, [planned])
    result = run_plain(planned, materials, need=Resources(1))
    assert read_result(storage, planned.run_key) == result
    assert [metrics["epoch"] for metrics in result["history"]] == [1, 2, 3]
    assert result["spec"]["trial"]["training"]["labels_per_class"] == 8
    assert result["spec"]["trial"]["options"]["learn_from"] == "all"
    assert result["spec"]["dataset"] == plan.packed.fingerprint
    assert result["spec"]["sources"] == [["wise", plan.caches["wise"]["logits"].id]]
    assert digest(result["spec"]) == planned.run_key
    assert result["label_rows"] == 3 * 4 * 32
    assert set(result["versions"]) == {"torch", "python", "device", "commit"}
    assert result["test_accuracy"] > 40
    assert list(storage.keys("checkpoints")) == []
    exported = import_bytes(storage.read(network_key(planned.run_key)))
    assert exported(materials_images(materials)).logits.shape == (4, 3)


def materials_images(materials):
    return torch.from_numpy(materials.images[:4].copy())


def test_a_finished_trial_is_found(experiment_file):
    plan, storage = prepared(experiment_file)
    materials = gather_materials(plan, storage, plan.trials)
    first = run_plain(plan.trials[0], materials, need=Resources(1))
    reports = []
    process = Process(device=torch.device("cpu"), threads=1, report=reports.append)
    assert run_trial(plan.trials[0], materials, process) == first
    assert reports == []


class KilledError(Exception):
    """Stands for the death of the process."""


def test_a_killed_trial_goes_on_from_its_checkpoint_to_the_same_result(experiment_file, tmp_path):
    plan, storage = prepared(experiment_file)
    planned = plan.trials[2]
    materials = gather_materials(plan, storage, [planned])
    epochs = []

    def die_in_epoch_two(metrics):
        epochs.append(metrics["epoch"])
        if metrics["epoch"] == 2:
            raise KilledError

    with pytest.raises(KilledError):
        run_trial(planned, materials, Process(device=torch.device("cpu"), threads=1, report=die_in_epoch_two))
    assert list(storage.keys("checkpoints")) != []
    process = Process(device=torch.device("cpu"), threads=1, report=lambda metrics: epochs.append(metrics["epoch"]))
    resumed = run_trial(planned, materials, process)
    assert epochs == [1, 2, 3]
    storage.delete(f"results/{planned.run_key}.json")
    whole = run_plain(planned, materials, need=Resources(1))
    assert resumed["history"] == whole["history"]
    assert resumed["test_accuracy"] == whole["test_accuracy"]


def test_materials_are_not_gathered_from_a_cache_that_is_not_whole(experiment_file):
    stages = Stages(load_experiment(str(experiment_file)), lambda line: None)
    plan = stages.pack()
    with pytest.raises(DamagedError, match="of source 'wise' is not whole; run `cache`"):
        gather_materials(plan, stages.storage, plan.trials)
    assert gather_materials(plan, stages.storage, plan.trials[:2]).payload == {}
