"""What passes between trials and Ray Tune; the real thing is in test_runners.py."""

from types import SimpleNamespace

import pytest
from ray import tune

from pipeline.trials.attempts import Ended
from pipeline.trials.tuning import Fixed, ended_trial, epoch_report, final_report, last_line, state_of_death, tune_all
from sskt.errors import SsktError

PLANNED = SimpleNamespace(run_key="k")


def test_known_trials_are_handed_out_once_in_their_order():
    supply = Fixed("abc")
    handed = []
    while supply.left:
        handed.append((supply.left, supply.next()))
    assert handed == [(3, "a"), (2, "b"), (1, "c")]
    assert supply.next() is None


@pytest.mark.parametrize("state", ["done", "failed", "starved", "busy"])
def test_an_ending_survives_its_report(state):
    ended = Ended(planned=PLANNED, state=state, score=71.5, reason="so it is", epoch=4, seconds=2.5)
    assert ended_trial(PLANNED, {"training_iteration": 7, **final_report(ended)}) == ended


def test_a_trial_whose_last_report_is_of_an_epoch_was_stopped():
    report = epoch_report({"epoch": 2, "loss": 0.1, "validation_accuracy": 61.0}, metric="accuracy")
    assert report == {"epoch": 2, "score": 61.0}
    assert ended_trial(PLANNED, report) == Ended(planned=PLANNED, state="stopped", score=61.0, epoch=2)


@pytest.mark.parametrize(
    ("reason", "state"),
    [
        ("ray.exceptions.OutOfMemoryError: Task was killed due to the node running low on memory.", "starved"),
        ("torch.OutOfMemoryError: CUDA out of memory.", "starved"),
        ("ray.exceptions.ActorDiedError: The actor died unexpectedly before finishing this task.", "failed"),
    ],
)
def test_a_death_for_want_of_memory_is_told_from_others(reason, state):
    assert state_of_death(reason) == state


def test_where_an_ending_cannot_be_told_the_cause_is_told_in_a_line(monkeypatch):
    class Tuner:
        def __init__(self, *_, **__):
            pass

        def fit(self):
            raise tune.TuneError("Traceback\n  ...\ncluster.stored.StorageError: s3://b/k cannot be written\n\n")

    monkeypatch.setattr(tune, "Tuner", Tuner)
    with pytest.raises(SsktError, match=r"^cluster.stored.StorageError: s3://b/k cannot be written$"):
        tune_all(Fixed("a"), lambda config: None, resources={"cpu": 1}, at_once=1, tell=print)


def test_of_an_error_its_end_is_told():
    assert last_line("Traceback\n  File\nValueError: no\n\n") == "ValueError: no"
