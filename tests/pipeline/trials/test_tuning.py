"""What passes between trials and Ray Tune; the real thing is in test_runners.py."""

import logging
import sys
from types import SimpleNamespace

import pytest
from ray import tune
from ray.exceptions import RayActorError

from pipeline.trials.attempts import Ended
from pipeline.trials.tuning import (
    Fixed,
    died_trials,
    ended_trial,
    ended_trials,
    epoch_report,
    final_report,
    is_news,
    last_line,
    leave,
    state_of_death,
    tune_all,
)
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
    ended = Ended(planned=PLANNED, state=state, score=71.5, reason="so it is", epoch=4, seconds=2.5, metrics={"a": 1.0})
    assert ended_trial(PLANNED, {"training_iteration": 7, **final_report(ended)}) == ended


def test_the_endings_of_trials_in_one_process_survive_its_report():
    ends = [
        Ended(planned=SimpleNamespace(run_key=key), state=state, reason=key, epoch=2)
        for key, state in (("a", "done"), ("b", "failed"), ("c", "leaving"))
    ]
    config = {"planned": ends[0].planned, "beside": (ends[1].planned, ends[2].planned)}
    assert ended_trials(config, {"training_iteration": 1, **final_report(*ends)}) == ends


def test_those_that_died_together_are_to_be_tried_with_fewer_beside_them():
    one, other = SimpleNamespace(run_key="a"), SimpleNamespace(run_key="b")
    assert died_trials({"planned": one, "beside": ()}, "it died") == [
        Ended(planned=one, state="failed", reason="it died", died=True)
    ]
    assert died_trials({"planned": one, "beside": (other,)}, "it died") == [
        Ended(planned=planned, state="starved", reason="it died") for planned in (one, other)
    ]


def test_a_trial_whose_last_report_is_of_an_epoch_was_stopped():
    report = epoch_report({"epoch": 2, "loss": 0.1, "validation_accuracy": 61.0}, metric="accuracy")
    metrics = {"epoch": 2, "loss": 0.1, "validation_accuracy": 61.0}
    assert report == {"epoch": 2, "score": 61.0, "metrics": metrics}
    assert ended_trial(PLANNED, report) == Ended(planned=PLANNED, state="stopped", score=61.0, epoch=2, metrics=metrics)


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


def test_a_trial_that_leaves_says_so_and_ends_as_one_whose_node_was_lost(monkeypatch):
    reports = []
    monkeypatch.setattr(tune, "report", reports.append)
    ended = Ended(planned=PLANNED, state="leaving", reason="10.0.0.2, which goes")
    with pytest.raises(RayActorError, match=r"leaves 10.0.0.2, which goes") as raised:
        leave(ended)
    assert raised.value.preempted
    assert [ended_trial(PLANNED, report) for report in reports] == [ended]


def test_of_what_tune_logs_all_is_news_but_that_a_node_goes():
    def record(error: Exception | None) -> logging.LogRecord:
        try:
            raise error or ValueError
        except Exception:  # noqa: BLE001 (whatever it is)
            info = sys.exc_info() if error else None
        return logging.LogRecord("ray.tune", logging.ERROR, "", 1, "Trial task failed", (), info)

    assert is_news(record(None))
    assert is_news(record(ArithmeticError("broken")))
    assert is_news(record(RayActorError()))
    assert not is_news(record(RayActorError(preempted=True)))
