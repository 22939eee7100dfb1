"""The answer a person came for: which source, which method, how sure, in plain sentences."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from pipeline.reports.report import SCRATCH, Report, Row
from pipeline.statistics import CONFIDENCE, Change
from sskt.metrics import TITLES

LEVEL = 1 - CONFIDENCE

LONGEST_NAME = 40

Kind = Literal["up", "down", "unsure", "none"]


class Verdict(NamedTuple):
    """What a comparison allows to say, and in which colour."""

    words: str
    kind: Kind


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What stands at the top of a report."""

    headline: str
    details: tuple[str, ...]
    best: Row | None
    """The best by validation."""
    kind: Kind
    by_sources: tuple[Row, ...]
    """The best by validation of every set of sources."""


def verdict(change: Change | None) -> Verdict:
    """Sure is only what is left after the correction for several comparisons."""
    if change is None:
        return Verdict("", "none")
    if change.p is None or change.corrected is None:
        return Verdict("too few seeds to say", "none")
    if change.p >= LEVEL:
        return Verdict("no clear change", "none")
    if change.corrected >= LEVEL:
        return Verdict("may help" if change.mean > 0 else "may hurt", "unsure")
    return Verdict("helps", "up") if change.mean > 0 else Verdict("hurts", "down")


def representatives(rows: Sequence[Row], most: int) -> list[Row]:
    """The first so many rows or, of more, the first of every method with every set of sources."""
    firsts = {(row.method, row.sources): row for row in reversed(rows)}
    return list(rows) if len(rows) <= most else [row for row in rows if firsts[row.method, row.sources] is row][:most]


def answer(report: Report) -> Answer:
    """Choose by validation; say what the test split says of what was chosen."""
    rows = _comparable(report.rows)
    best = max(rows, key=lambda row: row.rank, default=None)
    sets = dict.fromkeys(row.sources for row in rows if row.sources)
    by_sources = tuple(max((row for row in rows if row.sources == one), key=lambda row: row.rank) for one in sets)
    headline, kind = _headline(best, report)
    details = tuple(_details(best, by_sources, of=len(rows)))
    return Answer(headline=headline, details=details, best=best, kind=kind, by_sources=by_sources)


def _comparable(rows: Sequence[Row]) -> list[Row]:
    """Rows all of whose seeds are done, if there are any: fewer seeds are more easily lucky."""
    done = [row for row in rows if row.scores]
    return [row for row in done if len(row.scores) == row.wanted] or done


def _headline(best: Row | None, report: Report) -> tuple[str, Kind]:
    if best is None or best.summary is None:
        return "Nothing has been trained to its end yet.", "none"
    score = f"{best.summary.mean:.1f} % {TITLES[report.metric]} on the test split"
    if best.method == SCRATCH:
        others = any(row.sources and row.scores for row in report.rows)
        said = "No source helped: training from scratch is best" if others else "Only training from scratch is done"
        return f"{said}, {score}.", "none"
    change = best.change
    if change is None:
        return f"{short_name(best)} is best, {score}; no training from scratch is there to compare it with.", "none"
    gain = f"{abs(change.mean):.1f} points {'above' if change.mean >= 0 else 'below'} training from scratch"
    if change.p is None:
        return f"{short_name(best)} leads, {score}, {gain}; one seed cannot tell that from luck.", "none"
    if change.p >= LEVEL:
        return (
            f"No source helped for sure: the best, {short_name(best)}, is {gain}, within what seeds alone do.",
            "none",
        )
    if change.mean < 0:
        return f"No source helped: the best on validation, {short_name(best)}, is {gain} on the test split.", "down"
    how = "helps" if best.sources else "helps, without any source"
    return f"{short_name(best)} {how}: {score}, {gain}.", "up"


def _details(best: Row | None, by_sources: Sequence[Row], *, of: int) -> list[str]:
    if best is None:
        return []
    details = [] if short_name(best) == best.label else [f"It is the row {best.label}."]
    details.append(
        f"Chosen on the validation split among {counted(of, 'row')}; the test split had no part in the choice."
    )
    change = best.change
    if change is not None and change.p is not None:
        details.append(
            f"Change against scratch {interval(change)}, 95 % interval of {change.n} paired seeds; "
            f"paired t test, p {equals(change.p)}, a single test, so nothing to correct."
        )
    hurt = [" + ".join(row.sources) for row in by_sources if verdict(row.change).kind == "down"]
    if hurt:
        details.append(f"Negative transfer even at their best: {', '.join(hurt)}.")
    return details


def short_name(row: Row) -> str:
    """Its label, or where that is long what matters of it."""
    if len(row.label) <= LONGEST_NAME:
        return row.label
    return f"{row.method} with {' + '.join(row.sources)}" if row.sources else row.method


def counted(number: int, noun: str) -> str:
    """E.g. `1 row`, `3 rows`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def interval(change: Change) -> str:
    """E.g. `+4.6 [+2.1, +7.1]`."""
    ends = "" if change.low is None or change.high is None else f" [{signed(change.low)}, {signed(change.high)}]"
    return f"{signed(change.mean)}{ends}"


def signed(points: float, digits: int = 1) -> str:
    """With a true minus, and none before a nought."""
    said = f"{points:+.{digits}f}"
    return said.replace("-", "−") if float(said) else said[1:]


def equals(p: float) -> str:
    """E.g. `= 0.03`."""
    said = p_value(p)
    return said if said.startswith("<") else f"= {said}"


def p_value(p: float) -> str:
    """E.g. `0.03`."""
    return "< 0.001" if p < 0.001 else f"{p:.2g}"
