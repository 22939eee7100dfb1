"""All runners give the same metrics for the same trial; failures and restarts."""

import signal

import pytest

from cluster.resources import Resources
from pipeline.experiment import load_experiment
from pipeline.results import read_failure, read_result
from pipeline.runners import run_plain, run_train, run_tune
from pipeline.stages import Stages
from pipeline.trials import gather_materials
from sskt.errors import SsktError

pytestmark = pytest.mark.usefixtures("ray_session")
NEED = Resources(cpus=1)
TIMES = ("seconds", "training_seconds")


def prepared(file, *changes):
    stages = Stages(load_experiment(str(file), changes=changes), lambda line: None)
    plan = stages.pack()
    stages.cache(plan)
    return plan, stages.storage, gather_materials(plan, stages.storage, plan.trials)


def forget(storage, plan):
    for planned in plan.trials:
        storage.delete(f"results/{planned.run_key}.json")


def without_times(result):
    return {name: value for name, value in result.items() if name not in TIMES}


def test_plain_tune_and_train_measure_the_same(experiment_file):
    plan, storage, materials = prepared(experiment_file)
    plain = {planned.run_key: run_plain(planned, materials, need=NEED) for planned in plan.trials}
    forget(storage, plan)
    finished = []
    run_tune(plan.trials, materials, need=NEED, at_once=2, tell=finished.append)
    assert {(end.run_key, end.failure) for end in finished} == {(planned.run_key, None) for planned in plan.trials}
    for planned in plan.trials:
        tuned = read_result(storage, planned.run_key)
        assert tuned["history"] == plain[planned.run_key]["history"]
        assert tuned["test"] == plain[planned.run_key]["test"]
    forget(storage, plan)
    interrupts = signal.getsignal(signal.SIGINT)
    trained = run_train(plan.trials[2], materials, need=NEED, workers=1)
    assert signal.getsignal(signal.SIGINT) is interrupts, "later stages of the command have to stop at Ctrl-C"
    assert trained["history"] == plain[plan.trials[2].run_key]["history"]
    assert trained["test"] == plain[plan.trials[2].run_key]["test"]


def test_one_failed_trial_does_not_end_the_others(experiment_file):
    text = experiment_file.read_text().replace("seeds: [0, 1]", "seeds: [0]\ngrid: {training.lr: [1.0e+30, 0.05]}")
    experiment_file.write_text(text)
    plan, storage, materials = prepared(experiment_file)
    finished = []
    run_tune(plan.trials, materials, need=NEED, at_once=2, tell=finished.append)
    failures = {end.run_key: end.failure for end in finished}
    for planned in plan.trials:
        if planned.trial.training.lr > 1:
            assert "no longer finite in epoch 1" in failures[planned.run_key]
            assert read_failure(storage, planned.run_key) == failures[planned.run_key]
            assert read_result(storage, planned.run_key) is None
        else:
            assert failures[planned.run_key] is None
            assert read_result(storage, planned.run_key) is not None


def test_two_processes_train_one_target(experiment_file):
    plan, storage, materials = prepared(experiment_file, "resources.workers=2")
    result = run_train(plan.trials[2], materials, need=NEED, workers=2)
    assert result["processes"] == 2
    assert [metrics["epoch"] for metrics in result["history"]] == [1, 2, 3]
    assert result["history"][-1]["primary"] < result["history"][0]["primary"]
    assert result["label_rows"] == 3 * 4 * 32
    assert read_result(storage, plan.trials[2].run_key) is not None


@pytest.mark.parametrize("trial", [0, 2])
def test_two_processes_learn_what_one_does(experiment_file, tmp_path, trial):
    """Without batch normalisation the mean of two half batches' gradients is the whole batch's: the figures agree."""
    text = experiment_file.read_text().replace("{width: 4}", f"{{lives: {tmp_path}}}")
    experiment_file.write_text(text.replace("architecture: small_cnn", "architecture: 'tests.fragile:mortal'"))
    plan, storage, materials = prepared(experiment_file, "resources.workers=2")
    planned = plan.trials[trial]
    alone = run_plain(planned, materials, need=NEED)
    forget(storage, plan)
    together = run_train(planned, materials, need=NEED, workers=2)
    for one, two in zip(alone["history"], together["history"], strict=True):
        assert two == pytest.approx(one, abs=1e-4)
    assert together["test"] == alone["test"]


def test_a_diverged_training_is_one_error_on_all_processes(experiment_file):
    plan, storage, materials = prepared(experiment_file, "training.lr=1e30")
    with pytest.raises(SsktError, match="no longer finite in epoch 1"):
        run_train(plan.trials[2], materials, need=NEED, workers=2)
    assert "no longer finite" in read_failure(storage, plan.trials[2].run_key)


@pytest.mark.parametrize("runner", ["tune", "train"])
def test_a_process_that_dies_is_replaced_and_goes_on_from_the_checkpoint(experiment_file, tmp_path, runner):
    lives = tmp_path / "lives"
    lives.mkdir()
    text = experiment_file.read_text().replace("{width: 4}", f"{{lives: {lives}}}")
    experiment_file.write_text(text.replace("architecture: small_cnn", "architecture: 'tests.fragile:mortal'"))
    plan, storage, materials = prepared(experiment_file)
    planned = plan.trials[2]
    whole = run_plain(planned, materials, need=NEED)
    forget(storage, plan)
    (lives / "life-0").touch()
    if runner == "tune":
        run_tune([planned], materials, need=NEED, at_once=1, tell=lambda finished: None)
    else:
        run_train(planned, materials, need=NEED, workers=1)
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
    plan, storage, materials = prepared(experiment_file)
    finished = []
    run_tune(plan.trials[:1], materials, need=NEED, at_once=1, tell=finished.append)
    assert len(list(lives.iterdir())) == 9 - 2
    assert finished[0].failure
    assert "after 2 tries" in read_failure(storage, plan.trials[0].run_key)
