"""Searches on a real Ray: trials that are stopped make room for others, and those behind go on from those ahead."""

import time

import pytest
import ray
from ray.util.placement_group import placement_group_table

from pipeline.planning.experiment import load_experiment
from pipeline.reports.report import report_experiment
from pipeline.stages import Stages
from pipeline.sweeps.search import chosen, recorded_points, search_id, table_trials, tried
from pipeline.sweeps.sweep import sweep
from pipeline.trials.populations import members
from pipeline.trials.results import read_result, stopped_trials
from tests.processes import finish, kill_when, start

pytestmark = pytest.mark.slow
OPTUNA = (
    "search={by: optuna, trials: 6, axes: {training.lr: {low: 0.001, high: 0.5, log: true}}}",
    "scheduler={kind: asha}",
)
POPULATIONS = (
    "search={by: random, trials: 3, axes: {training.lr: {low: 1.0e-9, high: 0.2, log: true}}}",
    "scheduler={kind: pbt, quantile: 0.4, resample: 0.0}",
)


def changed(*changes):
    return ("methods=[{method: scratch}]", "seeds=[0, 1]", "training.epochs=6", *changes)


def planned(file, *changes):
    stages = Stages(load_experiment(str(file), changes=changed(*changes)), lambda line: None)
    return stages.pack(), stages.storage


def swept(file, *changes):
    """The plan of a search of scratch that has been swept, and its storage."""
    plan, storage = planned(file, *changes)
    sweep(plan, storage, say=lambda line: None)
    return plan, storage


def swept_in_two(file, *changes, reached):
    """The same by two processes, of which the first is killed when a storage has something."""
    plan, storage = planned(file, *changes)
    command = ["sweep", str(file), *(word for change in changed(*changes) for word in ("--set", change))]
    kill_when(start(*command), lambda: any(storage.keys(reached)))
    code, said = finish(*command)
    assert code == 0, said
    return plan, storage


def nothing_left(plan, storage):
    """Whether another sweep finds everything done."""
    said = []
    outcome = sweep(plan, storage, say=said.append)
    return said == [] and outcome.done == 0 and outcome.found == len(table_trials(plan, storage))


def all_is_free(seconds):
    """Whether all CPUs are free before so many seconds have passed."""
    deadline = time.monotonic() + seconds
    while ray.available_resources().get("CPU") != ray.cluster_resources()["CPU"]:
        if time.monotonic() > deadline:
            return False
        time.sleep(0.2)
    return True


def test_a_search_by_optuna_that_is_killed_goes_on(experiment_file):
    plan, storage = swept_in_two(experiment_file, *OPTUNA, reached="results")
    assert len(recorded_points(storage, search_id(plan, 0))) == 6
    states = [one.state for one in tried(plan, storage, 0)]
    assert len(states) == 6
    assert set(states) <= {"done", "stopped"}
    assert nothing_left(plan, storage)


def test_populations_that_are_killed_go_on(experiment_file):
    plan, storage = swept_in_two(experiment_file, *POPULATIONS, "seeds=[0]", "training.epochs=4", reached="results")
    check_population(plan, storage, seed=0)
    assert nothing_left(plan, storage)


@pytest.mark.usefixtures("ray_session")
@pytest.mark.timeout(900)
@pytest.mark.parametrize(("runner", "behind"), [("packed", "1.0e-9, 2.0e-9, 3.0e-9, 4.0e-9"), ("train", "1.0e-9")])
def test_what_falls_behind_is_stopped_and_the_best_is_trained_with_all_seeds(experiment_file, runner, behind):
    before = len(placement_group_table())
    plan, storage = swept(
        experiment_file,
        f"resources.runner={runner}",
        f"search={{by: grid, axes: {{training.lr: [0.1, 0.05, {behind}]}}}}",
        "scheduler={kind: asha, factor: 2}",
    )
    trials = tried(plan, storage, 0)
    assert {one.state for one in trials} == {"done", "stopped"}
    places = len(placement_group_table()) - before
    assert places <= 2 * (len(trials) + 1), "Tune and Train ask for one each; one that was stopped for no other"
    stopped = stopped_trials(storage, search_id(plan, 0)).values()
    assert all(one.epoch < one.epochs == 6 for one in stopped)
    best = chosen(plan, storage, 0).planned
    assert best.trial.training.lr >= 0.05
    (row,) = report_experiment(plan, storage).rows
    assert (row.label, sorted(row.scores)) == (best.trial.label, [0, 1])
    assert all_is_free(seconds=20)
    assert nothing_left(plan, storage)


@pytest.mark.usefixtures("ray_session")
def test_members_behind_go_on_from_members_ahead_and_results_tell_from_whom(experiment_file):
    plan, storage = swept(experiment_file, *POPULATIONS)
    moves = [step for seed in (0, 1) for step in check_population(plan, storage, seed)]
    assert moves
    (row,) = report_experiment(plan, storage).rows
    assert (row.label, sorted(row.scores)) == ("scratch", [0, 1])
    assert nothing_left(plan, storage)


def check_population(plan, storage, seed):
    """Look at the lineage of every member; return the steps at which one went on from another."""
    population, moves, epochs = members(plan, 0, seed), [], plan.experiment.training.epochs
    starts = [member.trial.point for member in population]
    for member in population:
        result = read_result(storage, member.run_key)
        begun, *steps = result["lineage"]
        assert [metrics["epoch"] for metrics in result["history"]] == list(range(1, epochs + 1))
        assert (begun["epoch"], begun["from"]) == (0, None)
        assert begun["point"] in (starts if steps else [member.trial.point])
        taken = [step["epoch"] for step in steps]
        assert taken == sorted(taken) and all(1 <= epoch < epochs for epoch in taken)
        assert {step["from"] for step in steps} <= {one.run_key for one in population}
        assert all(1e-9 <= step["point"]["training.lr"] <= 0.2 for step in steps)
        moves += steps
    return moves
