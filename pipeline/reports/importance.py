"""Which of the things that varied mattered: a random forest learns the scores, then each is shuffled in turn."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.canonical import canonical
from pipeline.reports.report import Ending

FEWEST_TRIALS = 20
LEAST_EXPLAINED = 0.2
METHOD = "method and sources"


@dataclass(frozen=True, kw_only=True)
class Importance:
    """How much of what a forest knows goes when one axis is shuffled."""

    shares: dict[str, float]
    """Of each axis, adding up to 1, the largest first; empty where the forest explains too little to be asked."""
    explained: float
    """R2 on the trials that each tree has not seen."""
    trials: int


def importance(trials: Sequence[Ending]) -> Importance | None:
    """By validation, over the trials that trained to their end; None for too few, or where hardly anything varies."""
    done = [trial for trial in trials if trial.state == "done"]
    by_name = {name: column for name, column in _columns(done).items() if len(np.unique(column)) > 1}
    if len(done) < FEWEST_TRIALS or len(by_name) < 2:
        return None
    from sklearn.ensemble import RandomForestRegressor  # takes a second, and few reports ask
    from sklearn.inspection import permutation_importance

    x, y = np.stack(list(by_name.values()), axis=1), np.array([trial.validation for trial in done])
    forest = RandomForestRegressor(100, oob_score=True, min_samples_leaf=2, random_state=0).fit(x, y)
    explained, shares = float(forest.oob_score_), dict[str, float]()
    if explained >= LEAST_EXPLAINED:
        means = permutation_importance(forest, x, y, n_repeats=5, random_state=0).importances_mean.clip(min=0)
        found = sorted(zip(by_name, (means / means.sum()).tolist(), strict=True), key=lambda pair: -pair[1])
        shares = dict(found)
    return Importance(shares=shares, explained=explained, trials=len(done))


def _columns(trials: Sequence[Ending]) -> dict[str, NDArray[np.float64]]:
    paths = dict.fromkeys(path for trial in trials for path in trial.point if path != "sources")
    methods = _numbered([f"{trial.method} {'+'.join(trial.sources)}" for trial in trials])
    return {METHOD: methods} | {path: _numbered([trial.point.get(path) for trial in trials]) for path in paths}


def _numbered(values: Sequence[Any]) -> NDArray[np.float64]:
    """Numbers as they are, anything else by its place in the alphabet; absent ones lie below all."""
    if all(isinstance(value, int | float) for value in values if value is not None):
        known = [value for value in values if value is not None]
        return np.array([min(known) - 1 if value is None else value for value in values], float)
    spelled = ["" if value is None else canonical(value) for value in values]
    places = {name: place for place, name in enumerate(sorted(set(spelled)))}
    return np.array([places[name] for name in spelled], float)
