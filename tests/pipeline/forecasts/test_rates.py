from pipeline.forecasts.rates import Pace, Rates, SourcePace, found_rates
from pipeline.forecasts.work import kind_of, trainings
from tests.pipeline.forecasts.test_forecast import STEPS, packed, record
from tests.pipeline.trials.test_trials import prepared


def test_finished_work_tells_what_it_took(experiment_file):
    plan, storage = prepared(experiment_file)
    record(storage, plan.trials[0], seconds=6.0)
    record(storage, plan.trials[1], seconds=8.0, earlier_seconds=4.0)
    rates = found_rates(plan, storage)
    kind = kind_of(plan.trials[0].spec["trial"])
    assert rates.paces == {kind: Pace(step=9.0 / STEPS)}
    assert 0 < rates.sources["wise"].view == rates.sources["wise"].answer < 0.1
    assert rates.session is None


def test_what_is_not_known_is_named(experiment_file):
    plan, storage = packed(experiment_file)
    rates, left = found_rates(plan, storage), trainings(plan, [(trial, 1.0) for trial in plan.trials])
    assert rates.lacking(left, ["wise"]) == [
        "seconds a step of scratch alone", "seconds a step of sskt wise", "seconds a view of source wise",
    ]  # fmt: skip
    assert rates.lacking([], []) == []


def test_of_two_the_later_counts_and_what_it_does_not_know_stays():
    old = Rates(paces={"a": Pace(step=1), "b": Pace(step=2)}, session=4.0, turn=0.5)
    new = Rates(paces={"b": Pace(step=3)}, sources={"s": SourcePace(view=1, answer=1)}, turn=0.0)
    both = old | new
    assert {kind: pace.step for kind, pace in both.paces.items()} == {"a": 1, "b": 3}
    assert (both.session, both.turn, both.cache_start) == (4.0, 0.0, None)
    assert set(both.sources) == {"s"}
