from dataclasses import replace

import numpy as np
import pytest

from cluster.resources import Resources
from cluster.storage import FolderStorage
from pipeline.forecasts.source_pilot import SourcePilot
from pipeline.forecasts.trial_pilot import copies, gaps, measure_here, pilot, stand_in
from pipeline.forecasts.work import kind_of
from pipeline.trials.runners import Demand
from pipeline.trials.trials import gather_materials
from sskt.errors import SsktError
from tests.pipeline.forecasts.test_source_pilot import job_of
from tests.pipeline.trials.test_trials import CPU, prepared, with_methods

DEMAND = Demand(need=Resources(cpus=1), at_once=2)
METHODS = ("method: scratch", "method: sskt, sources: [wise]", "method: sskd, sources: [wise], soft: 0, turned: 0")


def stood_in(file, tmp_path, *methods):
    plan, storage = prepared(with_methods(file, *methods) if methods else file)
    SourcePilot(job_of(plan, storage, tmp_path))({"number": 0})
    return plan, storage, stand_in(plan, storage, str(tmp_path), plan.trials)


def test_materials_stand_in_for_those_of_the_caches_to_come(experiment_file, tmp_path):
    plan, storage, materials = stood_in(experiment_file, tmp_path, *METHODS)
    real = gather_materials(plan, storage, plan.trials)
    assert np.array_equal(materials.images, real.images)
    assert materials.payload["wise"].keys() == real.payload["wise"].keys()
    for cache, payload in real.payload["wise"].items():
        assert materials.payload["wise"][cache].shape == payload.shape
        assert materials.payload["wise"][cache].dtype == payload.dtype
    assert materials.stored == real.stored
    assert materials.storage_uri != real.storage_uri


def test_every_kind_is_copied_for_every_place_and_the_first_once_more(experiment_file):
    plan, _ = prepared(experiment_file)
    short = copies(plan, [plan.trials[0], plan.trials[2]], DEMAND)
    assert [one.trial.method for one in short] == ["scratch"] * 4 + ["sskt"] * 2
    assert len({one.run_key for one in short}) == 6
    assert {(one.trial.training.epochs, one.trial.training.steps_per_epoch) for one in short} == {(1, 1)}
    assert {kind_of(one.spec["trial"]) for one in short} == {kind_of(one.spec["trial"]) for one in plan.trials}


def test_a_pilot_measures_all_parts_and_leaves_the_storage_alone(experiment_file, tmp_path):
    plan, storage, materials = stood_in(experiment_file, tmp_path, *METHODS)
    before = list(storage.objects(""))
    for planned in copies(plan, plan.trials[::2], replace(DEMAND, at_once=1))[1:]:
        pace = pilot(planned, materials, CPU, seconds=0.05)
        assert 0 < pace.step < 1
        assert pace.evaluation > 0
        assert pace.checkpoint > 0
        assert pace.trial > 0
        assert pace.checkpoint_bytes > 1000
    assert list(storage.objects("")) == before
    assert not list(FolderStorage(materials.storage_uri).objects("checkpoints"))


def test_the_first_copies_only_warm_up(experiment_file, tmp_path, monkeypatch):
    plan, _, materials = stood_in(experiment_file, tmp_path)
    steps = iter([100.0, 100.0, 1.0, 3.0, 5.0, 7.0])
    whole = pilot(copies(plan, plan.trials[:1], DEMAND)[0], materials, CPU, seconds=0)
    monkeypatch.setattr("pipeline.forecasts.trial_pilot.pilot", lambda *_, **__: replace(whole, step=next(steps)))
    trials = copies(plan, [plan.trials[0], plan.trials[2]], DEMAND)
    rates = measure_here(trials, materials, DEMAND, seconds=0)
    assert [pace.step for pace in rates.paces.values()] == [2.0, 6.0]
    assert (rates.sweep_start, rates.turn) == (0, 0)


def test_a_trial_that_fails_tells_why(experiment_file, tmp_path):
    plan, _, materials = stood_in(experiment_file, tmp_path)
    broken = replace(materials, payload={"wise": {"logits": np.full_like(materials.payload["wise"]["logits"], 255)}})
    planned = copies(plan, [plan.trials[2]], DEMAND)[0]
    with pytest.raises(SsktError, match="finite"):
        pilot(planned, broken, CPU, seconds=0)


def test_gaps_are_those_within_a_process():
    told = [
        {"process": 1, "began": 0.0, "ended": 2.0}, {"process": 2, "began": 1.0, "ended": 4.0},
        {"process": 1, "began": 2.5, "ended": 6.0}, {"process": 2, "began": 4.25, "ended": 5.0},
    ]  # fmt: skip
    assert gaps(told) == [0.5, 0.25]
