"""Tune's own schedulers on trials that only exist on paper: who is compared with whom, who is stopped, and why."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.storage import FolderStorage
from pipeline.planning.space import Axis, parse_axes
from pipeline.sweeps.schedulers import make_scheduler, within
from pipeline.sweeps.search import search_id, tried
from pipeline.trials.populations import members
from pipeline.trials.results import stopped_trials
from tests.pipeline.sweeps.searches import LR, paper_plan, record, stop

BOTH = "[{method: scratch}, {method: sskt, learn_from: all}]"
GRID = "by: grid, axes: {training.lr: [0.1, 0.2, 0.3, 0.4, 0.5, 0.6]}"
ASHA = "{kind: asha, grace: 1, factor: 3}"


class PaperTrial:
    """What schedulers use of one of Tune's trials."""

    def __init__(self, planned):
        self.trial_id = planned.run_key
        self.config = {"planned": planned, "entry": planned.trial.entry, **planned.trial.point}
        self.status = "RUNNING"
        self.last_result = None
        self.experiment_tag = ""
        manager = SimpleNamespace(checkpoint_config=SimpleNamespace(num_to_keep=None))
        self.run_metadata = SimpleNamespace(checkpoint_manager=manager)

    def is_finished(self):
        return self.status == "TERMINATED"

    def set_config(self, config):
        self.config = config

    def set_experiment_tag(self, tag):
        self.experiment_tag = tag


class PaperController:
    """What schedulers use of Tune's controller."""

    search_alg = "anything"

    def __init__(self, trials):
        self.trials = trials

    def get_trials(self):
        return self.trials

    def pause_trial(self, trial, *, should_checkpoint):
        trial.status = "PAUSED"

    def _schedule_trial_save(self, trial, result):
        return f"checkpoint of {trial.trial_id}"


@pytest.fixture
def storage(tmp_path):
    return FolderStorage(str(tmp_path))


def started(scheduler, planned):
    """Trials that a scheduler knows, and the controller that runs them."""
    trials = [PaperTrial(one) for one in planned]
    controller = PaperController(trials)
    for trial in trials:
        scheduler.on_trial_add(controller, trial)
    return trials, controller


def report(scheduler, controller, trial, epoch, score):
    return scheduler.on_trial_result(controller, trial, {"epoch": epoch, "score": score})


def test_without_a_scheduler_tune_needs_none(storage):
    assert make_scheduler(paper_plan(GRID), storage) is None


def test_a_trial_behind_the_others_of_its_rung_is_stopped_and_it_is_recorded_why(storage):
    plan = paper_plan(GRID, scheduler=ASHA)
    scheduler = make_scheduler(plan, storage)
    trials, controller = started(scheduler, [one.planned for one in tried(plan, storage, 0)])
    scores = (70.0, 80.0, 60.0)
    assert [report(scheduler, controller, *told) for told in zip(trials, (1, 1, 1), scores, strict=False)] == [
        "CONTINUE",
        "CONTINUE",
        "STOP",
    ]
    (stopped,) = stopped_trials(storage, search_id(plan, 0)).values()
    assert (stopped.run_key, stopped.epoch, stopped.epochs, stopped.score) == (trials[2].trial_id, 1, 9, 60.0)
    bound = np.percentile([70.0, 80.0], 100 * 2 / 3)
    assert stopped.reason == f"epoch 1: 60.0 % is below {bound:.1f} %, the bound of its rung"
    assert stopped.by == "asha"


def oracle(reports, *, grace, factor, epochs):
    """Decisions by the rule itself: at its first report on a rung, or beyond it, a trial has to be in the top part."""
    rungs = [grace * factor**k for k in range(10) if grace * factor**k <= epochs][::-1]
    reached = {rung: {} for rung in rungs}
    decisions = []
    for trial, epoch, score in reports:
        rung = next((rung for rung in rungs if rung <= epoch), None)
        stops = False
        if rung is not None and trial not in reached[rung]:
            others = list(reached[rung].values())
            stops = bool(others) and score < np.percentile(others, 100 * (1 - 1 / factor))
            reached[rung][trial] = score
        decisions.append("STOP" if stops else "CONTINUE")
    return decisions


reports = st.lists(
    st.tuples(st.integers(0, 5), st.integers(1, 8), st.integers(0, 20)), max_size=25
)  # trial, epoch, score


@settings(deadline=None, max_examples=40)
@given(reports, st.sampled_from([(1, 3), (2, 2), (3, 4)]))
def test_halving_decides_as_the_rule_says(tmp_path_factory, told, rule):
    grace, factor = rule
    plan = paper_plan(GRID, scheduler=f"{{kind: asha, grace: {grace}, factor: {factor}}}")
    storage = FolderStorage(str(tmp_path_factory.mktemp("asha")))
    scheduler = make_scheduler(plan, storage)
    trials, controller = started(scheduler, [one.planned for one in tried(plan, storage, 0)])
    decisions = [report(scheduler, controller, trials[trial], epoch, float(score)) for trial, epoch, score in told]
    assert decisions == oracle(told, grace=grace, factor=factor, epochs=9)


def test_methods_are_never_compared_with_each_other(storage):
    plan = paper_plan(GRID, scheduler=ASHA, methods=BOTH)
    scheduler = make_scheduler(plan, storage)
    planned = [one.planned for entry in (0, 1) for one in tried(plan, storage, entry)[:2]]
    (good, better, poor, poorer), controller = started(scheduler, planned)
    assert report(scheduler, controller, good, 1, 80.0) == "CONTINUE"
    assert report(scheduler, controller, better, 1, 90.0) == "CONTINUE"
    assert report(scheduler, controller, poor, 1, 20.0) == "CONTINUE"
    assert report(scheduler, controller, poorer, 1, 10.0) == "STOP"
    assert stopped_trials(storage, search_id(plan, 0)) == {}
    assert list(stopped_trials(storage, search_id(plan, 1))) == [poorer.trial_id]


def test_a_trial_that_has_ended_by_itself_is_left_alone(storage):
    plan = paper_plan(GRID, scheduler=ASHA)
    scheduler = make_scheduler(plan, storage)
    (first, second, *_), controller = started(scheduler, [one.planned for one in tried(plan, storage, 0)])
    report(scheduler, controller, first, 1, 90.0)
    last = {"state": "failed", "score": None, "epoch": 0}
    assert scheduler.on_trial_result(controller, second, last) == "CONTINUE"
    scheduler.on_trial_complete(controller, second, last)
    scheduler.on_trial_remove(controller, first)


def test_after_a_restart_the_rungs_hold_what_earlier_trials_reached(storage):
    plan = paper_plan(GRID, scheduler=ASHA)
    one, two, three, four, five, _ = [one.planned for one in tried(plan, storage, 0)]
    record(storage, one, *range(80, 89))
    record(storage, two, *range(60, 69))
    stop(storage, plan, three, epoch=3, score=50.0)
    scheduler = make_scheduler(plan, storage)
    (fourth, fifth), controller = started(scheduler, [four, five])
    assert report(scheduler, controller, fourth, 1, 72.0) == "STOP"
    assert report(scheduler, controller, fifth, 3, 65.0) == "STOP"
    reasons = {key: stopped.reason for key, stopped in stopped_trials(storage, search_id(plan, 0)).items()}
    first, third = np.percentile([80, 60], 200 / 3), np.percentile([82, 62, 50], 200 / 3)
    assert reasons[four.run_key] == f"epoch 1: 72.0 % is below {first:.1f} %, the bound of its rung"
    assert reasons[five.run_key] == f"epoch 3: 65.0 % is below {third:.1f} %, the bound of its rung"


def test_who_waits_runs_by_group_and_then_by_epochs(storage):
    plan = paper_plan(GRID, scheduler=ASHA, methods=BOTH)
    scheduler = make_scheduler(plan, storage)
    planned = [one.planned for entry in (0, 1) for one in tried(plan, storage, entry)[:2]]
    trials, controller = started(scheduler, planned)
    assert scheduler.choose_trial_to_run(controller) is None
    for trial, status, epoch in zip(trials[1:], ("PAUSED", "PENDING", "PAUSED"), (4, 0, 2), strict=True):
        trial.status, trial.last_result = status, {"epoch": epoch}
    assert scheduler.choose_trial_to_run(controller) is trials[1]
    trials[0].status = "PENDING"
    assert scheduler.choose_trial_to_run(controller) is trials[0]
    trials[0].status = trials[1].status = "TERMINATED"
    assert scheduler.choose_trial_to_run(controller) is trials[2]


def population(storage, *, entries=BOTH, resample=0.0):
    plan = paper_plan(
        f"by: random, trials: 4, {LR}", scheduler=f"{{kind: pbt, resample: {resample}}}", methods=entries, seeds="[3]"
    )
    return plan, make_scheduler(plan, storage)


def test_a_member_behind_goes_on_from_one_of_its_own_population_under_its_own_name(storage):
    plan, scheduler = population(storage)
    trials, controller = started(scheduler, [*members(plan, 0, 3), *members(plan, 1, 3)])
    before = [trial.config["planned"] for trial in trials]
    for trial, score in zip(trials, (70.0, 80.0, 75.0, 10.0, 97.0, 99.0, 98.0, 96.0), strict=True):
        report(scheduler, controller, trial, 1, score)
    for behind, leader in ((trials[3], trials[1]), (trials[7], trials[5])):
        assert behind.status == "PAUSED"
        handed = behind.run_metadata.checkpoint_manager._latest_checkpoint_result.checkpoint
        assert handed == f"checkpoint of {leader.trial_id}"
        factor = behind.config["training.lr"] / leader.config["training.lr"]
        assert min(abs(factor - 0.8), abs(factor - 1.2)) < 0.01
    assert [trial.config["planned"] for trial in trials] == before


def test_a_population_waits_for_its_own_members_alone(storage):
    plan, scheduler = population(storage)
    trials, controller = started(scheduler, [*members(plan, 0, 3), *members(plan, 1, 3)])
    trials[7].status = "PENDING"
    assert report(scheduler, controller, trials[0], 1, 50.0) == "CONTINUE"
    trials[3].status = "PENDING"
    assert report(scheduler, controller, trials[1], 1, 50.0) == "PAUSE"


@pytest.mark.parametrize("resample", [0.0, 1.0])
def test_members_never_leave_their_axes(storage, resample):
    axes = """{training.lr: {low: 0.1, high: 0.11, log: true}, training.momentum: {low: 0.9, high: 0.95},
        training.weight_decay: [0.0, 0.5]}"""
    search = f"by: random, trials: 4, axes: {axes}"
    plan = paper_plan(search, scheduler=f"{{kind: pbt, resample: {resample}}}", seeds="[3]", epochs=40)
    scheduler = make_scheduler(plan, storage)
    trials, controller = started(scheduler, members(plan, 0, 3))
    moves = 0
    for epoch in range(1, 30):
        for score, trial in enumerate(trials):
            before = dict(trial.config)
            report(scheduler, controller, trial, epoch, float(score))
            trial.status = "RUNNING"
            moves += trial.config != before
            assert 0.1 <= trial.config["training.lr"] <= 0.11
            assert 0.9 <= trial.config["training.momentum"] <= 0.95
            assert trial.config["training.weight_decay"] in (0.0, 0.5)
    assert moves > 10


@given(st.floats(1e-6, 1e6), st.booleans())
def test_what_is_brought_back_is_a_number_of_the_axis(value, whole):
    (axis,) = parse_axes({"options.k": {"low": 2, "high": 9, "whole": whole}}, where="axes")
    found = within([axis], {"options.k": np.float64(value)})["options.k"]
    assert 2 <= found <= 9
    assert type(found) is (int if whole else float)
    assert abs(found - min(max(value, 2), 9)) <= (0.5 if whole else 0.01)
    assert within([Axis(path="options.k", values=(1, 2))], {"options.k": 7}) == {}
