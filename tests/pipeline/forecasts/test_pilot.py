"""The pilot by Ray, once; what it refuses, without."""

import pytest

from pipeline.forecasts.pilot import measure
from pipeline.forecasts.work import kind_of
from sskt.errors import InputError
from tests.pipeline.forecasts.test_forecast import packed


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
def test_every_kind_of_work_is_measured_and_the_storage_is_as_it_was(experiment_file):
    plan, storage = packed(experiment_file)
    before = list(storage.objects(""))
    rates = measure(plan, storage, trials=plan.trials, seconds=0.1)
    assert list(storage.objects("")) == before
    assert rates.paces.keys() == {kind_of(planned.spec["trial"]) for planned in plan.trials}
    assert all(0 < pace.step < 1 and pace.trial > 0 for pace in rates.paces.values())
    assert 0 < rates.sources["wise"].answer < rates.sources["wise"].view
    for start in (rates.session, rates.cache_start, rates.sweep_start, rates.turn):
        assert 0 <= start < 120


def test_the_plain_runner_is_measured_in_this_process(experiment_file, monkeypatch):
    monkeypatch.setattr("pipeline.forecasts.pilot.start_session", lambda: None)
    plan, storage = packed(experiment_file, "resources.runner=plain", "methods=[{method: scratch}]")
    rates = measure(plan, storage, trials=plan.trials, seconds=0.1)
    assert len(rates.paces) == 1
    assert (rates.sweep_start, rates.turn, rates.cache_start) == (0, 0, None)


def test_what_it_cannot_measure_is_refused_before_ray_starts(experiment_file, monkeypatch):
    monkeypatch.setattr("pipeline.forecasts.pilot.start_session", None)
    plan, storage = packed(experiment_file, "resources.workers=2", "resources.cpus_per_trial=0.5")
    with pytest.raises(InputError, match=r"resources\.workers=1"):
        measure(plan, storage, trials=plan.trials)
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with pytest.raises(InputError, match="RAY_ADDRESS names a cluster"):
        measure(plan, storage, trials=plan.trials)
