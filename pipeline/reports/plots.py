"""Which charts a report has, and what they show."""

from collections.abc import Sequence
from itertools import accumulate
from statistics import fmean
from typing import Any

import numpy as np

from pipeline.canonical import canonical
from pipeline.reports.answer import representatives
from pipeline.reports.evidence import Evidence
from pipeline.reports.figures import SERIES, Chart, Series, axis_chart, cost_chart, curves_chart
from pipeline.reports.importance import Importance
from pipeline.reports.report import Ending, Report, Row
from sskt.metrics import TITLES

MOST_CURVES, MOST_AXES = len(SERIES), 6


def charts_of(rows: Sequence[Row], report: Report, evidence: Evidence, weights: Importance | None) -> list[Chart]:
    """Curves, cost, and everything that varied."""
    metric = TITLES[report.metric]
    chosen = representatives(rows, MOST_CURVES)
    curves = {row.label: found for row in chosen if (found := _curves(row, evidence))}
    charts = [curves_chart(curves, metric=metric)] if curves else []
    timed = [row for row in rows if row.seconds and row.summary]
    if len(timed) > 1:
        by_cost = sorted((fmean(row.seconds.values()), row.summary.mean) for row in timed)
        highest = accumulate((score for _, score in by_cost), max)
        front = [(cost, top) for (cost, score), top in zip(by_cost, highest, strict=True)]
        charts.append(cost_chart(_by_method(timed), front=front, metric=metric))
    return charts + _axis_charts(report, weights)


def _by_method(rows: Sequence[Row]) -> list[Series]:
    """Rows by themselves where they are few, else by their method."""
    name = (lambda row: row.label) if len(rows) <= len(SERIES) else (lambda row: row.method)
    names = [*dict.fromkeys(name(row) for row in rows)]
    names, rest = (names, []) if len(names) <= len(SERIES) else (names[: len(SERIES) - 1], names[len(SERIES) - 1 :])
    groups = {one: [row for row in rows if name(row) == one] for one in names}
    groups |= {"others": [row for row in rows if name(row) in rest]} if rest else {}
    return [
        Series(name=one, x=[fmean(row.seconds.values()) for row in group], y=[row.summary.mean for row in group])
        for one, group in groups.items()
    ]


def _curves(row: Row, evidence: Evidence) -> list[np.ndarray]:
    found = [evidence.seen[key].curve for key in row.run_keys.values() if key in evidence.seen]
    return [curve for curve in found if len(curve)]


def _axis_charts(report: Report, weights: Importance | None) -> list[Chart]:
    """Of what varies, the most important first; by validation, for of most points of a search nothing else is known."""
    done = [trial for trial in report.trials if trial.state == "done" and trial.validation is not None]
    paths = dict.fromkeys(path for trial in done for path in trial.point if path != "sources")
    varies = [path for path in paths if len({canonical(one.point[path]) for one in done if path in one.point}) > 1]
    shares = weights.shares if weights else {}
    charts = []
    for number, path in enumerate(sorted(varies, key=lambda path: -shares.get(path, 0))[:MOST_AXES]):
        groups: dict[str, list[Ending]] = {}
        for trial in done:
            if path in trial.point:
                groups.setdefault(f"{trial.method} {'+'.join(trial.sources)}".strip(), []).append(trial)
        series = [
            Series(name=name, x=[_value(one.point[path]) for one in group], y=[one.validation or 0.0 for one in group])
            for name, group in list(groups.items())[: len(SERIES)]
        ]
        charts.append(axis_chart(path, series, score=f"validation {TITLES[report.metric]} %", number=number))
    return charts


def _value(value: Any) -> Any:
    """A number as it is, anything else as text."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    return value if number or isinstance(value, str) else canonical(value)
