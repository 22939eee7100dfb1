from dataclasses import dataclass

import pytest

from cluster import metrics
from pipeline.progress import Progress
from pipeline.sweeps.standings import Standings
from pipeline.trials.attempts import Ended


@dataclass
class Named:
    label: str

    @property
    def trial(self):
        return self


@pytest.fixture
def standings():
    return Standings(Progress("sweep", total=9, unit="trials"))


def enter(standings, label, state="done", score=None):
    standings.enter(Ended(planned=Named(label), state=state, score=score))


def test_nothing_is_said_of_nothing(standings):
    assert standings.line() == ""


def test_the_best_three_lead_with_their_intervals(standings):
    for label, scores in {"scratch": [80.0], "kd": [70.0], "sskt": [90.0, 92.0], "embed": [85.0]}.items():
        for score in scores:
            enter(standings, label, score=score)
    # t(0.975, 1 degree of freedom) = 12.706, times the deviation sqrt(2), by sqrt(2).
    assert standings.line() == "best sskt 91.0 ± 12.7, embed 85.0, scratch 80.0"


def test_what_failed_or_was_stopped_is_counted_and_does_not_lead(standings):
    enter(standings, "kd", "failed")
    enter(standings, "sskt", "stopped", 99.0)
    assert standings.line() == "1 failed, 1 stopped"
    enter(standings, "scratch", score=50.0)
    assert standings.line() == "1 failed, 1 stopped; best scratch 50.0"


def test_operators_see_what_is_left_and_what_became_of_the_rest(monkeypatch):
    monkeypatch.setattr(metrics, "_STATE", metrics._State())
    standings = Standings(Progress("sweep", total=9, unit="trials"))
    for state in ("busy", "starved", "failed", "stopped", "done", "done"):
        enter(standings, "kd", state, 1.0)
    shown = {dict(figure.labels)["state"]: value for figure, value in metrics._STATE.ledger.news().items()}
    assert shown == {"left": 5, "done": 2, "failed": 1, "stopped": 1}


def test_what_is_run_once_more_is_not_over(standings):
    for state in ("busy", "starved", "failed", "stopped", "done"):
        enter(standings, "kd", state, 1.0)
    assert standings._progress.done == 3
