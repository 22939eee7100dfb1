"""Counted against a real server: what a trial and a shard ask of it."""

from collections import Counter

import pytest

from cluster.resources import Resources
from pipeline.forecasts.requests import PER_EPOCH, PER_TRIAL, cost_of, requests_of
from pipeline.trials.runners import Demand, run_plain
from pipeline.trials.trials import gather_materials
from tests.object_store import proxy_of, use
from tests.pipeline.forecasts.test_forecast import packed
from tests.pipeline.trials.test_trials import prepared


def counted(proxy):
    """Requests by kind, but for the probe that every process makes once."""
    kinds = Counter()
    for method, path, _ in proxy.requests:
        if ".conditional-put" not in path:
            kinds["LIST" if "list-type" in path else method] += 1
    del proxy.requests[:]
    return kinds


def test_a_trial_asks_for_what_is_forecast(experiment_file, bucket_uri, object_store, monkeypatch):
    changes = (f"storage={bucket_uri}", "training.steps_per_epoch=1")
    with proxy_of(object_store.port) as proxy:
        use(proxy.endpoint, monkeypatch)
        prepared(experiment_file, *changes)
        for epochs in (1, 3):
            plan, storage = packed(experiment_file, *changes, f"training.epochs={epochs}")
            planned = plan.trials[2]
            materials = gather_materials(plan, storage, [planned])
            counted(proxy)
            assert run_plain(planned, materials, Demand(need=Resources(cpus=1))).state == "done"
            wanted = Counter(PER_TRIAL) + Counter({kind: epochs * count for kind, count in PER_EPOCH.items()})
            wanted["GET"] -= 2  # the report's
            found = counted(proxy)
            assert {kind: found[kind] for kind in wanted} == dict(wanted)


def test_the_counts_of_the_benchmark_are_those_of_its_sweep():
    """docs/storage.md: 8 trials of 3 epochs, one cache in 16 shards."""
    counts = requests_of(trials=8, epochs=24, shards=16, outputs=16, segments=1)
    assert counts == {"PUT": 111, "GET": 197, "LIST": 50, "DELETE": 56}


def test_claims_beat_while_work_goes_on():
    still = requests_of(trials=1, epochs=1, shards=0, outputs=0, segments=0)
    beating = requests_of(trials=1, epochs=1, shards=0, outputs=0, segments=0, claimed_seconds=500)
    assert beating - still == {"PUT": 100, "GET": 100}


def test_writes_and_listings_cost_more_than_reads_and_deletes_nothing():
    requests = {"PUT": 1000, "LIST": 1000, "GET": 10_000, "DELETE": 5000}
    assert cost_of(requests, per_1000_writes=0.005, per_1000_reads=0.0004) == pytest.approx(0.01 + 0.004)
    thousand = requests_of(trials=1000, epochs=30_000, shards=0, outputs=0, segments=0)
    assert cost_of(thousand, per_1000_writes=0.005, per_1000_reads=0) == pytest.approx(0.33, abs=0.01)
