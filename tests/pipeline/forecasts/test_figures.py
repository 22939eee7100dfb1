import pytest

from pipeline.forecasts.figures import Size, make_forecast, scaling_line
from pipeline.forecasts.machines import Cluster, StorageDescription, Supposed
from pipeline.forecasts.rates import Rates
from tests.pipeline.forecasts.test_forecast import POOL, VIEWS, packed, record
from tests.pipeline.forecasts.test_workload import MACHINE, rates_of
from tests.pipeline.trials.test_trials import prepared

STARTS = {"session": 5.0, "cache_start": 3.0, "sweep_start": 4.0, "turn": 0.0}


def test_what_is_left_is_told_with_and_without_caches(experiment_file):
    plan, storage = packed(experiment_file)
    record(storage, plan.trials[0], seconds=1.0)
    forecast = make_forecast(plan, storage, rates_of(plan, **STARTS), MACHINE)
    assert (forecast.trials, forecast.found, forecast.epochs) == (3, 1, 9)
    assert forecast.cached.passes == POOL * VIEWS
    assert forecast.live.passes == 2 * 3 * 4 * 32
    trial = 3 * 2.3 + 2.0
    making = POOL * VIEWS * 0.01 + 2 * 0.05
    assert forecast.cached.source_hours == pytest.approx(making / 3600)
    assert forecast.cached.training_hours == pytest.approx(3 * trial / 3600)
    longest = 64 * VIEWS * 0.01 + 0.05
    assert forecast.cached.seconds == pytest.approx(8 + longest + 4 + 2 * trial)
    assert forecast.cached.first == 8
    assert forecast.live.seconds == pytest.approx(5 + 4 + 2 * trial + 3 * 4 * 32 * 0.008)
    assert forecast.cached.cost < 0.01  # requests alone
    assert forecast.dataset_bytes == sum(one.bytes for one in storage.objects(plan.packed.prefix))
    assert forecast.checkpoint_bytes == 2 * 1000 * 2
    assert [size.nodes for size in forecast.sizes] == [1]


def test_what_is_not_known_is_said_and_not_invented(experiment_file):
    plan, storage = packed(experiment_file)
    forecast = make_forecast(plan, storage, Rates(), MACHINE)
    assert (forecast.cached.seconds, forecast.cached.cost, forecast.live.source_hours) == (None, None, None)
    assert forecast.checkpoint_bytes is None
    assert forecast.sizes == []
    assert len(forecast.unknown) == 3
    assert forecast.cached.passes == POOL * VIEWS
    assert forecast.cached.requests["PUT"] > 0


def test_a_whole_cache_asks_for_no_pace_of_its_source(experiment_file):
    plan, storage = prepared(experiment_file)
    rates = Rates(paces=rates_of(plan).paces)
    forecast = make_forecast(plan, storage, rates, MACHINE)
    assert forecast.unknown == []
    assert forecast.cached.seconds > 0
    assert forecast.live.seconds is None  # live, its pace would matter


def test_nodes_and_requests_cost_and_more_nodes_are_quicker_but_less_used(experiment_file):
    plan, storage = packed(experiment_file, f"seeds={list(range(40))}")
    cluster = Cluster(
        cpus=2, memory_gb=8, nodes=(1, 4, 64, 1000), price_per_hour=3.6, storage=StorageDescription(latency_ms=10)
    )
    forecast = make_forecast(plan, storage, rates_of(plan, **STARTS), cluster)
    took = [size.seconds for size in forecast.sizes]
    assert took == sorted(took, reverse=True)
    assert forecast.cached.seconds == took[0]
    assert forecast.sizes[0].cost == pytest.approx(took[0] / 3600 * 3.6)
    assert forecast.cached.cost > forecast.sizes[0].cost
    used = [size.efficiency for size in forecast.sizes]
    assert used == sorted(used, reverse=True)
    assert used[0] > 0.8
    assert scaling_line(forecast.sizes).startswith("stops scaling at 64 nodes: ")


def test_the_line_names_the_first_size_that_is_badly_used():
    def size(nodes, efficiency, limit):
        return Size(nodes=nodes, seconds=1.0, cost=0.0, efficiency=efficiency, limit=limit, losses=0)

    well = [size(1, 0.95, "starting up"), size(4, 0.7, "starting up")]
    assert scaling_line(well) == "scales to 4 nodes"
    assert scaling_line([*well, size(16, 0.4, "the driver"), size(64, 0.1, "the driver")]) == (
        "stops scaling at 16 nodes: the driver"
    )
    assert scaling_line([size(1, 0.2, "starting up")]) == ""


def test_what_does_not_fit_is_warned_of(experiment_file):
    plan, storage = packed(experiment_file)
    small = Cluster(cpus=2, memory_gb=1, disk_gb=5, suppose=Supposed(images=100_000_000))
    first, second, third = make_forecast(plan, storage, Rates(), small).warnings
    assert first.startswith("a node has 1 GB of memory; what it trains from takes ")
    assert second == "resources.node_cache_gb is 10; a node has 5 GB of disk"
    assert third.startswith("how long Ray and its workers take to start is not known")
    assert make_forecast(plan, storage, rates_of(plan, **STARTS), MACHINE).warnings == []
