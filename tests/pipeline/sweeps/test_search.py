"""Searches: what was tried, how it ended, what is chosen, and by what."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.storage import FolderStorage
from pipeline.planning.space import draw
from pipeline.sweeps.search import (
    Tried,
    best,
    chosen,
    record_point,
    recorded_points,
    search_id,
    search_lines,
    stopped_early,
    table_trials,
    tried,
    tried_trials,
)
from pipeline.trials.populations import members
from pipeline.trials.results import write_failure
from sskt.errors import DamagedError
from tests.pipeline.sweeps.searches import LR, paper_plan, record, stop

TWO = "[{method: scratch}, {method: sskt, learn_from: all, search: {alpha: [0.5, 1.0]}}]"


@pytest.fixture
def storage(tmp_path):
    return FolderStorage(str(tmp_path))


def test_an_id_stands_for_all_that_defines_a_search_but_the_number_of_trials_and_later_seeds():
    first = paper_plan(f"by: random, trials: 5, {LR}")
    same = [
        paper_plan(f"by: random, trials: 9, {LR}"),
        paper_plan(f"by: random, trials: 5, {LR}", seeds="[3, 8, 9]"),
    ]
    others = [
        paper_plan(f"by: optuna, trials: 5, {LR}"),
        paper_plan(f"by: random, trials: 5, seed: 1, {LR}"),
        paper_plan("by: random, trials: 5, axes: {training.lr: {low: 0.002, high: 1.0, log: true}}"),
        paper_plan(f"by: random, trials: 5, {LR}", scheduler="{kind: asha}"),
        paper_plan(f"by: random, trials: 5, {LR}", epochs=8),
        paper_plan(f"by: random, trials: 5, {LR}", seeds="[4, 3]"),
        paper_plan(f"by: random, trials: 5, {LR}", methods="[{method: sskt}]"),
    ]
    ids = [search_id(plan, 0) for plan in (first, *others)]
    assert len(set(ids)) == len(ids)
    assert {search_id(plan, 0) for plan in same} == {ids[0]}


def test_every_entry_has_a_search_of_its_own():
    plan = paper_plan(f"by: random, trials: 5, {LR}", methods=TWO)
    assert search_id(plan, 0) != search_id(plan, 1)


def test_who_records_a_point_first_decides_it(storage):
    assert recorded_points(storage, "s") == []
    assert record_point(storage, "s", 0, {"training.lr": 0.1}) == {"training.lr": 0.1}
    assert record_point(storage, "s", 0, {"training.lr": 0.2}) == {"training.lr": 0.1}
    for number in range(1, 12):
        record_point(storage, "s", number, {"training.lr": number})
    assert [point["training.lr"] for point in recorded_points(storage, "s")] == [0.1, *range(1, 12)]


def test_a_damaged_point_is_named(storage):
    storage.write("searches/s/points/00003.json", b"{")
    with pytest.raises(DamagedError, match=r"searches/s/points/00003\.json is damaged"):
        recorded_points(storage, "s")


def test_a_random_search_tries_what_is_drawn_and_more_trials_change_none_of_it(storage):
    few, many = (paper_plan(f"by: random, trials: {trials}, seed: 7, {LR}") for trials in (3, 6))
    points = [one.planned.trial.point for one in tried(many, storage, 0)]
    assert points == [draw(many.experiment.axes_of(0), number=number, seed=7) for number in range(6)]
    assert [one.planned.trial.point for one in tried(few, storage, 0)] == points[:3]
    assert {one.planned.trial.seed for one in tried(many, storage, 0)} == {3}


def test_a_grid_is_tried_whole_and_equal_points_count_once(storage):
    grid = paper_plan("by: grid, axes: {training.lr: [0.1, 0.2], training.momentum: [0.8, 0.9]}")
    assert len(tried(grid, storage, 0)) == 4
    drawn = paper_plan("by: random, trials: 50, axes: {training.lr: [0.1, 0.2]}")
    assert sorted(one.planned.trial.training.lr for one in tried(drawn, storage, 0)) == [0.1, 0.2]


def test_of_optuna_what_is_recorded_counts(storage):
    plan = paper_plan(f"by: optuna, trials: 2, {LR}")
    assert tried(plan, storage, 0) == []
    for number, lr in enumerate((0.5, 0.25, 0.125)):
        record_point(storage, search_id(plan, 0), number, {"training.lr": lr})
    assert [one.planned.trial.training.lr for one in tried(plan, storage, 0)] == [0.5, 0.25]


def test_how_each_trial_ended(storage):
    plan = paper_plan("by: grid, axes: {training.lr: [0.1, 0.2, 0.3, 0.4]}")
    done, stopped, failed, _ = (one.planned for one in tried(plan, storage, 0))
    record(storage, done, 99.0, 80.0)
    stop(storage, plan, stopped, epoch=3, score=61.5)
    write_failure(storage, failed.run_key, "no longer finite")
    told = [(one.state, one.score, one.epoch) for one in tried(plan, storage, 0)]
    assert told == [("done", 80.0, 0), ("stopped", 61.5, 3), ("failed", None, 0), ("open", None, 0)]


def test_a_result_counts_more_than_that_the_trial_was_stopped_once(storage):
    plan = paper_plan("by: grid, axes: {training.lr: [0.1]}")
    planned = tried(plan, storage, 0)[0].planned
    stop(storage, plan, planned, epoch=3, score=61.5)
    record(storage, planned, 80.0)
    assert tried(plan, storage, 0)[0].state == "done"


def test_the_last_epochs_validation_alone_chooses_and_what_did_not_end_well_is_never_chosen(storage):
    plan = paper_plan("by: grid, axes: {training.lr: [0.1, 0.2, 0.3, 0.4]}")
    first, second, third, fourth = (one.planned for one in tried(plan, storage, 0))
    assert chosen(plan, storage, 0) is None
    record(storage, first, 95.0, 70.0, test={"accuracy": 99.0})
    record(storage, second, 60.0, 75.0, test={"accuracy": 10.0})
    stop(storage, plan, third, epoch=3, score=90.0)
    record(storage, fourth, 75.0)
    assert chosen(plan, storage, 0).planned == second


states = st.sampled_from(["done", "stopped", "failed", "open"])


@given(st.lists(st.tuples(states, st.integers(0, 5)), max_size=12))
def test_the_best_is_the_first_of_the_highest_done(endings):
    trials = [Tried(planned=number, state=state, score=score) for number, (state, score) in enumerate(endings)]
    found = best(trials)
    done = [(-score, number) for number, (state, score) in enumerate(endings) if state == "done"]
    assert (found and (-found.score, found.planned)) == (min(done) if done else None)


def test_a_table_has_the_chosen_point_of_every_entry_with_all_seeds(storage):
    plan = paper_plan("by: grid, axes: {training.lr: [0.1, 0.2]}", methods=TWO)
    assert table_trials(plan, storage) == []
    scratch, sskt = (tried(plan, storage, entry) for entry in (0, 1))
    assert (len(scratch), len(sskt)) == (2, 4)
    record(storage, scratch[1].planned, 80.0)
    assert [one.trial.label for one in table_trials(plan, storage)] == ["scratch, lr 0.2"] * 2
    record(storage, sskt[2].planned, 70.0)
    rows = table_trials(plan, storage)
    assert [(one.trial.entry, one.trial.seed, one.trial.training.lr) for one in rows] == [
        (0, 3, 0.2),
        (0, 4, 0.2),
        (1, 3, 0.2),
        (1, 4, 0.2),
    ]
    assert rows[2].run_key == sskt[2].planned.run_key  # what the search trained is found


def test_without_a_search_a_table_has_all_trials():
    plan = SimpleNamespace(experiment=SimpleNamespace(search=None), trials=["all"])
    assert table_trials(plan, None) == ["all"]
    assert search_lines(plan, None) == []
    assert tried_trials(plan, None) == []


def test_what_all_searches_tried_and_what_of_it_was_stopped(storage):
    plan = paper_plan("by: grid, axes: {training.lr: [0.1, 0.2]}", methods=TWO)
    trials = [one.planned for entry in (0, 1) for one in tried(plan, storage, entry)]
    assert tried_trials(plan, storage) == trials
    assert stopped_early(plan, storage) == {}
    for planned in (trials[0], trials[3]):
        stop(storage, plan, planned, epoch=1, score=50.0)
    assert list(stopped_early(plan, storage)) == [trials[0].run_key, trials[3].run_key]


def test_the_members_of_every_population_were_tried(storage):
    plan = paper_plan(f"by: random, trials: 3, {LR}", scheduler="{kind: pbt}")
    expected = [member.run_key for seed in (3, 4) for member in members(plan, 0, seed)]
    assert [planned.run_key for planned in tried_trials(plan, storage)] == expected


def test_lines_say_what_was_chosen_out_of_what(storage):
    plan = paper_plan("by: grid, axes: {training.lr: [0.1, 0.2, 0.3]}", methods=TWO)
    trials = [one.planned for one in tried(plan, storage, 0)]
    record(storage, trials[1], 91.24)
    assert search_lines(plan, storage) == [
        "scratch, lr 0.2: best of 3 by validation, 91.2 % (2 not yet at an end)",
        "sskt, learn_from all: none of 6 has ended well (6 not yet at an end)",
    ]
    stop(storage, plan, trials[0], epoch=1, score=50.0)
    write_failure(storage, trials[2].run_key, "no longer finite")
    assert search_lines(plan, storage)[0] == (
        "scratch, lr 0.2: best of 3 by validation, 91.2 % (1 stopped early, 1 failed)"
    )


def test_of_populations_the_best_member_of_every_seed_stands_where_it_ended(storage):
    plan = paper_plan(f"by: random, trials: 3, {LR}", scheduler="{kind: pbt}")
    for seed, scores in ((3, (50.0, 70.0, 60.0)), (4, (90.0, 80.0, 70.0))):
        for number, (member, score) in enumerate(zip(members(plan, 0, seed), scores, strict=True)):
            lineage = [{"epoch": 0, "from": None, "point": {"training.lr": 0.01 * (number + 1)}}]
            record(storage, member, score, lineage=lineage)
    rows = table_trials(plan, storage)
    assert [one.run_key for one in rows] == [members(plan, 0, 3)[1].run_key, members(plan, 0, 4)[0].run_key]
    assert [one.trial.training.lr for one in rows] == [0.02, 0.01]
    assert {one.trial.label for one in rows} == {"scratch"}
    assert search_lines(plan, storage) == [
        "scratch, seed 3: best of 3 by validation, 70.0 %",
        "scratch, seed 4: best of 3 by validation, 90.0 %",
    ]
