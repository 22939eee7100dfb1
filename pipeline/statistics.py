"""Means, spreads and paired comparisons over seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
from scipy.special import stdtr, stdtrit

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Summary:
    """Mean and sample standard deviation of n numbers; no deviation for a single one."""

    mean: float
    std: float | None
    n: int


@dataclass(frozen=True)
class Change:
    """Mean difference to a baseline over the seeds both have, and its confidence interval."""

    mean: float
    low: float | None
    high: float | None
    n: int
    p: float | None = None
    """Of a paired t test, two-sided: how often seeds alone would differ as much or more."""
    corrected: float | None = None
    """The same after Holm's correction for all comparisons of a table; None before it."""

    @property
    def verdict(self) -> str:
        """What the interval allows to say."""
        if self.low is None or self.high is None:
            return "too few seeds to say"
        if self.low > 0:
            return "helps"
        return "hurts" if self.high < 0 else "no clear change"


def summarise(values: Sequence[float]) -> Summary:
    """Summarise the scores of a group of trials."""
    std = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return Summary(float(np.mean(values)), std, len(values))


def compare(scores: Mapping[int, float], baseline: Mapping[int, float]) -> Change | None:
    """Compare scores by seed with a baseline's: a paired t interval, for trials of one seed share labels and order."""
    shared = sorted(scores.keys() & baseline.keys())
    if not shared:
        return None
    differences = [scores[seed] - baseline[seed] for seed in shared]
    mean, reach = float(np.mean(differences)), half_interval(differences)
    if reach is None:
        return Change(mean, None, None, len(shared))
    return Change(mean, mean - reach, mean + reach, len(shared), paired_p(differences))


def paired_p(differences: Sequence[float]) -> float:
    """Two-sided p of the t test that paired differences, two at least, have a mean of 0."""
    mean, error = float(np.mean(differences)), float(np.std(differences, ddof=1)) / len(differences) ** 0.5
    if not error:
        return 1.0 if mean == 0 else 0.0
    return 2 * float(stdtr(len(differences) - 1, -abs(mean / error)))


def holm(ps: Sequence[float]) -> list[float]:
    """Corrected p of several tests, by Holm: the chance that any of them finds what is not there stays as said."""
    corrected, highest = [0.0] * len(ps), 0.0
    for rank, place in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        highest = max(highest, min(1.0, (len(ps) - rank) * ps[place]))
        corrected[place] = highest
    return corrected


def correct(changes: Sequence[Change | None]) -> list[Change | None]:
    """The same comparisons, with their p corrected for the number of them."""
    places = [place for place, change in enumerate(changes) if change and change.p is not None]
    corrected = dict(zip(places, holm([changes[place].p for place in places]), strict=True))
    return [change and replace(change, corrected=corrected.get(place)) for place, change in enumerate(changes)]


def half_interval(values: Sequence[float]) -> float | None:
    """Half the width of the 95 % t interval of the mean; None for fewer than two numbers."""
    if len(values) < 2:
        return None
    return _t_quantile(len(values) - 1) * float(np.std(values, ddof=1)) / len(values) ** 0.5


def expected_mean(seen: Summary, more: int) -> tuple[float, float]:
    """Where the mean of `more` new numbers lies 95 times in 100, if they are like those summarised, two at least."""
    assert seen.std is not None  # noqa: S101 (said above)
    reach = _t_quantile(seen.n - 1) * seen.std * (1 / seen.n + 1 / more) ** 0.5
    return seen.mean - reach, seen.mean + reach


@cache
def _t_quantile(freedom: int) -> float:
    return float(stdtrit(freedom, 0.5 + CONFIDENCE / 2))
