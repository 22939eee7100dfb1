import os
import time

import pytest

from cluster.resources import Resources
from pipeline.forecasts.figures import make_forecast
from pipeline.forecasts.records import FOLDER, Recorded, compare, read_forecast, write_forecast
from pipeline.trials.runners import Demand, run_plain
from pipeline.trials.trials import gather_materials
from sskt.errors import DamagedError
from tests.pipeline.forecasts.test_figures import STARTS
from tests.pipeline.forecasts.test_forecast import POOL, VIEWS, packed
from tests.pipeline.forecasts.test_workload import MACHINE, rates_of
from tests.pipeline.trials.test_trials import prepared


def recorded(plan, storage, *, supposed=False):
    rates = rates_of(plan, **STARTS)
    return Recorded(forecast=make_forecast(plan, storage, rates, MACHINE), rates=rates, supposed=supposed)


def test_the_newest_of_its_own_size_with_something_to_do_is_read(experiment_file):
    plan, storage = packed(experiment_file)
    assert read_forecast(storage, "small") is None
    assert compare(plan, storage) == []
    kept = recorded(plan, storage)
    key = write_forecast(storage, kept)
    assert key.startswith("reports/forecasts/small/")
    write_forecast(storage, recorded(plan, storage, supposed=True))
    found, made = read_forecast(storage, "small")
    assert found == kept
    assert abs(made - time.time()) < 60
    assert read_forecast(storage, "other") is None


def test_a_damaged_forecast_is_named(experiment_file):
    plan, storage = packed(experiment_file)
    key = write_forecast(storage, recorded(plan, storage))
    storage.write(key, storage.read(key).replace(b"small", b"smull"))
    with pytest.raises(DamagedError, match=r"forecasts/small/.* is damaged"):
        read_forecast(storage, "small")


def test_what_came_stands_beside_what_was_forecast(experiment_file):
    plan, storage = packed(experiment_file)
    write_forecast(storage, recorded(plan, storage))
    plan, storage = prepared(experiment_file)
    before = {one.what: one for one in compare(plan, storage)}
    assert (before["source passes"].forecast, before["source passes"].actual) == (POOL * VIEWS, POOL * VIEWS)
    assert before["caches"].ratio == pytest.approx(1.0, abs=0.05)
    assert (before["trials"].forecast, before["trials"].actual, before["trials"].ratio) == (4, 0, None)
    began = time.time()
    materials = gather_materials(plan, storage, plan.trials)
    for planned in plan.trials:
        assert run_plain(planned, materials, Demand(need=Resources(cpus=1))).state == "done"
    after = {one.what: one for one in compare(plan, storage)}
    assert after["trials"].ratio == 1.0
    assert after["work"].forecast == pytest.approx(recorded_work(storage))
    assert after["work"].actual >= time.time() - began - 1


def recorded_work(storage):
    found, _ = read_forecast(storage, "small")
    return found.forecast.cached.seconds - found.forecast.cached.first


def test_what_was_there_before_the_forecast_is_not_its_doing(experiment_file):
    plan, storage = prepared(experiment_file)
    long_ago = time.time() - 1000
    for one in storage.objects("caches"):
        os.utime(storage.path(one.key), (long_ago, long_ago))
    write_forecast(storage, recorded(plan, storage))
    figures = {one.what: one for one in compare(plan, storage)}
    assert "source passes" not in figures  # none were forecast
    assert figures["work"].actual == 0
    assert figures["work"].ratio is None
    assert list(storage.keys(FOLDER))
