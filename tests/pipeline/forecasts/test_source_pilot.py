import json
from functools import partial

import numpy as np

from pipeline.forecasts import source_pilot
from pipeline.forecasts.source_pilot import SourceJob, SourcePilot, measure_sources, sample_file
from pipeline.trials.trials import gather_materials
from tests.pipeline.trials.test_trials import prepared


def job_of(plan, storage, folder):
    return SourceJob(
        storage_uri=storage.uri, folder=str(folder), sources=dict(plan.experiment.sources), wanted=plan.caches_for(),
        packed=plan.packed, recipe=plan.recipe, batch_size=32, threads=1, device="cpu", seconds=0.05,
    )  # fmt: skip


def test_a_worker_measures_each_source_and_leaves_what_it_said(experiment_file, tmp_path):
    plan, storage = prepared(experiment_file)
    told = json.loads(SourcePilot(job_of(plan, storage, tmp_path))({"number": 0})["told"])
    pace = told["paces"]["wise"]
    assert told["ended"] - told["began"] >= 0.05
    assert 0 < pace["answer"] < pace["view"] < 0.1
    assert pace["shard"] > 0
    assert {"8", "16"} <= set(pace["batches"])
    assert all(0 < seconds < 0.1 for seconds in pace["batches"].values())
    rows = np.load(sample_file(str(tmp_path), "wise", "logits"))
    stored = gather_materials(plan, storage, plan.trials).payload["wise"]["logits"]
    assert np.array_equal(rows, stored[:32, 0])


def test_what_workers_measured_is_averaged_and_what_was_not_work_is_the_start(experiment_file, tmp_path, monkeypatch):
    plan, storage = prepared(experiment_file)
    now = [1000.0]
    one = {"view": 1.0, "answer": 0.5, "shard": 0.1, "batches": {"8": 1.0, "128": 3.0}}
    other = {"view": 3.0, "answer": 1.5, "shard": 0.3, "batches": {"8": 2.0, "16": 4.0, "128": 4.0}}
    paces = [{"wise": one}, {"wise": other}]

    def workers(worker, job, rows, *, at_once, need):
        assert (worker, len(rows), at_once) == (SourcePilot, 2, 2)
        now[0] += 20
        spans = [(1005, 1012), (1006, 1015)]
        for (began, ended), one in zip(spans, paces, strict=True):
            yield {"told": json.dumps({"began": began, "ended": ended, "paces": one})}

    monkeypatch.setattr(source_pilot, "over_workers", workers)
    monkeypatch.setattr(source_pilot, "cluster_nodes", list)
    monkeypatch.setattr(source_pilot, "concurrency", lambda nodes, need: 2)
    monkeypatch.setattr(source_pilot.time, "time", lambda: now[0])
    rates = partial(measure_sources, plan, storage, str(tmp_path))(wanted=plan.caches_for(), seconds=1.0)
    assert rates.cache_start == 20 - 10
    averaged = {"view": 2.0, "answer": 1.0, "shard": 0.2, "batches": {8: 1.5, 128: 3.5}}
    assert vars(rates.sources["wise"]) == averaged
