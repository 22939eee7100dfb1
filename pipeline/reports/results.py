"""RESULTS.md: tables of stored results between marks that say which command made them; written anew, and tried again.

A table begins with `<!-- results: FILE [--laptop] [--set path=value ...] -->` and ends with `<!-- end of results -->`.
"""

import random
import re
import shlex
from dataclasses import dataclass

from pipeline.planning.experiment import LAPTOP, load_experiment
from pipeline.planning.plan import Plan, PlannedTrial
from pipeline.reports.cells import line_texts
from pipeline.reports.report import Report, Row, report_experiment
from pipeline.reports.tables import to_markdown
from pipeline.stages import Say, Stages
from pipeline.statistics import expected_mean
from pipeline.trials.results import read_result
from sskt.errors import InputError

_TABLE = re.compile(r"<!-- results: (.*?) -->\n(.*?)<!-- end of results -->", re.DOTALL)
_DONE = re.compile(r"(\d+) of (\d+) trials done")


@dataclass(frozen=True)
class Table:
    """One table of the page."""

    file: str
    changes: tuple[str, ...]
    text: str

    @property
    def name(self) -> str:
        """Its file, and where it shows something what that is called."""
        called = self.text.strip().partition(":")[0]
        return f"{self.file}, {called}" if called else self.file

    def stages(self, say: Say, *further: str) -> Stages:
        """The stages of its experiment."""
        return Stages(load_experiment(self.file, changes=[*self.changes, *further]), say)


@dataclass(frozen=True)
class Tried:
    """What a row says, and what new seeds made of it."""

    name: str
    stands: bool
    """Whether the page shows the row as the stored results have it."""
    said: str
    """The row as the stored results have it."""
    again: tuple[float, ...]
    """Scores of the new seeds."""
    low: float
    high: float
    """Where their mean lies 95 times in 100, if nothing but the seeds has changed."""

    @property
    def holds(self) -> bool:
        """Whether both are so."""
        return self.stands and self.low <= sum(self.again) / len(self.again) <= self.high


def tables(page: str) -> list[Table]:
    """Find all tables of a page."""
    found = [_table(match) for match in _TABLE.finditer(page)]
    if len(found) != page.count("<!-- results:"):
        raise InputError("a table begins with `<!-- results: FILE -->` and has to end with `<!-- end of results -->`")
    if not found:
        raise InputError("there is no `<!-- results: FILE -->`, with which a table begins")
    return found


def _table(match: re.Match[str]) -> Table:
    file, *words = shlex.split(match[1])
    changes, left = [], list(words)
    while left:
        word = left.pop(0)
        if word == "--laptop":
            changes.append(LAPTOP)
        elif word == "--set" and left:
            changes.append(left.pop(0))
        else:
            raise InputError(f"results: {match[1]!r}: {word!r} is not --laptop, nor --set with what it changes")
    return Table(file, tuple(changes), match[2])


def rendered(page: str, *, say: Say) -> str:
    """The page with every table as the stored results have it now; those of which more is shown than is here stay."""

    def table(match: re.Match[str]) -> str:
        report = _reported(_table(match), say)
        if report is None:
            return match[0]
        return f"<!-- results: {match[1]} -->\n\n{to_markdown(report)}\n<!-- end of results -->"

    tables(page)
    return _TABLE.sub(table, page)


def _reported(table: Table, say: Say) -> Report | None:
    """What is stored of a table; None, and said why, where results, data or sources are elsewhere."""
    try:
        stages = table.stages(lambda line: None)
        report = report_experiment(stages.pack(), stages.storage)
    except InputError as error:
        say(f"results {table.name}: left alone: {error}")
        return None
    done, planned = _done(report.title)
    shown, _ = _done(table.text)
    if done == planned or (done > 0 and done >= shown):
        return report
    here = f"only {done} of its results, of which it shows {shown}, are" if done else "none of its results is"
    say(f"results {table.name}: left alone: {here} on {stages.storage.uri!r}")
    return None


def _done(text: str) -> tuple[int, int]:
    """How many trials a table's title says are done, and of how many."""
    found = _DONE.search(text)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def try_again(page: str, *, rows: int, seeds: int, draw: int, say: Say) -> list[Tried]:
    """Train a random choice of the page's rows again, with seeds that no row has."""
    known = [(table, row, text) for table in tables(page) for row, text in _rows(table, say)]
    if not known:
        raise InputError("no row has two seeds or more, so there is no interval to hold a new one against")
    chosen = random.Random(draw).sample(known, min(rows, len(known)))  # noqa: S311 (which rows, no secret)
    return [_try(table, row, text, seeds=seeds, say=say) for table, row, text in chosen]


def _rows(table: Table, say: Say) -> list[tuple[Row, str]]:
    """Rows with a spread, as the page should show them; new seeds would not do those justice that a search chose."""
    report = _reported(table, say)
    if report is None or report.search_lines:
        return []
    spread = [row for row in report.rows if row.summary is not None and row.summary.std is not None]
    texts = line_texts(report)
    return [(row, texts[row.label]) for row in spread]


def _try(table: Table, row: Row, text: str, *, seeds: int, say: Say) -> Tried:
    first = max(row.scores) + 1
    stages = table.stages(say, f"seeds={list(range(first, first + seeds))}")
    plan = stages.pack()
    again = tuple(_score(planned, plan, stages) for planned in plan.trials if planned.trial.label == row.label)
    assert row.summary is not None  # noqa: S101 (no other rows are chosen)
    low, high = expected_mean(row.summary, seeds)
    stands = _squeezed(text) in _squeezed(table.text)
    return Tried(f"{table.file}: {row.label}", stands, text, again, low, high)


def _score(planned: PlannedTrial, plan: Plan, stages: Stages) -> float:
    stages.cache(plan, trials=[planned])
    stages.train(planned, plan, in_process=True)
    result = read_result(stages.storage, planned.run_key)
    assert result is not None  # noqa: S101 (it was trained, or that has failed)
    return float(result["test"][result["metric"]])


def _squeezed(text: str) -> str:
    """Without the spaces that make columns of a table."""
    return re.sub(r" +", " ", text)
