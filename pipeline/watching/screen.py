"""A snapshot as people see it: a screen in a terminal, a line elsewhere."""

from collections.abc import Iterable, Iterator

from rich.console import Group, RenderableType
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pipeline.forecasts.forecast import spoken
from pipeline.statistics import half_interval, summarise
from pipeline.watching.snapshot import Snapshot, State, TrialProgress

STATES: tuple[State, ...] = ("done", "running", "waiting", "stopped", "failed")
ROWS = 20
"""Of each part of the screen; a sweep may have thousands."""
BAR = 30


class Pace:
    """Foretells the end from the epochs that went by since the first look."""

    def __init__(self) -> None:
        self._first: tuple[float, int] | None = None

    def left(self, snapshot: Snapshot, *, now: float) -> float | None:
        """Seconds until the last epoch; None where nothing has gone by yet."""
        done, total = snapshot.epochs
        began, at_first = self._first = self._first or (now, done)
        if done <= at_first or now <= began:
            return None
        return (total - done) * (now - began) / (done - at_first)


def line(snapshot: Snapshot, *, left: float | None) -> str:
    """All of it in one line."""
    done, total = snapshot.epochs
    making = [
        f"{cache.name} {cache.made} of {cache.shards} shards" for cache in snapshot.caches if cache.made < cache.shards
    ]
    counts = ", ".join(f"{snapshot.count(state)} {state}" for state in STATES if snapshot.count(state))
    parts = [f"{done} of {total} epochs", counts, *making, *([f"about {spoken(left)} left"] if left else [])]
    return f"{snapshot.title}: {'; '.join(part for part in parts if part)}"


def screen(snapshot: Snapshot, *, left: float | None) -> RenderableType:
    """All of it as tables."""
    parts = [Text(line(snapshot, left=left), style="bold"), _bars(snapshot), _standings(snapshot)]
    running = [trial for trial in snapshot.trials if trial.state == "running"]
    if running:
        parts.append(_running(running))
    parts += [
        Text(f"failed: {trial.label}, seed {trial.seed}: {trial.reason}", style="red")
        for trial in [trial for trial in snapshot.trials if trial.state == "failed"][:ROWS]
    ]
    return Group(*parts)


def _bars(snapshot: Snapshot) -> Table:
    grid = Table.grid(padding=(0, 1))
    for cache in snapshot.caches:
        if not cache.whole:
            grid.add_row(f"cache {cache.name}", _bar(cache.made, cache.shards), f"{cache.made}/{cache.shards} shards")
    done, total = snapshot.epochs
    grid.add_row("training", _bar(done, total), f"{done}/{total} epochs")
    return grid


def _bar(done: int, total: int) -> ProgressBar:
    return ProgressBar(total=max(1, total), completed=done, width=BAR)


def _standings(snapshot: Snapshot) -> Table:
    """The rows of the report to come, by validation: the test split stays unseen until then."""
    table = Table("method", "trials", "validation %", box=None, header_style="dim")
    for label, trials in sorted(by_label(snapshot.trials), key=_rank)[:ROWS]:
        scores = [trial.score for trial in trials if trial.score is not None]
        reach = half_interval(scores) if scores else None
        told = f"{summarise(scores).mean:.1f}" + (f" ± {reach:.1f}" if reach is not None else "") if scores else "-"
        table.add_row(Text(label), f"{len(scores)} of {len(trials)}", told)
    return table


def by_label(trials: Iterable[TrialProgress]) -> Iterator[tuple[str, list[TrialProgress]]]:
    """Trials that differ in their seed only, together."""
    rows: dict[str, list[TrialProgress]] = {}
    for trial in trials:
        rows.setdefault(trial.label, []).append(trial)
    yield from rows.items()


def _rank(row: tuple[str, list[TrialProgress]]) -> float:
    scores = [trial.score for trial in row[1] if trial.score is not None]
    return -sum(scores) / len(scores) if scores else 0.0


def _running(running: list[TrialProgress]) -> Table:
    grid = Table.grid(padding=(0, 1))
    for trial in running[:ROWS]:
        name = Text(f"running {trial.label}, seed {trial.seed}")
        grid.add_row(name, _bar(trial.epoch, trial.epochs), f"epoch {trial.epoch} of {trial.epochs}")
    return grid
