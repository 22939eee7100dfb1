"""What lies behind the numbers of a report: curves, what became of every class, what was trained on what."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cluster.storage import Storage
from pipeline.forecasts.records import Compared
from pipeline.reports.report import Report
from pipeline.trials.results import Result, read_results

MOST_TRIALS = 1000
"""Trials that are shown one by one; of longer sweeps those of the table come first."""

Numbers = NDArray[np.floating]


@dataclass(frozen=True, kw_only=True, slots=True)
class Seen:
    """What is kept of a result."""

    curve: Numbers
    """The metric on the validation split after each epoch, [epochs]."""
    losses: Numbers
    """What was minimised, [epochs]."""
    by_class: dict[str, Numbers]
    """As `sskt.metrics.by_class` counted it; empty in results that are older than that."""
    hardware: str
    versions: str
    side_by_side: int
    stalled: float | None
    """Part of its time that the host waited for batches, where that was measured."""


@dataclass(frozen=True, kw_only=True)
class Fate:
    """How the classes fare in a row of the table."""

    score: Numbers
    """Of each class in percent, [C]: images taken for what they are, or average precision; nan where there are none."""
    confusion: Numbers | None = None
    """Part of the images of a class (row) taken for another (column), in percent, [C, C]."""


@dataclass(frozen=True)
class Evidence:
    """What lies behind a report."""

    seen: dict[str, Seen]
    """By run key, of those of the trials that are done."""
    shown: tuple[str, ...] = ()
    """The run keys of the trials that are shown one by one."""
    fates: dict[str, Fate] = field(default_factory=dict)
    """By label of a row."""
    forecast: Sequence[Compared] = ()
    """The newest forecast beside what came, where there is one."""

    @property
    def hardware(self) -> Counter[str]:
        """How many trainings ran on what."""
        return Counter(one.hardware for one in self.seen.values())

    @property
    def versions(self) -> Counter[str]:
        """How many trainings ran by which versions."""
        return Counter(one.versions for one in self.seen.values())

    @property
    def stalled(self) -> float | None:
        """Mean part of the trainings' time that went by waiting for batches; None where it was not measured."""
        known = [one.stalled for one in self.seen.values() if one.stalled is not None]
        return float(np.mean(known)) if known else None


def gather_evidence(report: Report, storage: Storage) -> Evidence:
    """Read what is shown beside the numbers."""
    shown = tuple(trial.run_key for trial in report.trials[:MOST_TRIALS])
    seen = read_results(storage, shown, reduce=_see)
    fates = {
        row.label: _fate([seen[key].by_class for key in row.run_keys.values() if key in seen]) for row in report.rows
    }
    return Evidence(seen, shown, {label: fate for label, fate in fates.items() if fate is not None})


def _see(result: Result) -> Seen:
    metric, history, versions = result["metric"], result.get("history", ()), result.get("versions", {})
    names = {name: versions.get(name, "unknown") for name in ("torch", "python", "commit", "device")}
    waited, trained = result.get("waited_seconds"), result.get("training_seconds")
    return Seen(
        curve=np.array([epoch[f"validation_{metric}"] for epoch in history], np.float32),
        losses=np.array([epoch.get("loss", np.nan) for epoch in history], np.float32),
        by_class={name: np.array(numbers, np.float32) for name, numbers in result.get("by_class", {}).items()},
        hardware=f"{names['device']}, {result.get('processes', 1)} process(es) each",
        versions=f"torch {names['torch']}, Python {names['python']}, commit {names['commit'][:12] or 'unknown'}",
        side_by_side=result.get("side_by_side", 1),
        stalled=waited / trained if waited is not None and trained else None,
    )


def _fate(counted: Sequence[Mapping[str, Any]]) -> Fate | None:
    """Of the trainings of a row together; None where one of them did not count."""
    if not counted or not all(counted):
        return None
    if "average_precision" in counted[0]:
        return Fate(score=np.mean([one["average_precision"] for one in counted], axis=0))
    if "confusion" in counted[0]:
        counts = np.sum([one["confusion"] for one in counted], axis=0)
        images = counts.sum(axis=1)
        with np.errstate(invalid="ignore"):
            parts = 100 * counts / images[:, None]
        return Fate(score=np.diag(parts).copy(), confusion=parts)
    images, hits = (np.sum([one[name] for one in counted], axis=0) for name in ("images", "hits"))
    with np.errstate(invalid="ignore"):
        return Fate(score=100 * hits / images)
