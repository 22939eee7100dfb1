"""One attempt at a trial: claims, endings, and what is recorded of them."""

import dataclasses
import os

import pytest
import torch

from pipeline.caches import claims as claiming
from pipeline.caches.claims import place
from pipeline.canonical import seal, unseal
from pipeline.planning.experiment import load_experiment
from pipeline.stages import Stages
from pipeline.trials import attempts
from pipeline.trials.attempts import Ended, attempt, is_out_of_memory, trial_claim
from pipeline.trials.checkpoints import Checkpoints
from pipeline.trials.results import read_failure, read_result, seconds_of
from pipeline.trials.trials import Process, gather_materials
from sskt.errors import DivergedError, LeavingError

CPU = Process(device=torch.device("cpu"), threads=1)


@pytest.fixture
def scratch(experiment_file):
    """A trial that needs no cache, its materials, the storage."""
    stages = Stages(load_experiment(str(experiment_file)), lambda line: None)
    plan = stages.pack()
    return plan.trials[0], gather_materials(plan, stages.storage, plan.trials[:1]), stages.storage


def raising(monkeypatch, error):
    def run_trial(*_):
        raise error

    monkeypatch.setattr(attempts, "trial_steps", run_trial)


def claims(storage):
    return list(storage.keys("claims"))


def test_what_is_done_is_found_and_counts_no_time(scratch):
    planned, materials, storage = scratch
    ended = attempt(planned, materials, CPU)
    result = read_result(storage, planned.run_key)
    assert (ended.state, ended.epoch, ended.seconds) == ("done", 3, result["seconds"])
    assert ended.score == result["validation"]["accuracy"]
    assert attempt(planned, materials, CPU) == dataclasses.replace(ended, seconds=0)
    assert claims(storage) == []


def test_a_try_takes_over_from_one_of_the_same_errand_wherever_that_was(scratch):
    planned, materials, storage = scratch
    elsewhere = {"builder": "another", "errand": "this", "beat": 3, "place": "a machine that was lost", "pid": 1}
    storage.write(trial_claim(planned.run_key), seal(elsewhere))
    assert attempt(planned, materials, CPU).state == "busy"
    assert attempt(planned, materials, dataclasses.replace(CPU, errand="other")).state == "busy"
    assert attempt(planned, materials, dataclasses.replace(CPU, errand="this")).state == "done"
    assert claims(storage) == []


def test_a_claim_is_held_while_the_trial_runs(scratch, monkeypatch):
    planned, materials, storage = scratch
    held = []

    def run_trial(*_):
        held.append(unseal(storage.read(trial_claim(planned.run_key)))["pid"])
        held.append(attempt(planned, materials, CPU).state)
        raise DivergedError("enough")

    monkeypatch.setattr(attempts, "trial_steps", run_trial)
    attempt(planned, materials, CPU)
    assert held == [os.getpid(), "busy"]
    assert claims(storage) == []


def test_what_another_trains_is_left_to_it(scratch, monkeypatch):
    planned, materials, storage = scratch
    raising(monkeypatch, AssertionError("it must not be trained"))
    foreign = seal({"builder": "other", "beat": 1, "place": "elsewhere", "pid": 1})
    storage.write(trial_claim(planned.run_key), foreign)
    assert attempt(planned, materials, CPU) == Ended(planned=planned, state="busy")
    assert storage.read(trial_claim(planned.run_key)) == foreign


def test_the_claim_of_a_process_of_this_machine_that_is_gone_counts_no_more(scratch):
    planned, materials, storage = scratch
    gone = {"builder": "other", "beat": 1, "place": place(), "pid": 2**22 + 1}
    storage.write(trial_claim(planned.run_key), seal(gone))
    assert attempt(planned, materials, CPU).state == "done"


def test_a_diverged_training_leaves_its_reason_and_its_last_good_epoch(scratch, monkeypatch):
    planned, materials, storage = scratch
    error = DivergedError("the loss is no longer finite in epoch 3")
    error.last = {"epoch": 2, "loss": 0.5}
    raising(monkeypatch, error)
    ended = attempt(planned, materials, CPU)
    assert (ended.state, ended.reason) == ("failed", "the loss is no longer finite in epoch 3")
    failure = read_failure(storage, planned.run_key)
    assert (failure.reason, failure.last) == (ended.reason, {"epoch": 2, "loss": 0.5})
    assert claims(storage) == []


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB\nmore"),
        MemoryError("none left"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes"),
    ],
)
def test_a_trial_without_memory_is_no_failure_yet(scratch, monkeypatch, error):
    planned, materials, storage = scratch
    raising(monkeypatch, error)
    ended = attempt(planned, materials, CPU)
    assert (ended.state, ended.reason) == ("starved", str(error).splitlines()[0])
    assert read_failure(storage, planned.run_key) is None
    assert claims(storage) == []


def test_an_error_that_nobody_expected_ends_the_process_and_gives_the_claim_up(scratch, monkeypatch):
    planned, materials, storage = scratch
    raising(monkeypatch, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="mat1"):
        attempt(planned, materials, CPU)
    assert claims(storage) == []
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


def test_a_trial_that_leaves_gives_its_claim_up_and_goes_on_in_another_process(scratch):
    planned, materials, storage = scratch
    whole = dataclasses.replace(attempt(planned, materials, CPU), seconds=0)
    undisturbed = read_result(storage, planned.run_key)
    storage.delete(f"results/{planned.run_key}.json")
    asked = iter([False] * 6 + [True])
    left = attempt(planned, materials, dataclasses.replace(CPU, leaving=lambda: next(asked)))
    assert left == Ended(planned=planned, state="leaving", reason="after 1 epochs and 2 of 4 steps")
    assert claims(storage) == []
    assert read_failure(storage, planned.run_key) is None
    assert list(storage.keys("checkpoints")) == [
        f"checkpoints/{planned.run_key}/epoch-000001",
        f"checkpoints/{planned.run_key}/epoch-000001-step-000002",
    ]
    assert dataclasses.replace(attempt(planned, materials, CPU), seconds=0) == whole
    result = read_result(storage, planned.run_key)
    assert result["history"] == undisturbed["history"]
    assert undisturbed["earlier_seconds"] == 0 < result["earlier_seconds"] < result["training_seconds"]
    assert seconds_of(result) == result["seconds"] + result["earlier_seconds"] > result["training_seconds"]
    assert list(storage.keys("checkpoints")) == []


def test_a_trial_that_was_given_up_while_its_storage_was_away_leaves_it_to_who_has_it_now(scratch, monkeypatch):
    planned, materials, storage = scratch
    whole = dataclasses.replace(attempt(planned, materials, CPU), seconds=0)
    storage.delete(f"results/{planned.run_key}.json")
    theirs = seal({"builder": "another", "beat": 1, "place": "elsewhere", "pid": 1})
    save = Checkpoints.save

    def save_late(checkpoints, state):
        save(checkpoints, state)
        if state["epoch"] == 2:
            monkeypatch.setattr(claiming, "BEAT", 0.0)  # as if it had waited for longer than two
            storage.write(trial_claim(planned.run_key), theirs)

    monkeypatch.setattr(Checkpoints, "save", save_late)
    ended = attempt(planned, materials, CPU)
    monkeypatch.undo()
    assert (ended.state, "others go on with it" in ended.reason) == ("busy", True)
    assert storage.read(trial_claim(planned.run_key)) == theirs
    assert read_result(storage, planned.run_key) is None
    assert read_failure(storage, planned.run_key) is None
    assert Checkpoints(storage, planned.run_key).newest_epoch() == 2
    storage.delete(trial_claim(planned.run_key))
    assert dataclasses.replace(attempt(planned, materials, CPU), seconds=0) == whole


def test_an_ending_that_was_asked_for_is_no_failure(scratch, monkeypatch):
    planned, materials, storage = scratch
    raising(monkeypatch, LeavingError("after 0 epochs and 0 of 4 steps"))
    assert attempt(planned, materials, CPU).state == "leaving"
    assert read_failure(storage, planned.run_key) is None
