"""What is trained next: in turn over the entries, each once, and by Optuna from what is known."""

import itertools

import pytest

from cluster.storage import FolderStorage
from pipeline.sweeps.search import record_point, recorded_points, search_id, tried
from pipeline.sweeps.suggestions import population_supply, search_supply
from pipeline.trials.attempts import Ended
from pipeline.trials.checkpoints import Checkpoints
from pipeline.trials.populations import members
from pipeline.trials.results import write_failure
from tests.pipeline.sweeps.searches import LR, paper_plan, record, stop

PAIR = "axes: {training.lr: {low: 0.001, high: 1.0, log: true}, training.momentum: {low: 0.0, high: 0.99}}"
BOTH = "[{method: scratch}, {method: sskt, learn_from: all}]"


@pytest.fixture
def storage(tmp_path):
    return FolderStorage(str(tmp_path))


def bowl(planned):
    """Highest, 100, at momentum 0.6."""
    return 100 - 100 * (planned.trial.training.momentum - 0.6) ** 2


def run(plan, storage, supply, score=bowl, most=None):
    """Train what a supply hands out, which here takes no time; return it."""
    ran = []
    while (most is None or len(ran) < most) and (planned := supply.next()) is not None:
        record(storage, planned, score(planned))
        supply.learn(Ended(planned=planned, state="done", score=score(planned)))
        ran.append(planned)
    return ran


def handed(supply):
    found = []
    while supply.left:
        found.append(supply.next())
    return found


@pytest.mark.parametrize("by", ["random", "optuna"])
def test_entries_take_turns_and_get_the_same_number(storage, by):
    plan = paper_plan(f"by: {by}, trials: 3, {LR}", methods=BOTH)
    supply = search_supply(plan, storage)
    assert supply.left == 6
    assert [one.trial.entry for one in handed(supply)] == [0, 1, 0, 1, 0, 1]
    assert supply.next() is None


def test_what_ended_is_not_trained_again_but_what_failed_is(storage):
    plan = paper_plan("by: grid, axes: {training.lr: [0.1, 0.2, 0.3, 0.4]}", methods=BOTH)
    done, stopped, failed, _ = (one.planned for one in tried(plan, storage, 0))
    record(storage, done, 80.0)
    stop(storage, plan, stopped, epoch=3, score=61.5)
    write_failure(storage, failed.run_key, "no longer finite")
    left = handed(search_supply(plan, storage))
    assert [one.trial.training.lr for one in left if one.trial.entry == 0] == [0.3, 0.4]
    assert len(left) == 6


def test_optuna_finds_the_top_of_a_bowl(storage):
    plan = paper_plan(f"by: optuna, trials: 30, {PAIR}")
    ran = run(plan, storage, search_supply(plan, storage))
    assert len(ran) == 30
    assert max(map(bowl, ran)) > 99.5
    # By chance a half of them would be nearer than 0.25 to the top.
    assert sum(abs(one.trial.training.momentum - 0.6) < 0.25 for one in ran[15:]) >= 12


def test_points_are_recorded_before_they_are_trained(storage):
    plan = paper_plan(f"by: optuna, trials: 3, {PAIR}")
    supply = search_supply(plan, storage)
    for number in range(3):
        assert recorded_points(storage, search_id(plan, 0))[number:] == []
        assert supply.next().trial.point == recorded_points(storage, search_id(plan, 0))[number]


def test_a_search_that_was_cut_short_goes_on_as_if_it_had_not_been(tmp_path):
    whole, parts = (FolderStorage(str(tmp_path / name)) for name in ("whole", "parts"))
    plan = paper_plan(f"by: optuna, trials: 20, {PAIR}")
    expected = run(plan, whole, search_supply(plan, whole))
    ran = run(plan, parts, search_supply(plan, parts), most=4)
    ran += run(plan, parts, search_supply(plan, parts), most=9)
    ran += run(plan, parts, search_supply(plan, parts))
    assert [one.trial.point for one in ran] == [one.trial.point for one in expected]
    assert len({one.run_key for one in ran}) == 20


def test_what_earlier_trials_scored_matters(tmp_path):
    """The same points with other scores lead elsewhere."""
    plan = paper_plan(f"by: optuna, trials: 24, {PAIR}")
    firsts = []
    for name, score in (("up", bowl), ("down", lambda planned: -bowl(planned))):
        storage = FolderStorage(str(tmp_path / name))
        points = [one.trial.point for one in run(plan, storage, search_supply(plan, storage), score, most=20)]
        firsts.append((points[:10], search_supply(plan, storage).next().trial.training.momentum))
    (points, up), (same, down) = firsts
    assert points == same  # the first ten are drawn, whatever the scores
    assert abs(up - 0.6) < abs(down - 0.6)


def test_trials_may_be_raised_and_lowered(storage):
    few, many = (paper_plan(f"by: optuna, trials: {trials}, {PAIR}") for trials in (4, 6))
    assert len(run(few, storage, search_supply(few, storage))) == 4
    assert len(run(many, storage, search_supply(many, storage))) == 2
    assert search_supply(few, storage).left == 0


def test_points_that_were_handed_out_but_never_ended_come_first(storage):
    plan = paper_plan(f"by: optuna, trials: 5, {PAIR}")
    before = search_supply(plan, storage).next()
    supply = search_supply(plan, storage)
    again = [supply.next() for _ in range(2)]
    assert again[0].run_key == before.run_key != again[1].run_key
    assert len(recorded_points(storage, search_id(plan, 0))) == 2


def test_a_point_that_another_run_recorded_first_is_taken_over(storage):
    plan = paper_plan(f"by: optuna, trials: 3, {PAIR}")
    ours = search_supply(plan, storage)
    theirs = {"training.lr": 0.5, "training.momentum": 0.125}
    record_point(storage, search_id(plan, 0), 0, theirs)
    planned = ours.next()
    assert planned.trial.point == theirs
    ours.learn(Ended(planned=planned, state="done", score=50.0))
    assert ours.next().trial.point != theirs


@pytest.mark.parametrize("ends", [True, False])
def test_a_point_that_is_proposed_twice_is_trained_once(storage, ends):
    plan = paper_plan("by: optuna, trials: 12, axes: {training.lr: [0.1, 0.2], training.momentum: [0.5]}")
    supply, ran = search_supply(plan, storage), []
    while (planned := supply.next()) is not None:
        ran.append(planned.run_key)
        if ends:
            supply.learn(Ended(planned=planned, state="done", score=50.0))
    assert len(ran) == len(set(ran)) == 2
    assert len(recorded_points(storage, search_id(plan, 0))) == 12
    assert supply.left == 0


def test_conditions_lists_and_whole_numbers_survive_optuna(storage):
    methods = """[{method: sskt, learn_from: all, search: {
        training.schedule: [constant, steps],
        training.milestones: {values: [[2], [2, 4]], when: {training.schedule: steps}},
        training.batch_size: {low: 16, high: 64, whole: true, log: true}}}]"""
    plan = paper_plan("by: optuna, trials: 20", methods=methods)
    points = [one.trial.point for one in run(plan, storage, search_supply(plan, storage), lambda planned: 50.0)]
    assert {tuple(point.get("training.milestones", ())) for point in points} == {(), (2,), (2, 4)}
    assert all(("training.milestones" in point) == (point["training.schedule"] == "steps") for point in points)
    assert {type(point["training.batch_size"]) for point in points} == {int}
    assert search_supply(plan, storage).left == 0  # and are read back


def test_failed_and_stopped_trials_are_told_as_such_now_and_after_a_restart(storage):
    plan = paper_plan(f"by: optuna, trials: 3, {PAIR}")
    supply = search_supply(plan, storage)
    endings = {"done": 90.0, "stopped": 40.0, "failed": None}
    for state, score in endings.items():
        planned = supply.next()
        supply.learn(Ended(planned=planned, state="busy"))  # not an end
        if state == "done":
            record(storage, planned, score)
        if state == "stopped":
            stop(storage, plan, planned, epoch=2, score=score)
        supply.learn(Ended(planned=planned, state=state, score=score, epoch=2))
    assert states_of(supply) == ["COMPLETE", "PRUNED", "FAIL"]
    assert states_of(search_supply(plan, storage)) == ["COMPLETE", "PRUNED", "RUNNING"]  # to be trained once more


def states_of(supply):
    """Optuna's states of the recorded points; its own proposals before they are recorded count as failed."""
    (search,) = supply._searches
    trials = search._study.get_trials(deepcopy=False)
    return [trial.state.name for trial in trials if "fixed_params" in trial.system_attrs]


def test_an_entry_without_axes_is_trained_once(storage):
    methods = "[{method: scratch}, {method: sskt, learn_from: all, search: {alpha: {low: 0.1, high: 1.0}}}]"
    plan = paper_plan("by: optuna, trials: 4", methods=methods)
    ran = run(plan, storage, search_supply(plan, storage), lambda planned: 50.0)
    assert [one.trial.entry for one in ran] == [0, 1, 1, 1, 1]


def test_populations_are_handed_out_whole_one_after_the_other(storage):
    plan = paper_plan(f"by: random, trials: 3, {LR}", scheduler="{kind: pbt}", methods=BOTH)
    trials = handed(population_supply(plan, storage))
    expected = [members(plan, entry, seed) for entry, seed in itertools.product((0, 1), (3, 4))]
    assert [one.run_key for one in trials] == [one.run_key for group in expected for one in group]


def test_a_member_goes_on_where_it_was(storage):
    plan = paper_plan(f"by: random, trials: 2, {LR}", scheduler="{kind: pbt}", seeds="[3]")
    done, moved_on = members(plan, 0, 3)
    record(storage, done, 80.0)
    lineage = [{"epoch": 0, "from": None, "point": {"training.lr": 0.125}}]
    Checkpoints(storage, moved_on.run_key).save({"epoch": 2, "lineage": lineage})
    (left,) = handed(population_supply(plan, storage))
    assert left.run_key == moved_on.run_key
    assert left.trial.training.lr == left.trial.point["training.lr"] == 0.125
