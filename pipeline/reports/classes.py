"""Which classes gain and which lose by a row of the table, and what is mistaken less or more than before."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.reports.evidence import Fate
from pipeline.reports.report import SCRATCH, Row

MOST_CLASSES, MOST_ROWS, MOST_MIXUPS, MOST_PAIRS = 24, 12, 6, 3
LEAST_POINTS = 0.5
"""Changes of a confusion that are told, in points of the images of its class."""

Cells = tuple[float | None, ...]


@dataclass(frozen=True, kw_only=True)
class Gains:
    """Change of every class against the baseline, in points."""

    baseline: str
    classes: tuple[str, ...]
    """Those that are shown; of many the ones that change most."""
    hidden: int
    rows: tuple[tuple[str, Cells], ...]
    largest: float
    agreement: tuple[str, ...]
    """How the changes of the best rows of two sets of sources correlate over the classes, in words."""


@dataclass(frozen=True, kw_only=True)
class Mixup:
    """A class that is taken for another, before and after, in percent of its images."""

    truth: str
    said: str
    before: float
    after: float


@dataclass(frozen=True, kw_only=True)
class Mixups:
    """What changed most in a confusion matrix."""

    label: str
    fewer: tuple[Mixup, ...]
    more: tuple[Mixup, ...]
    classes: tuple[str, ...] = ()
    matrix: tuple[tuple[str, tuple[tuple[float | None, bool], ...]], ...] = ()
    """Of few classes the whole change: of each class the points, and whether that is good."""
    largest: float = 1.0


def baseline_of(rows: Sequence[Row], fates: Mapping[str, Fate]) -> Row | None:
    """The scratch that is best by validation."""
    known = [row for row in rows if row.method == SCRATCH and row.label in fates]
    return max(known, key=lambda row: row.rank, default=None)


def gains_of(rows: Sequence[Row], fates: Mapping[str, Fate], classes: Sequence[str]) -> Gains | None:
    """Of the rows in their order, as many as fit; None without a baseline, or without anything to compare."""
    baseline = baseline_of(rows, fates)
    others = [row for row in rows if row.label in fates and row.method != SCRATCH][:MOST_ROWS]
    if baseline is None or not others:
        return None
    changes = np.stack([fates[row.label].score - fates[baseline.label].score for row in others])
    moved = np.nanmean(np.where(np.isnan(changes), 0, changes), axis=0)
    shown = sorted(np.argsort(-np.abs(moved), kind="stable")[:MOST_CLASSES], key=lambda place: -moved[place])
    if len(classes) <= MOST_CLASSES:
        shown = list(range(len(classes)))
    return Gains(
        baseline=baseline.label,
        classes=tuple(classes[place] for place in shown),
        hidden=len(classes) - len(shown),
        rows=tuple((row.label, _cells(change[shown])) for row, change in zip(others, changes, strict=True)),
        largest=float(np.nanmax(np.abs(changes), initial=1.0)),
        agreement=_agreement(others, changes),
    )


def _agreement(rows: Sequence[Row], changes: np.ndarray) -> tuple[str, ...]:
    """E.g. `mnist with lite0 r = +0.55`."""
    firsts = {row.sources: place for place, row in reversed(list(enumerate(rows))) if row.sources}
    told = []
    for (one, at), (other, there) in itertools.combinations(sorted(firsts.items(), key=lambda item: item[1]), 2):
        known = np.isfinite(changes[at]) & np.isfinite(changes[there])
        if known.sum() >= 3 and np.ptp(changes[at][known]) and np.ptp(changes[there][known]):
            r = float(np.corrcoef(changes[at][known], changes[there][known])[0, 1])
            names = " + ".join(one), " + ".join(other)
            told.append(f"{names[0]} with {names[1]} r = {r:+.2f}")
    return tuple(told[:MOST_PAIRS])


def mixups_of(row: Row, baseline: Row, fates: Mapping[str, Fate], classes: Sequence[str]) -> Mixups | None:
    """How the confusions of a row differ from the baseline's; None where they were not kept."""
    after, before = fates[row.label].confusion, fates[baseline.label].confusion
    if after is None or before is None:
        return None
    change = np.nan_to_num(after - before)
    np.fill_diagonal(change, 0.0)
    order = np.argsort(change, axis=None, kind="stable")
    places = [tuple(int(at) for at in np.unravel_index(flat, change.shape)) for flat in order]

    def told(some: Sequence[tuple[int, ...]]) -> tuple[Mixup, ...]:
        return tuple(
            Mixup(truth=classes[t], said=classes[s], before=float(before[t, s]), after=float(after[t, s]))
            for t, s in some
            if abs(change[t, s]) >= LEAST_POINTS
        )

    fewer = [place for place in places[:MOST_MIXUPS] if change[place] < 0]
    more = [place for place in places[::-1][:MOST_MIXUPS] if change[place] > 0]
    return Mixups(label=row.label, fewer=told(fewer), more=told(more), **_matrix(after - before, classes))


def _matrix(change: np.ndarray, classes: Sequence[str]) -> dict[str, object]:
    if len(classes) > MOST_CLASSES:
        return {}
    rows = tuple(
        (name, tuple((value, ((value or 0) > 0) == (place == at)) for place, value in enumerate(_cells(line))))
        for at, (name, line) in enumerate(zip(classes, change, strict=True))
    )
    return {"classes": tuple(classes), "matrix": rows, "largest": float(np.nanmax(np.abs(change), initial=1.0))}


def _cells(values: np.ndarray) -> Cells:
    return tuple(None if np.isnan(value) else float(value) for value in values)
