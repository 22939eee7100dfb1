from dataclasses import replace

import pytest

from pipeline.forecasts.work import Standing, kind_of, rows_of_step, trainings, work_left
from pipeline.trials.trials import gather_materials, make_feed
from tests.pipeline.forecasts.test_forecast import SEARCH, packed
from tests.pipeline.trials.test_trials import CPU, prepared, with_methods

ENTRIES = (
    "method: sskt, sources: [wise]",
    "method: sskt, sources: [wise], learn_from: all",
    "method: sskd, sources: [wise], soft: 0, turned: 0",
    "method: embed, sources: [wise]",
    "method: scratch",
)


@pytest.mark.parametrize("changes", [(), ("training.mix=mixup",), ("training.pool_batch_size=24",)])
def test_rows_of_a_step_are_the_answers_that_a_feed_serves(experiment_file, changes):
    plan, storage = prepared(with_methods(experiment_file, *ENTRIES), *changes)
    for planned, one in zip(plan.trials, trainings(plan, [(trial, 1.0) for trial in plan.trials]), strict=True):
        feed = make_feed(planned, gather_materials(plan, storage, [planned]), CPU)
        for step in range(3):
            feed.batch(step)
        assert feed.label_rows == 3 * one.rows * len(one.sources), planned.trial.label
        assert one.rows == rows_of_step(planned)


def test_kinds_differ_by_what_a_step_costs_alone(experiment_file):
    def kinds(*changes):
        plan, _ = packed(experiment_file, *changes)
        return [kind_of(planned.spec["trial"]) for planned in plan.trials]

    usual = kinds()
    assert len(set(usual)) == 2
    assert usual[0].startswith("scratch alone ")
    assert usual[2].startswith("sskt wise ")
    for same in ("training.lr=0.3", "training.epochs=9", "training.steps_per_epoch=2", "seeds=[5, 6]"):
        assert kinds(same) == usual, same
    for other in ("training.batch_size=8", "target.options.width=5", "training.mix=mixup"):
        assert not set(kinds(other)) & set(usual), other


def test_weights_of_losses_make_no_other_kind_but_names_do(experiment_file):
    entries = [
        f"method: sskt, sources: [wise], {option}" for option in ("alpha: 0.5", "alpha: {wise: 2.0}", "heads: linear")
    ]
    plan, _ = packed(with_methods(experiment_file, *entries))
    kinds = [kind_of(planned.spec["trial"]) for planned in plan.trials[::2]]
    assert kinds[0] == kinds[1]


def test_what_is_left_is_told_in_whole_epochs(experiment_file):
    plan, _ = packed(experiment_file)
    keys = [planned.run_key for planned in plan.trials]
    standing = Standing(done={keys[0]}, epochs={keys[1]: 2})
    left = trainings(plan, work_left(plan, plan.trials, standing))
    assert [(one.planned.run_key, one.count, one.epochs, one.steps) for one in left] == [
        (keys[1], 1, 1, 4), (keys[2], 1, 3, 4), (keys[3], 1, 3, 4),
    ]  # fmt: skip
    assert left[0].label_rows == 0
    assert left[1].label_rows == 3 * 4 * 32


def test_trials_of_a_search_that_are_not_known_yet_count(experiment_file):
    plan, _ = packed(experiment_file, SEARCH)
    left = trainings(plan, work_left(plan, [], Standing(done=set(), epochs={})))
    assert sum(one.count for one in left) == 2 * (3 + 1) - 2 * 3  # what is drawn is known; the best's other seed is not


def test_a_share_below_an_epoch_is_nothing(experiment_file):
    plan, _ = packed(experiment_file)
    assert trainings(plan, [(plan.trials[0], 0.0), (plan.trials[0], 0.1)]) == []
    (one,) = trainings(plan, [(plan.trials[0], 5.0)])
    assert replace(one, count=1).epochs == 3
    assert one.count == 5
