"""All runners give the same metrics for the same trial; failures and restarts."""

import dataclasses
import signal

import pytest
import ray

from cluster.resources import Resources
from pipeline.planning.experiment import load_experiment
from pipeline.stages import Stages
from pipeline.sweeps import fusing
from pipeline.trials.results import read_failure, read_result
from pipeline.trials.runners import Demand, run_distributed, run_packed, run_plain, run_populations, run_train
from pipeline.trials.trials import gather_materials
from pipeline.trials.tuning import TRIES, Fixed
from sskt.errors import InputError
from tests.sskt.test_fused import nearly

pytestmark = pytest.mark.usefixtures("ray_session")
DEMAND = Demand(need=Resources(cpus=1))
TWO_AT_ONCE = Demand(need=Resources(cpus=1), at_once=2)
TWO_WORKERS = Demand(need=Resources(cpus=1), workers=2, bucket_mb=0.001)


def prepared(file, *changes):
    stages = Stages(load_experiment(str(file), changes=changes), lambda line: None)
    plan = stages.pack()
    stages.cache(plan)
    return plan, stages.storage, gather_materials(plan, stages.storage, plan.trials)


def alone(planned, storage, materials):
    """The result of a trial run in this process, which is then forgotten."""
    assert run_plain(planned, materials, DEMAND).state == "done"
    result = read_result(storage, planned.run_key)
    storage.delete(f"results/{planned.run_key}.json")
    return result


def by_tune(trials, materials, demand=TWO_AT_ONCE, run=run_packed):
    """How trials ended, by run key."""
    ends = []
    run(Fixed(trials), demand, ends.append, materials=materials)
    assert len(ends) == len(trials)
    return {ended.planned.run_key: ended for ended in ends}


def by_train(planned, storage, materials, demand):
    ended = run_train(planned, [ray.put(materials)], demand)
    return ended, read_result(storage, planned.run_key)


def forget(storage, plan):
    for planned in plan.trials:
        storage.delete(f"results/{planned.run_key}.json")


def test_plain_tune_and_train_measure_the_same(experiment_file):
    plan, storage, materials = prepared(experiment_file)
    plain = {planned.run_key: alone(planned, storage, materials) for planned in plan.trials}
    ends = by_tune(plan.trials, materials)
    for planned in plan.trials:
        tuned, ended = read_result(storage, planned.run_key), ends[planned.run_key]
        assert tuned["history"] == plain[planned.run_key]["history"]
        assert tuned["test"] == plain[planned.run_key]["test"]
        assert (ended.state, ended.epoch, ended.score) == ("done", 3, tuned["validation"]["accuracy"])
        assert (tuned["side_by_side"], plain[planned.run_key]["side_by_side"]) == (2, 1)
    forget(storage, plan)
    interrupts = signal.getsignal(signal.SIGINT)
    _, trained = by_train(plan.trials[2], storage, materials, DEMAND)
    assert signal.getsignal(signal.SIGINT) is interrupts, "later stages of the command have to stop at Ctrl-C"
    assert trained["history"] == plain[plan.trials[2].run_key]["history"]
    assert trained["test"] == plain[plan.trials[2].run_key]["test"]


def test_one_failed_trial_does_not_end_the_others(experiment_file):
    text = experiment_file.read_text().replace("seeds: [0, 1]", "seeds: [0]\ngrid: {training.lr: [1.0e+30, 0.05]}")
    experiment_file.write_text(text)
    plan, storage, materials = prepared(experiment_file)
    ends = by_tune(plan.trials, materials)
    for planned in plan.trials:
        if planned.trial.training.lr > 1:
            assert ends[planned.run_key].state == "failed"
            assert "no longer finite in epoch 1" in ends[planned.run_key].reason
            assert read_failure(storage, planned.run_key).reason == ends[planned.run_key].reason
            assert read_result(storage, planned.run_key) is None
        else:
            assert ends[planned.run_key].state == "done"
            assert read_result(storage, planned.run_key) is not None


@pytest.mark.slow
def test_trials_step_together_in_actors_and_end_each_by_itself(experiment_file):
    text = experiment_file.read_text().replace("seeds: [0, 1]", "seeds: [0, 1]\ngrid: {training.lr: [0.05, 1.0e+30]}")
    experiment_file.write_text(text)
    plan, storage, materials = prepared(experiment_file)
    assert fusing.paces_on_cluster(plan.trials[:2], materials, DEMAND)[1] > 0
    ends = by_tune(plan.trials, materials, dataclasses.replace(TWO_AT_ONCE, lanes=4))
    for planned in plan.trials:
        ended, result = ends[planned.run_key], read_result(storage, planned.run_key)
        if planned.trial.training.lr > 1:
            assert (ended.state, result) == ("failed", None)
            assert read_failure(storage, planned.run_key).reason == ended.reason
        else:
            assert (ended.state, ended.score) == ("done", result["validation"]["accuracy"])
            assert (result["fused"], result["side_by_side"]) == (2, 4)
            storage.delete(f"results/{planned.run_key}.json")
            nearly(result["history"], alone(planned, storage, materials)["history"], relative=1e-4)
    assert list(storage.keys("claims")) == []


@pytest.mark.parametrize("trial", [pytest.param(0, marks=pytest.mark.slow), 2])
def test_two_processes_learn_what_one_does(experiment_file, tmp_path, trial):
    """Without batch normalisation the mean of two half batches' gradients is the whole batch's: the figures agree."""
    text = experiment_file.read_text().replace("{width: 4}", f"{{lives: {tmp_path}}}")
    experiment_file.write_text(text.replace("architecture: small_cnn", "architecture: 'tests.fragile:mortal'"))
    plan, storage, materials = prepared(experiment_file, "resources.workers=2")
    planned = plan.trials[trial]
    single = alone(planned, storage, materials)
    _, together = by_train(planned, storage, materials, TWO_WORKERS)
    for one, two in zip(single["history"], together["history"], strict=True):
        assert two == pytest.approx(one, abs=1e-4)
    assert together["test"] == single["test"]
    assert (together["processes"], together["label_rows"]) == (2, single["label_rows"])


@pytest.mark.slow
def test_a_diverged_training_is_one_error_on_all_processes(experiment_file):
    plan, storage, materials = prepared(experiment_file, "training.lr=1e30")
    ended, result = by_train(plan.trials[2], storage, materials, TWO_WORKERS)
    assert (ended.state, result) == ("failed", None)
    assert "no longer finite in epoch 1" in ended.reason
    assert "no longer finite" in read_failure(storage, plan.trials[2].run_key).reason


@pytest.mark.parametrize(
    "runner", ["tune", *(pytest.param(name, marks=pytest.mark.slow) for name in ("train", "both"))]
)
def test_a_process_that_dies_is_replaced_and_goes_on_from_the_checkpoint(experiment_file, tmp_path, runner):
    lives = tmp_path / "lives"
    lives.mkdir()
    text = experiment_file.read_text().replace("{width: 4}", f"{{lives: {lives}}}")
    experiment_file.write_text(text.replace("architecture: small_cnn", "architecture: 'tests.fragile:mortal'"))
    plan, storage, materials = prepared(experiment_file)
    planned = plan.trials[2]
    whole = alone(planned, storage, materials)
    (lives / "life-0").touch()
    if runner == "tune":
        by_tune([planned], materials)
    elif runner == "both":
        by_tune([planned], materials, DEMAND, run=run_distributed)
    else:
        by_train(planned, storage, materials, DEMAND)
    assert list(lives.iterdir()) == []
    resumed = read_result(storage, planned.run_key)
    assert resumed["history"] == whole["history"]
    assert resumed["training_seconds"] > 0


def test_a_trial_whose_process_always_dies_is_reported_and_does_not_end_the_others(experiment_file, tmp_path):
    lives = tmp_path / "lives"
    lives.mkdir()
    for number in range(9):
        (lives / f"life-{number}").touch()
    text = experiment_file.read_text().replace("{width: 4}", f"{{lives: {lives}}}").replace("epochs: 3", "epochs: 9")
    experiment_file.write_text(text.replace("architecture: small_cnn", "architecture: 'tests.fragile:mortal'"))
    plan, _, materials = prepared(experiment_file)
    (ended,) = by_tune(plan.trials[:1], materials).values()
    assert len(list(lives.iterdir())) == 9 - TRIES
    assert (ended.state, ended.died) == ("failed", True)


def test_populations_ask_for_a_single_machine(monkeypatch):
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True}, {"Alive": False}, {"Alive": True}])
    with pytest.raises(InputError, match="'pbt' on a cluster of 2 machines; it has to be a single one"):
        run_populations(Fixed([]), DEMAND, print, materials=None, scheduler=None)
