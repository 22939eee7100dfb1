"""The report's page, written anew while a sweep goes on."""

import time

from cluster.storage import Storage
from pipeline.planning.plan import Plan
from pipeline.reports.report import report_experiment
from pipeline.reports.write import write_report
from pipeline.watching.snapshot import Snapshot

EVERY = 15
"""Seconds from one writing to the next, and after which an open page loads itself again."""


class LivePage:
    """Writes the report whenever trials have ended; the last time, when all have, as a page that stays as it is."""

    def __init__(self, plan: Plan, storage: Storage) -> None:
        self._plan, self._storage = plan, storage
        self._shown: list[str] | None = None
        self._at = 0.0

    def follow(self, snapshot: Snapshot, *, now: float | None = None) -> bool:
        """Write the page if it would be another one; return whether it was written. now: seconds, of any clock."""
        now = time.monotonic() if now is None else now
        states = [trial.state if trial.state in ("done", "stopped", "failed") else "" for trial in snapshot.trials]
        early = self._shown is not None and now - self._at < EVERY and not snapshot.over
        if early or states == self._shown:
            return False
        report = report_experiment(self._plan, self._storage)
        write_report(self._plan, report, self._storage, refresh=None if snapshot.over else EVERY)
        self._shown, self._at = states, now
        return True
