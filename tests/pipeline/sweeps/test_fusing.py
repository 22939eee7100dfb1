"""Whether trials step together: what is chosen and why, and a whole sweep that does."""

import re

import pytest

from cluster.resources import Resources
from pipeline.planning.experiment import load_experiment
from pipeline.planning.settings import ResourceSettings
from pipeline.stages import Stages
from pipeline.sweeps import fusing
from pipeline.sweeps.fusing import choose_lanes, paces, why_processes
from pipeline.sweeps.sweep import Sweep
from pipeline.trials.lanes import stacks
from pipeline.trials.results import read_result
from pipeline.trials.runners import Demand
from pipeline.trials.trials import gather_materials
from sskt.errors import InputError
from sskt.stacks import Stack
from tests.pipeline.trials.test_trials import with_methods

LIVE = "sources.wise.live=true"  # no cache has to be made, so no Ray is started
METHODS = ("method: scratch", "method: sskt, sources: [wise]", "method: ema")


@pytest.fixture
def prepared(experiment_file):
    def prepare(*changes):
        stages = Stages(
            load_experiment(str(with_methods(experiment_file, *METHODS)), changes=[LIVE, *changes]), lambda line: None
        )
        plan = stages.pack()
        return plan, stages.storage

    return prepare


def never(group):
    raise AssertionError("nothing is to be measured")


def test_what_is_chosen_and_why(prepared):
    plan, _ = prepared()
    for resources, against, trials, expected in [
        (ResourceSettings(), None, plan.trials, (1, "as resources.packing says")),
        (ResourceSettings(packing="fused"), "this", plan.trials, (1, "for this")),
        (
            ResourceSettings(packing="auto", compile="default"),
            None,
            plan.trials,
            (1, "for resources.compile is for networks by themselves"),
        ),
        (
            ResourceSettings(packing="fused"),
            None,
            plan.trials,
            (4, "as resources.packing says; method 'ema': it takes its steps in its own way"),
        ),
        (ResourceSettings(packing="fused", lanes=3), None, plan.trials[:4], (3, "as resources.packing says")),
        (
            ResourceSettings(packing="fused"),
            None,
            plan.trials[4:],
            (
                1,
                "for no two trials have equal targets and batches; method 'ema': it takes its steps in its own way",
            ),
        ),
    ]:
        assert choose_lanes(trials, resources, against=against, pace=never) == expected


@pytest.mark.parametrize(("together", "lanes"), [(330.1, 4), (329.0, 1), (0.0, 1)])
def test_auto_takes_what_is_faster_and_says_both(prepared, together, lanes):
    plan, _ = prepared()
    asked = []

    def pace(group):
        asked.append(group)
        return 300.0, together

    chosen, why = choose_lanes(plan.trials[:4], ResourceSettings(packing="auto"), against=None, pace=pace)
    assert chosen == lanes
    assert why == f"by {together:.0f} images/s of 4 together against 300 of one alone in a process"
    assert asked == [plan.trials[:4]]


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"runner": "train"}, "runner 'train'"),
        ({"known": False}, "search"),
        ({"logged": True}, "log_to"),
        ({"streamed": True}, "streamed"),
    ],
)
def test_what_speaks_against_it_whatever_the_trials_are(changed, said):
    usual = {"runner": "packed", "known": True, "logged": False, "streamed": False}
    assert why_processes(**usual) is None
    assert why_processes(**usual | {"runner": "plain"}) is None
    assert said in why_processes(**usual | changed)


def test_both_paces_are_of_images_and_nothing_is_kept(prepared, monkeypatch):
    monkeypatch.setattr(fusing, "SECONDS", 0.01)
    plan, storage = prepared()
    (group,) = [alike for alike in stacks(plan.trials)[0] if len(alike) > 1]
    materials = gather_materials(plan, storage, group)
    before = list(storage.keys("results"))
    steps, step = [], Stack.step
    monkeypatch.setattr(Stack, "step", lambda self, batches: steps.append(len(batches)) or step(self, batches))
    alone, together = paces(group, materials, Demand(need=Resources(cpus=1)))
    assert alone > 0
    assert together > 0
    assert set(steps) == {4}
    assert list(storage.keys("results")) == before

    def starve(self, batches):
        raise MemoryError("none left")

    monkeypatch.setattr(Stack, "step", starve)
    assert paces(group, materials, Demand(need=Resources(cpus=1)))[1] == 0


@pytest.mark.parametrize("packing", ["fused", "auto"])
def test_a_plain_sweep_trains_together(prepared, monkeypatch, packing):
    monkeypatch.setattr(fusing, "paces", lambda *_, **__: (1.0, 2.0))
    monkeypatch.setattr("pipeline.sweeps.sweep.paces", lambda *_, **__: (1.0, 2.0))
    plan, storage = prepared("resources.runner=plain", f"resources.packing={packing}")
    said = []
    sweep = Sweep(plan, storage, say=said.append)
    sweep.run_missing(plan.trials)
    assert (sweep.outcome.done, sweep.outcome.failures) == (6, {})
    results = [read_result(storage, planned.run_key) for planned in plan.trials]
    assert [result.get("fused") for result in results] == [4, 4, 4, 4, None, None]
    assert said[0].startswith("sweep   up to 4 step together in a process, ")
    assert said[0].endswith("method 'ema': it takes its steps in its own way")
    sweep = Sweep(plan, storage, say=said.append)
    sweep.run_missing(plan.trials)
    assert (sweep.outcome.found, sweep.outcome.done) == (6, 0)


def test_one_that_ran_out_of_memory_together_runs_with_fewer(prepared, monkeypatch):
    step = Stack.step

    def starve(self, batches):
        if len(batches) > 2:
            raise MemoryError("none left")
        return step(self, batches)

    monkeypatch.setattr(Stack, "step", starve)
    plan, storage = prepared("resources.runner=plain", "resources.packing=fused")
    said = []
    sweep = Sweep(plan, storage, say=said.append)
    sweep.run_missing(plan.trials[:4])
    assert sweep.outcome.done == 4
    assert [read_result(storage, planned.run_key)["fused"] for planned in plan.trials[:4]] == [2] * 4
    assert "4 trials ran out of memory, or their process died, with up to 4 in one: again with 2" in said[-1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lanes": 1}, "resources.lanes is 1; it has to be at least 2"),
        ({"packing": "fused", "workers": 2}, "resources.packing is 'fused' with runner 'auto' and 2 workers"),
        ({"packing": "fused", "runner": "train"}, "resources.packing is 'fused' with runner 'train' and 1 workers"),
    ],
)
def test_what_contradicts_itself_is_refused(changes, message):
    with pytest.raises(InputError, match=re.escape(message)):
        ResourceSettings(**changes)


def test_run_keys_know_nothing_of_it(prepared):
    keys = [planned.run_key for planned in prepared()[0].trials]
    assert keys == [planned.run_key for planned in prepared("resources.packing=fused", "resources.lanes=3")[0].trials]
