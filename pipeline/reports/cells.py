"""What stands in the cells of a report's table: a line for each row or, an axis spread over columns, for several."""

import textwrap
from collections.abc import Sequence

from pipeline.planning.entries import compact
from pipeline.reports.report import Ending, Report, Row
from sskt.metrics import TITLES

LONGEST_REASON = 100
NOT_SET = "any"
"""The column of rows that the axis does not concern."""


def table(report: Report) -> list[tuple[str, ...]]:
    """The lines of the report as text, below their headings."""
    if report.across is not None:
        columns = _columns(report, report.across)
        names = [name if name == NOT_SET else f"{report.across.split('.')[-1]} {name}" for name in columns]
        return [("trial", *names), *(_wide_line(rows, columns, report.across) for rows in _together(report))]
    headings = ("trial", f"test {TITLES[report.metric]} %", "n", "against scratch [95 %]", "verdict")
    return [headings, *(_line(row, report.metric) for row in report.rows)]


def line_texts(report: Report) -> dict[str, str]:
    """By the label of a row, the line it stands in as Markdown has it, but for the spaces that make columns."""
    groups = _together(report) if report.across is not None else [[row] for row in report.rows]
    _, *lines = table(report)
    return {row.label: f"| {' | '.join(line)} |" for rows, line in zip(groups, lines, strict=True) for row in rows}


def wide_meaning(report: Report) -> str:
    """What the cells of a wide table say."""
    counts = [len(row.scores) for row in report.rows if row.scores] or [0]
    seeds = " to ".join(str(count) for count in sorted({min(counts), max(counts)}))
    return (
        f"Test {TITLES[report.metric]} in %, mean ± standard deviation over seeds ({seeds}); in brackets the change "
        "against scratch, said to help or to hurt where its 95 % interval lies to one side of 0."
    )


def _together(report: Report) -> list[list[Row]]:
    """Rows that differ in nothing but the axis which is spread over columns."""
    groups: dict[str, list[Row]] = {}
    for row in report.rows:
        groups.setdefault(row.name, []).append(row)
    return list(groups.values())


def _columns(report: Report, across: str) -> list[str]:
    """In the order of the axis' values, and last that of rows which it does not concern."""
    found = dict.fromkeys(_column(row, across) for row in report.rows)
    return sorted(found, key=lambda name: name == NOT_SET)


def _column(row: Row, across: str) -> str:
    return compact(row.point[across]) if across in row.point else NOT_SET


def _wide_line(rows: Sequence[Row], columns: Sequence[str], across: str) -> tuple[str, ...]:
    cells = {_column(row, across): _wide_cell(row) for row in rows}
    return (rows[0].name, *(cells.get(column, "") for column in columns))


def _wide_cell(row: Row) -> str:
    counted = {state: sum(trial.state == state for trial in row.unfinished) for state in ("failed", "stopped")}
    notes = [f"{count} {state}" for state, count in counted.items() if count]
    notes += [f"{_count(row)} seeds"] if 0 < len(row.scores) < row.wanted else []
    if row.change is not None:
        sure = row.change.verdict in ("helps", "hurts")
        notes.append(f"{row.change.mean:+.1f}" + (f" {row.change.verdict}" if sure else ""))
    return _score(row) + (f" ({', '.join(notes)})" if notes else "")


def _line(row: Row, metric: str) -> tuple[str, ...]:
    return (row.label, _score(row), _count(row), _change(row), _verdict(row, metric))


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


def _verdict(row: Row, metric: str) -> str:
    for state in ("failed", "stopped"):
        trials = [trial for trial in row.unfinished if trial.state == state]
        if trials:
            reason = textwrap.shorten(trials[0].reason, LONGEST_REASON)
            return f"{len(trials)} {state}: {reason}{_further(trials[0], metric)}"
    return row.change.verdict if row.change else ""


def _further(trial: Ending, metric: str) -> str:
    """How often it was tried and how far it came, where there is anything to tell."""
    told = [f"{trial.tries} tries"] if trial.tries > 1 else []
    if trial.validation is not None:
        score = f"validation {TITLES[metric]} {trial.validation:.1f} %"
        told.append(f"{score} after epoch {trial.epoch} of {trial.epochs}")
    return f" ({', '.join(told)})" if told else ""
