"""What the page's script shows of a trial when it is opened."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

from pipeline.reports.evidence import Evidence
from pipeline.reports.report import Ending, Report
from pipeline.reports.spending import took
from sskt.metrics import TITLES


def trial_data(trials: Sequence[Ending], report: Report, evidence: Evidence) -> Markup:
    """Settings, curves and a few words of each, as JSON that a page may hold; what all have in common is there once."""
    specs = [report.planned[trial.run_key].spec for trial in trials]
    common = dict(_flat(specs[0])) if specs else {}
    for spec in specs:
        leaves = dict(_flat(spec))
        common = {key: value for key, value in common.items() if key in leaves and leaves[key] == value}

    def shown(trial: Ending, spec: Mapping[str, Any]) -> dict[str, Any]:
        seen = evidence.seen.get(trial.run_key)
        return {
            "lines": _lines(trial),
            "own": {key: value for key, value in _flat(spec) if key not in common},
            "curve": _short(seen.curve) if seen else [],
            "losses": _short(seen.losses) if seen else [],
        }

    shared = {"common": common, "metric": f"validation {TITLES[report.metric]} %"}
    # One after the other, for a thousand of them take a while to let go of their memory.
    spelled = Markup(",").join(htmlsafe_json_dumps(shown(*one)) for one in zip(trials, specs, strict=True))
    return Markup('{{"shared":{},"trials":[{}]}}').format(htmlsafe_json_dumps(shared), spelled)


def _lines(trial: Ending) -> list[str]:
    told = [f"Run key {trial.run_key}; epoch {trial.epoch} of {trial.epochs}"]
    told[0] += f"; {took(trial.seconds)}" if trial.seconds is not None else ""
    if trial.best_epoch is not None and trial.best_validation is not None:
        told.append(f"Best on validation after epoch {trial.best_epoch}: {trial.best_validation:.1f} %")
    told += [trial.reason] if trial.reason else []
    return told + ([", ".join(f"{name} {value:.4g}" for name, value in trial.last.items())] if trial.last else [])


def _short(values: np.ndarray) -> list[float | None]:
    """Four figures are as many as a curve shows."""
    return [float(f"{value:.4g}") if math.isfinite(value) else None for value in values.tolist()]


def _flat(value: Any, path: str = "") -> list[tuple[str, Any]]:
    """The leaves of nested mappings by their paths."""
    if not isinstance(value, Mapping) or not value:
        return [(path, value)]
    return [leaf for key, below in value.items() for leaf in _flat(below, f"{path}.{key}" if path else str(key))]
