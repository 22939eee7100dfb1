"""Means, spreads and paired comparisons over seeds."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

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
    differences = np.array([scores[seed] - baseline[seed] for seed in shared])
    mean = float(differences.mean())
    if len(shared) < 2:
        return Change(mean, None, None, len(shared))
    reach = stats.t.ppf(0.5 + CONFIDENCE / 2, len(shared) - 1) * differences.std(ddof=1) / np.sqrt(len(shared))
    return Change(mean, mean - float(reach), mean + float(reach), len(shared))
