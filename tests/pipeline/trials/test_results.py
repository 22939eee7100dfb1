import threading
from dataclasses import replace

import pytest

from cluster.storage import FolderStorage
from pipeline.planning.experiment import load_experiment
from pipeline.stages import Stages
from pipeline.trials.results import (
    OTHER_TORCH,
    Failure,
    Stopped,
    existing_results,
    older_names,
    older_results,
    read_failure,
    read_failures,
    read_result,
    read_results,
    stopped_trials,
    write_failure,
    write_result,
    write_stopped,
)
from sskt.errors import DamagedError

STOPPED = Stopped(run_key="a", label="sskt, lr 0.1", epoch=3, epochs=30, score=61.2, by="asha", reason="too low")


class Counting(FolderStorage):
    """Counts what is asked of it."""

    def __init__(self, root):
        super().__init__(root)
        self.reads, self.listings, self.threads = [], [], set()

    def read(self, key):
        self.reads.append(key)
        self.threads.add(threading.current_thread().name)
        return super().read(key)

    def keys(self, prefix):
        self.listings.append(prefix)
        return super().keys(prefix)


def test_the_first_result_of_a_training_stands(tmp_path):
    storage = FolderStorage(str(tmp_path))
    assert read_result(storage, "key") is None
    write_result(storage, "key", {"test_accuracy": 1.0})
    write_result(storage, "key", {"test_accuracy": 2.0})
    assert read_result(storage, "key") == {"test_accuracy": 1.0}


def test_what_there_is_is_known_from_one_listing(tmp_path):
    storage = Counting(str(tmp_path))
    assert existing_results(storage) == set()
    for key in ("one", "two"):
        write_result(storage, key, {})
    write_failure(storage, "three", "died")
    storage.listings.clear()
    assert existing_results(storage) == {"one", "two"}
    assert (storage.listings, storage.reads) == (["results"], [])


def test_results_are_reduced_where_they_are_read(tmp_path):
    storage = Counting(str(tmp_path))
    for number in range(50):
        write_result(storage, f"key{number}", {"number": number})
    found = read_results(storage, ["none", *(f"key{n}" for n in range(40))], reduce=lambda result: result["number"])
    assert found == {f"key{n}": n for n in range(40)}
    assert threading.current_thread().name not in storage.threads


def test_a_result_that_reduces_to_nought_is_a_result(tmp_path):
    storage = FolderStorage(str(tmp_path))
    write_result(storage, "key", {"seconds": 0.0})
    assert read_results(storage, ["key"], reduce=lambda result: result["seconds"]) == {"key": 0.0}


def test_a_failure_is_kept_until_the_training_succeeds(tmp_path):
    storage = FolderStorage(str(tmp_path))
    write_failure(storage, "key", "out of patience")
    assert read_failure(storage, "key") == Failure("out of patience", tries=1, last=None)
    write_failure(storage, "key", "died", tries=2, last={"epoch": 3, "validation_accuracy": 71.2})
    assert read_failure(storage, "key") == Failure("died", tries=2, last={"epoch": 3, "validation_accuracy": 71.2})
    write_result(storage, "key", {"test_accuracy": 1.0})
    assert read_failure(storage, "key") is None


def test_of_many_trainings_only_those_that_failed_are_read(tmp_path):
    storage = Counting(str(tmp_path))
    for key in ("b", "d", "of another experiment"):
        write_failure(storage, key, f"{key} died")
    assert read_failures(storage, "abcd") == {"b": Failure("b died"), "d": Failure("d died")}
    assert sorted(storage.reads) == ["failures/b.json", "failures/d.json"]


def test_a_damaged_result_is_named_by_whatever_thread_reads_it(tmp_path):
    storage = FolderStorage(str(tmp_path))
    storage.write("results/key.json", b'{"test_acc')
    with pytest.raises(DamagedError, match=r"results/key\.json is damaged"):
        read_result(storage, "key")
    with pytest.raises(DamagedError, match=r"results/key\.json is damaged"):
        read_results(storage, ["key"], reduce=len)


def test_a_stopped_trial_is_recorded_once_and_by_its_search(tmp_path):
    storage = FolderStorage(str(tmp_path))
    write_stopped(storage, "search", "a", STOPPED)
    write_stopped(storage, "search", "a", replace(STOPPED, epoch=9))
    write_stopped(storage, "search", "b", replace(STOPPED, run_key="b", score=None))
    write_stopped(storage, "another", "c", replace(STOPPED, run_key="c"))
    assert stopped_trials(storage, "search") == {"a": STOPPED, "b": replace(STOPPED, run_key="b", score=None)}
    assert stopped_trials(storage, "none") == {}


@pytest.fixture
def plan(experiment_file):
    return Stages(load_experiment(str(experiment_file)), lambda line: None).pack()


def specs_of(plan):
    return [cache for by_name in plan.caches_for(plan.trials).values() for cache in by_name.values()]


def planned_by(experiment_file, monkeypatch, *, torch="2.14", semantics=1):
    """The same experiment, planned where another torch is installed, or by an older version of this project."""
    monkeypatch.setattr("pipeline.planning.plan.torch_version", lambda: torch)
    monkeypatch.setattr("pipeline.planning.plan.SEMANTICS", semantics)
    return Stages(load_experiment(str(experiment_file)), lambda line: None).pack()


@pytest.mark.parametrize(
    ("other", "now", "told"),
    [
        ({"torch": "2.13"}, {"torch": "2.14"}, "torch 2.13"),
        ({"torch": "2.20"}, {"torch": "2.12"}, "torch 2.20"),
        ({"torch": "2.14", "semantics": 1}, {"torch": "2.14", "semantics": 3}, "torch 2.14, semantics 1"),
        ({"torch": "2.13", "semantics": 2}, {"torch": "2.14", "semantics": 3}, "torch 2.13, semantics 2"),
        ({"torch": "2.14"}, {"torch": "2.14"}, None),
        ({"torch": "2.14", "semantics": 3}, {"torch": "2.14", "semantics": 2}, None),
        ({"torch": "1.13"}, {"torch": "2.14"}, None),
    ],
)
def test_results_of_other_versions_are_found(experiment_file, monkeypatch, other, now, told):
    """Scratch reads no cache; sskt reads one whose name holds the version too."""
    existing = {planned.run_key for planned in planned_by(experiment_file, monkeypatch, **other).trials}
    plan = planned_by(experiment_file, monkeypatch, **now)
    names = older_names(specs_of(plan))
    assert {planned.trial.method for planned in plan.trials} == {"scratch", "sskt"}
    assert [older_results(planned, existing, names=names) for planned in plan.trials] == [told] * 4


def test_where_nothing_is_there_nothing_is_older(plan):
    names = older_names(specs_of(plan))
    assert set(names) == set(OTHER_TORCH)
    assert older_results(plan.trials[0], set(), names=names) is None
    assert older_results(plan.trials[0], {plan.trials[1].run_key}, names=names) is None
