"""Trials that step together: which, in which groups, and that each ends as it does by itself."""

import dataclasses

import pytest
import torch

from pipeline.canonical import seal
from pipeline.planning.experiment import load_experiment
from pipeline.stages import Stages
from pipeline.trials.attempts import Ended, attempt, trial_claim
from pipeline.trials.checkpoints import Checkpoints
from pipeline.trials.lanes import Grouped, attempt_all, groups, in_order, stacks
from pipeline.trials.results import read_failure, read_result
from pipeline.trials.trials import Process, gather_materials, network_key
from pipeline.trials.tuning import Fixed
from sskt.errors import SsktError
from sskt.settings import TargetSettings
from sskt.stacks import Stack
from tests.pipeline.trials.test_trials import with_methods
from tests.sskt.test_fused import nearly

CPU = Process(device=torch.device("cpu"), threads=1)
METHODS = [
    "method: scratch",
    "method: sskt, sources: [wise]",
    "method: scratch, label: fast, grid: {training.lr: [0.2]}",
    "method: sskt, label: mixed, sources: [wise], learn_from: all",
    "method: ema",
]


@pytest.fixture
def prepared(experiment_file):
    """A plan with three trials that go together for every seed, and others that do not; materials and storage."""
    with_methods(experiment_file, *METHODS)
    stages = Stages(load_experiment(str(experiment_file), changes=["sources.wise.live=true"]), lambda line: None)
    plan = stages.pack()
    return plan, gather_materials(plan, stages.storage, plan.trials), stages.storage


def labels(groups):
    return [[(planned.trial.label, planned.trial.seed) for planned in group] for group in groups]


def alike(plan):
    return max(stacks(plan.trials)[0], key=len)


def run(group, materials, process=CPU):
    return in_order(group, attempt_all(group, materials, process))


def forget(storage, group):
    for planned in group:
        storage.delete(f"results/{planned.run_key}.json")


def test_trials_are_sorted_by_what_may_be_stacked(prepared):
    plan, _, _ = prepared
    sorted_out, reasons = stacks(plan.trials)
    assert reasons == ["method 'ema': it takes its steps in its own way"]
    assert sorted(len(alike) for alike in sorted_out) == [1, 1, 2, 6]
    assert {label.split()[0].strip(",") for alike in labels(sorted_out) if len(alike) == 6 for label, _ in alike} == {
        "scratch",
        "sskt",
        "fast",
    }
    assert [{label for label, _ in alike} for alike in labels(sorted_out) if len(alike) == 2] == [{"mixed"}]


def test_a_target_that_cannot_be_stacked_leaves_its_trials_alone(prepared):
    plan, _, _ = prepared
    target = TargetSettings(architecture="tests.pipeline.trials.test_lanes:forgetful")
    trials = [
        dataclasses.replace(planned, trial=dataclasses.replace(planned.trial, target=target))
        for planned in plan.trials[:2]
    ]
    sorted_out, (reason,) = stacks(trials)
    assert sorted_out == [[trials[0]], [trials[1]]]
    assert "test_lanes:forgetful" in reason
    assert "random" in reason


def forgetful(*, classes: int):
    """A target that draws random numbers in every step."""
    layers = torch.nn.Flatten(), torch.nn.Dropout(0.5), torch.nn.Linear(12 * 12, classes)
    return torch.nn.Sequential(*layers)


@pytest.mark.parametrize(
    ("lanes", "at_once", "sizes"), [(8, 1, [6]), (4, 1, [3, 3]), (8, 2, [3, 3]), (2, 1, [2, 2, 2]), (8, 6, [1] * 6)]
)
def test_groups_are_even_and_leave_no_room_idle(prepared, lanes, at_once, sizes):
    plan, _, _ = prepared
    made = list(groups(Fixed(alike(plan)), lanes=lanes, at_once=at_once))
    assert [len(group) for group in made] == sizes
    assert [planned for group in made for planned in group] == alike(plan)


def test_one_lane_asks_for_the_next_only_when_it_is_its_turn(prepared):
    supply = Fixed(prepared[0].trials[:3])
    one_by_one = groups(supply, lanes=1)
    next(one_by_one)
    assert supply.left == 2


def test_a_supply_of_groups_hands_out_each_once(prepared):
    plan, _, _ = prepared
    heard = []
    supply = Fixed(plan.trials)
    supply.learn = heard.append
    grouped, handed = Grouped(supply, lanes=4, at_once=1), []
    while grouped.left:
        first = grouped.next()
        handed += [first, *grouped.beside(first)]
    assert grouped.next() is None
    assert sorted(planned.run_key for planned in handed) == sorted(planned.run_key for planned in plan.trials)
    grouped.learn("so it ended")
    assert heard == ["so it ended"]


def test_together_each_has_the_result_it_has_alone(prepared):
    plan, materials, storage = prepared
    group = alike(plan)
    ends = run(group, materials)
    fused = {planned.run_key: read_result(storage, planned.run_key) for planned in group}
    networks = {planned.run_key: storage.read(network_key(planned.run_key)) for planned in group}
    forget(storage, group)
    for planned, ended in zip(group, ends, strict=True):
        expected = attempt(planned, materials, CPU)
        nearly(dataclasses.asdict(ended)["metrics"], expected.metrics, relative=1e-4)
        assert (ended.state, ended.epoch, ended.planned) == ("done", 3, planned)
        result, ours = read_result(storage, planned.run_key), fused[planned.run_key]
        assert ours.pop("fused") == ours.pop("side_by_side") == 6
        assert result.pop("side_by_side") == 1
        timed = ("seconds", "training_seconds", "waited_seconds")
        assert list(ours) == list(result)
        nearly(*({k: v for k, v in one.items() if k not in timed} for one in (ours, result)), relative=1e-4)
        assert len(networks[planned.run_key]) == len(storage.read(network_key(planned.run_key)))
    assert list(storage.keys("claims")) == list(storage.keys("checkpoints")) == []


def test_one_that_diverges_fails_alone_with_its_reason(prepared):
    plan, materials, storage = prepared
    calm, other = alike(plan)[:2]
    trial = dataclasses.replace(calm.trial, training=dataclasses.replace(calm.trial.training, lr=1e30))
    wild = plan.plan(trial)
    states = [(ended.state, ended.epoch) for ended in run([calm, wild, other], materials)]
    assert states == [("done", 3), ("failed", 0), ("done", 3)]
    assert "no longer finite in epoch 1" in read_failure(storage, wild.run_key).reason
    assert read_failure(storage, calm.run_key) is None


def test_what_is_done_or_anothers_is_none_of_the_stack(prepared, monkeypatch):
    plan, materials, storage = prepared
    found, busy, *rest = alike(plan)[:4]
    expected = attempt(found, materials, CPU)
    sizes, step = [], Stack.step
    monkeypatch.setattr(Stack, "step", lambda self, batches: sizes.append(len(batches)) or step(self, batches))
    storage.write(trial_claim(busy.run_key), seal({"builder": "other", "beat": 1, "place": "elsewhere", "pid": 1}))
    ends = run([found, busy, *rest], materials)
    assert ends[0] == dataclasses.replace(expected, seconds=0)
    assert ends[1] == Ended(planned=busy, state="busy")
    assert [ended.state for ended in ends[2:]] == ["done"] * 2
    assert sizes == [2] * 12


@pytest.mark.parametrize("together_first", [True, False])
def test_those_that_leave_go_on_alone_and_the_other_way_round(prepared, together_first):
    plan, materials, storage = prepared
    group = alike(plan)[:2]
    runs = [run, lambda group, materials, process=CPU: [attempt(one, materials, process) for one in group]]
    first, second = runs if together_first else runs[::-1]
    whole = {planned.run_key: ended.metrics for planned, ended in zip(group, second(group, materials), strict=True)}
    forget(storage, group)
    asked = {"count": 0}

    def leaving():
        asked["count"] += 1
        return asked["count"] > 12  # six steps of each where they step together

    left = first(group, materials, dataclasses.replace(CPU, leaving=leaving))
    assert "leaving" in {ended.state for ended in left}
    if together_first:
        assert {ended.reason for ended in left} == {"after 1 epochs and 2 of 4 steps"}
        assert {Checkpoints(storage, planned.run_key).load()["step"] for planned in group} == {2}
    for planned, ended in zip(group, second(group, materials), strict=True):
        assert ended.state == "done"
        nearly(ended.metrics, whole[planned.run_key], relative=1e-4)


def test_want_of_memory_starves_all_of_a_group(prepared, monkeypatch):
    plan, materials, storage = prepared

    def starve(self, batches):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")

    monkeypatch.setattr(Stack, "step", starve)
    ends = run(alike(plan)[:2], materials)
    assert [ended.state for ended in ends] == ["starved"] * 2
    assert list(storage.keys("claims")) == []


def test_an_error_of_the_storage_ends_one_and_another_all(prepared, monkeypatch):
    plan, materials, storage = prepared
    group, save = alike(plan)[:2], Checkpoints.save
    error = SsktError("the storage is away")

    def fail(self, state):
        if group[0].run_key in self.prefix:
            raise error
        save(self, state)

    monkeypatch.setattr(Checkpoints, "save", fail)
    assert [ended.state for ended in run(group, materials)] == ["failed", "done"]
    forget(storage, group)
    error = ZeroDivisionError("a mistake of ours")
    with pytest.raises(ZeroDivisionError):
        run(group, materials)
    assert list(storage.keys("claims")) == []


def test_materials_are_placed_once_for_all(prepared):
    plan, materials, _ = prepared
    process = dataclasses.replace(CPU, placed={})
    run(alike(plan), materials, process)
    assert id(materials.images) in process.placed
    assert len(process.placed) == 3, "images, labels, splits"
