"""The report as a table: on a terminal, and as Markdown, CSV, Parquet and JSON on the storage."""

import csv
import io
from collections.abc import Callable
from dataclasses import asdict, fields, replace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.storage import Storage
from pipeline.canonical import canonical
from pipeline.reports.cells import table, wide_meaning
from pipeline.reports.report import Ending, Report

DERIVED_COSTS = (
    "caches",
    "source_passes",
    "source_seconds",
    "cache_bytes",
    "passes_saved",
    "speed_up",
    "speed_up_bound",
    "break_even",
)
MOST_ROWS, BEST_ROWS = 60, 30
"""A table of more rows than the first is shown on a terminal by the second, the best of them."""


def to_markdown(report: Report) -> str:
    """The report as a Markdown table that also reads well as plain text."""
    lines = table(report)
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    rendered = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    ]
    rendered.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    meaning = ["", wide_meaning(report)] if report.across else []
    searches = ["", *(f"- {line}" for line in report.search_lines)] if report.search_lines else []
    return "\n".join([report.title, "", *rendered, *meaning, *searches, ""])


def to_terminal(report: Report, *, whole: str) -> str:
    """The same for a person who waits: of a very long table the best rows, and where to find the `whole`."""
    if len(table(report)) <= MOST_ROWS + 1:
        return to_markdown(report)
    best = sorted(report.rows, key=lambda row: -row.rank)[:BEST_ROWS]
    failed = sum(trial.state == "failed" for row in report.rows for trial in row.unfinished)
    told = f" (failed trials: {failed})" if failed else ""
    more = f"The {BEST_ROWS} best by validation; {len(report.rows) - BEST_ROWS} more rows{told} are in {whole}"
    return f"{to_markdown(replace(report, rows=best, across=None))}\n{more}\n"


def columns(report: Report) -> dict[str, list[Any]]:
    """A line per trial that has ended, by column, and what its axes were set to; None where there is nothing to say."""
    ended, metric = report.trials, report.metric
    axes = list(dict.fromkeys(path for trial in ended for path in trial.point))
    taken: dict[str, Callable[[Ending], Any]] = {
        "trial": lambda one: one.label,
        "seed": lambda one: one.seed,
        f"test_{metric}": lambda one: one.test,
        "failure": lambda one: one.reason if one.state == "failed" else "",
        f"validation_{metric}": lambda one: one.validation,
        "state": lambda one: one.state,
        "epoch": lambda one: one.epoch,
        "epochs": lambda one: one.epochs,
        "tries": lambda one: one.tries,
        "reason": lambda one: one.reason,
        f"best_validation_{metric}": lambda one: one.best_validation,
        "best_epoch": lambda one: one.best_epoch,
        "seconds": lambda one: one.seconds,
        "method": lambda one: one.method,
        "sources": lambda one: "+".join(one.sources),
        "run_key": lambda one: one.run_key,
    }
    points = {path: [_value(one.point.get(path)) for one in ended] for path in axes if path not in taken}
    return {name: [take(one) for one in ended] for name, take in taken.items()} | points


def to_csv(report: Report) -> str:
    """One line per trial that has ended."""
    by_column = columns(report)
    sink = io.StringIO()
    writer = csv.writer(sink)
    writer.writerow(by_column)
    writer.writerows(zip(*by_column.values(), strict=True))
    return sink.getvalue()


def to_parquet(report: Report) -> bytes:
    """The same lines; numbers stay numbers."""
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table(columns(report)), sink)
    written = sink.getvalue().to_pybytes()
    del sink
    pa.default_memory_pool().release_unused()  # Arrow would keep megabytes for more, and there is none
    return written


def to_json(report: Report) -> str:
    """All numbers, for machines."""
    derived = {name: getattr(report.cost, name) for name in DERIVED_COSTS}
    told = {field.name: getattr(report, field.name) for field in fields(report) if field.name != "planned"}
    return canonical(told | {"cost": asdict(report.cost) | derived})


def _value(value: Any) -> str:
    """A value of an axis; nothing where the axis is not there."""
    return value if isinstance(value, str) else "" if value is None else canonical(value)


def write_tables(report: Report, storage: Storage, *, name: str) -> None:
    """Write the report as Markdown, CSV, Parquet and JSON."""
    storage.write(f"reports/{name}.md", to_markdown(report).encode())
    storage.write(f"reports/{name}.csv", to_csv(report).encode())
    storage.write(f"reports/{name}.parquet", to_parquet(report))
    storage.write(f"reports/{name}.json", to_json(report).encode())
