"""What a watcher sees is what lies on the storage, and nothing is read twice."""

import dataclasses

import pytest

from pipeline.caches.labels import record_key
from pipeline.caches.segments import segments_of
from pipeline.planning.experiment import load_experiment
from pipeline.stages import Stages
from pipeline.trials.attempts import trial_claim
from pipeline.trials.checkpoints import Checkpoints
from pipeline.trials.results import write_failure, write_result
from pipeline.watching.snapshot import Watcher


@pytest.fixture
def begun(experiment_file):
    stages = Stages(load_experiment(str(experiment_file), changes=["training.epochs=4"]), lambda line: None)
    return stages.pack(), stages.storage


def finish(storage, planned, score):
    write_result(storage, planned.run_key, {"metric": "accuracy", "validation": {"accuracy": score}})


def test_nothing_has_begun(begun):
    plan, storage = begun
    seen = Watcher(plan, storage).look()
    assert {trial.state for trial in seen.trials} == {"waiting"}
    assert seen.epochs == (0, 4 * len(plan.trials))
    assert all(cache.made == 0 < cache.shards for cache in seen.caches)
    assert not seen.over


def test_trials_are_in_the_state_they_are_in(begun):
    plan, storage = begun
    done, failed, running, again = plan.trials[:4]
    finish(storage, done, 71.5)
    write_failure(storage, failed.run_key, "the loss is no longer finite")
    write_failure(storage, again.run_key, "it died")
    for planned in (running, again):
        storage.write(trial_claim(planned.run_key), b"{}")
    Checkpoints(storage, running.run_key).save({"epoch": 3})
    seen = Watcher(plan, storage).look()
    told = [(trial.state, trial.epoch, trial.score, trial.reason) for trial in seen.trials[:4]]
    assert told == [
        ("done", 4, 71.5, ""),
        ("failed", 0, None, "the loss is no longer finite"),
        ("running", 3, None, ""),
        ("running", 0, None, ""),  # tried again after it had failed
    ]
    assert seen.epochs == (4 + 4 + 3, 4 * len(plan.trials))
    assert [seen.count(state) for state in ("done", "failed", "running")] == [1, 1, 2]


def test_it_is_over_when_every_trial_has_ended(begun):
    plan, storage = begun
    watcher = Watcher(plan, storage)
    for planned in plan.trials[:-1]:
        finish(storage, planned, 50.0)
    assert not watcher.look().over
    write_failure(storage, plan.trials[-1].run_key, "it died")
    last = watcher.look()
    assert last.over
    assert last.epochs[0] == last.epochs[1]
    assert not dataclasses.replace(last, trials=()).over  # a search that has proposed nothing yet


def test_shards_are_counted_as_they_are_recorded(begun):
    plan, storage = begun
    (source, specs), *_ = plan.caches_for().items()
    (name, spec), *_ = specs.items()
    segment = segments_of(storage, spec)[0]
    for shard in range(segment.shards):
        seen = next(one for one in Watcher(plan, storage).look().caches if one.name == f"{source} {name}")
        assert (seen.made, seen.shards, seen.whole) == (shard, segment.shards, False)
        storage.write(record_key(segment, shard), b"{}")
    assert next(one for one in Watcher(plan, storage).look().caches if one.name == f"{source} {name}").whole


def test_a_result_is_read_once(begun, monkeypatch):
    plan, storage = begun
    finish(storage, plan.trials[0], 60.0)
    watcher = Watcher(plan, storage)
    watcher.look()
    read, asked = type(storage).read, []
    monkeypatch.setattr(type(storage), "read", lambda self, key: asked.append(key) or read(self, key))
    finish(storage, plan.trials[1], 61.0)
    assert watcher.look().count("done") == 2
    assert [key for key in asked if key.startswith("results/")] == [f"results/{plan.trials[1].run_key}.json"]
