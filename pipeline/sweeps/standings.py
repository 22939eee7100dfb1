"""How a sweep is going: what is done, and which trials lead so far."""

from collections import Counter

from cluster.metrics import put
from pipeline.progress import Progress
from pipeline.statistics import half_interval, summarise
from pipeline.trials.attempts import Ended, State

SHOWN = 3
"""How many leaders a line has room for."""


class Standings:
    """Counts endings and keeps validation scores by label; those of the test split stay unseen until the report."""

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._scores: dict[str, list[float]] = {}
        self.states: Counter[State] = Counter()
        self._show()

    def enter(self, ended: Ended) -> None:
        """Take an ending in and show it."""
        self.states[ended.state] += 1
        if ended.state == "done" and ended.score is not None:
            self._scores.setdefault(ended.planned.trial.label, []).append(ended.score)
        over = ended.state in ("done", "failed", "stopped")
        self._progress.advance(int(over), note=self.line())
        self._show()

    def _show(self) -> None:
        """What operators see of it."""
        put("sskt_trials", self._progress.total - self._progress.done, state="left")
        for state in ("done", "failed", "stopped"):
            put("sskt_trials", self.states[state], state=state)

    def line(self) -> str:
        """E.g. `2 failed, 1 stopped; best sskt mnist 91.2 ± 1.1, kd mnist 88.0`."""
        counts = ", ".join(f"{self.states[state]} {state}" for state in ("failed", "stopped") if self.states[state])
        leaders = sorted(self._scores.items(), key=lambda item: -sum(item[1]) / len(item[1]))[:SHOWN]
        best = ", ".join(f"{label} {_score(scores)}" for label, scores in leaders)
        return "; ".join(part for part in (counts, f"best {best}" if best else "") if part)


def _score(scores: list[float]) -> str:
    """The mean with the half width of its 95 % interval."""
    reach = half_interval(scores)
    return f"{summarise(scores).mean:.1f}" + (f" ± {reach:.1f}" if reach is not None else "")
