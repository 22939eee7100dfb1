"""The report: what was measured, how sure it is, what it cost."""

import csv
import io
import textwrap
from dataclasses import asdict, dataclass, field
from typing import Any

from cluster.storage import Storage
from pipeline.canonical import canonical
from pipeline.plan import Plan, PlannedTrial
from pipeline.results import Result, read_failure, read_result
from pipeline.segments import open_cache
from pipeline.statistics import Change, Summary, compare, summarise
from sskt.metrics import TITLES, main_metric

SCRATCH = "scratch"
"""The method every other is compared with."""


@dataclass
class Row:
    """All trials that differ in their seed only."""

    label: str
    wanted: int
    scores: dict[int, float] = field(default_factory=dict)
    """The metric on the test split in % by seed, after the last epoch."""
    failures: dict[int, str] = field(default_factory=dict)
    summary: Summary | None = None
    change: Change | None = None


@dataclass(frozen=True)
class Cost:
    """What the trials and the caches behind them took, whenever that was."""

    trials: int
    training_seconds: float
    caches: int
    source_passes: int
    source_seconds: float
    cache_bytes: int
    label_rows: int

    @property
    def passes_saved(self) -> int:
        """Source passes that training with live sources would have made beyond those made for the caches."""
        return max(0, self.label_rows - self.source_passes)


@dataclass(frozen=True)
class Report:
    """What an experiment has shown so far."""

    title: str
    metric: str
    rows: list[Row]
    cost: Cost


def make_report(plan: Plan, storage: Storage) -> Report:
    """Merge the results that are there."""
    results = {planned.run_key: read_result(storage, planned.run_key) for planned in plan.trials}
    rows: dict[str, Row] = {}
    for planned in plan.trials:
        row = rows.setdefault(planned.trial.label, Row(planned.trial.label, len(plan.experiment.seeds)))
        _enter(row, planned, results[planned.run_key], storage)
    _compare_rows(rows, plan)
    found = [result for result in results.values() if result is not None]
    metric = main_metric(multi_label=plan.packed.multi_label)
    return Report(_title(plan, len(found)), metric, list(rows.values()), _cost(plan, storage, found))


def _enter(row: Row, planned: PlannedTrial, result: Result | None, storage: Storage) -> None:
    if result is not None:
        row.scores[planned.trial.seed] = result["test"][result["metric"]]
        return
    reason = read_failure(storage, planned.run_key)
    if reason is not None:
        row.failures[planned.trial.seed] = reason


def _compare_rows(rows: dict[str, Row], plan: Plan) -> None:
    """Summarise each row and compare it with scratch under the same target and training."""
    trials = {planned.trial.label: planned.trial for planned in plan.trials}
    baselines = {
        canonical([trial.target, trial.training]): rows[label].scores
        for label, trial in trials.items()
        if trial.method == SCRATCH
    }
    for label, row in rows.items():
        if row.scores:
            row.summary = summarise(list(row.scores.values()))
        trial = trials[label]
        baseline = baselines.get(canonical([trial.target, trial.training]), {})
        if trial.method != SCRATCH:
            row.change = compare(row.scores, baseline)


def _cost(plan: Plan, storage: Storage, results: list[Result]) -> Cost:
    read = [spec for specs in plan.caches_for(plan.trials).values() for spec in specs.values()]
    whole = [cache for spec in read if (cache := open_cache(storage, spec)) is not None]
    return Cost(
        trials=len(results),
        training_seconds=sum(result["seconds"] for result in results),
        caches=len(whole),
        source_passes=sum(cache.passes for cache in whole),
        source_seconds=sum(cache.seconds for cache in whole),
        cache_bytes=sum(cache.bytes for cache in whole),
        label_rows=sum(result["label_rows"] for result in results),
    )


def _title(plan: Plan, done: int) -> str:
    packed, experiment = plan.packed, plan.experiment
    labels = experiment.training.labels_per_class
    return (
        f"{experiment.name}: {packed.name}, {len(packed.classes)} classes, {packed.pool} training images, "
        f"{f'{labels} labels per class' if labels else 'all labelled ones'} used; "
        f"target {experiment.target.architecture}; {done} of {len(plan.trials)} trials done"
    )


LONGEST_REASON = 100


def table(report: Report) -> list[tuple[str, ...]]:
    """The rows of the report as text, below their headings."""
    headings = ("trial", f"test {TITLES[report.metric]} %", "n", "against scratch [95 %]", "verdict")
    return [headings, *(_cells(row) for row in report.rows)]


def _cells(row: Row) -> tuple[str, ...]:
    return (row.label, _score(row), _count(row), _change(row), _verdict(row))


def _score(row: Row) -> str:
    if row.summary is None:
        return "-"
    return f"{row.summary.mean:.1f}" + (f" ± {row.summary.std:.1f}" if row.summary.std is not None else "")


def _count(row: Row) -> str:
    return f"{len(row.scores)}" if len(row.scores) == row.wanted else f"{len(row.scores)} of {row.wanted}"


def _change(row: Row) -> str:
    if row.change is None:
        return ""
    interval = "" if row.change.low is None else f" [{row.change.low:+.1f}, {row.change.high:+.1f}]"
    return f"{row.change.mean:+.1f}{interval}"


def _verdict(row: Row) -> str:
    if row.failures:
        reason = next(iter(row.failures.values()))
        return textwrap.shorten(f"{len(row.failures)} failed: {reason}", LONGEST_REASON)
    return row.change.verdict if row.change else ""


def to_markdown(report: Report) -> str:
    """The report as a Markdown table that also reads well as plain text."""
    lines = table(report)
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    rendered = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    ]
    rendered.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join([report.title, "", *rendered, ""])


def to_csv(report: Report) -> str:
    """One line per trial."""
    sink = io.StringIO()
    writer = csv.writer(sink)
    writer.writerow(("trial", "seed", f"test_{report.metric}", "failure"))
    for row in report.rows:
        writer.writerows((row.label, seed, score, "") for seed, score in sorted(row.scores.items()))
        writer.writerows((row.label, seed, "", reason) for seed, reason in sorted(row.failures.items()))
    return sink.getvalue()


def write_report(report: Report, storage: Storage, *, name: str) -> str:
    """Write the report as Markdown, CSV and JSON; return the key of the Markdown."""
    rows: list[dict[str, Any]] = [asdict(row) for row in report.rows]
    storage.write(f"reports/{name}.md", to_markdown(report).encode())
    storage.write(f"reports/{name}.csv", to_csv(report).encode())
    storage.write(
        f"reports/{name}.json",
        canonical({"title": report.title, "metric": report.metric, "rows": rows, "cost": report.cost}).encode(),
    )
    return f"reports/{name}.md"
