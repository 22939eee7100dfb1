"""Figures for operators: counted in every process, handed to Ray's Prometheus exporter where a session runs.

Every figure is labelled by the experiment and the stage its process works for; what else may be a label has few values.
Ray adds the node and the worker, and `ray_` before each name. docs/metrics.md has the table. Without a session figures
are only counted: nothing is imported, and no thread runs.
"""

import atexit
import sys
import threading
import time
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, NamedTuple

HAND_SECONDS = 2.0
"""How often what was counted is handed to Ray, which sends it on every 10 s (RAY_metrics_report_interval_ms)."""

_REQUEST_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_CHECKPOINT_SECONDS = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0)


@dataclass(frozen=True, kw_only=True)
class Series:
    """A figure under one name."""

    what: str
    unit: str
    kind: Literal["counter", "gauge", "histogram"] = "counter"
    labels: tuple[str, ...] = ()
    """Beside experiment and stage; each has few values, whatever runs."""
    bounds: tuple[float, ...] = ()
    """Of the buckets of a histogram."""


SERIES = {
    "sskt_train_samples": Series(unit="images", what="Images that training steps learned from"),
    "sskt_train_steps": Series(unit="steps", what="Training steps"),
    "sskt_train_seconds": Series(unit="seconds", what="Time in training steps, waiting for their batches included"),
    "sskt_input_seconds": Series(unit="seconds", what="Time that training steps waited for their batches"),
    "sskt_epochs": Series(unit="epochs", what="Epochs trained, evaluated and saved"),
    "sskt_validation_score": Series(
        kind="gauge", unit="percent", labels=("method",), what="Validation metric of the last epoch, of each process"
    ),
    "sskt_checkpoint_seconds": Series(
        kind="histogram", unit="seconds", bounds=_CHECKPOINT_SECONDS, what="Time to make and write a checkpoint"
    ),
    "sskt_trials": Series(
        kind="gauge",
        unit="trials",
        labels=("state",),
        what="left, found, done, failed, stopped: of the sweep; busy: another run's; running: in this process",
    ),
    "sskt_source_views": Series(unit="views", what="Views that went through sources, for caches"),
    "sskt_shards": Series(unit="shards", labels=("state",), what="Shards made, failed, or found damaged"),
    "sskt_claims_lost": Series(unit="claims", what="Claims that others took over while their work went on"),
    "sskt_s3_requests": Series(unit="requests", labels=("operation",), what="Attempts at S3 requests, each counted"),
    "sskt_s3_retries": Series(unit="requests", labels=("operation",), what="Those that repeat one that failed"),
    "sskt_s3_errors": Series(
        unit="requests", labels=("operation", "code"), what="Attempts that failed, by status or by kind of exception"
    ),
    "sskt_s3_bytes": Series(unit="bytes", labels=("direction",), what="Bodies of requests and answers"),
    "sskt_s3_seconds": Series(
        kind="histogram",
        unit="seconds",
        labels=("operation",),
        bounds=_REQUEST_SECONDS,
        what="From sending a request to the head of its answer",
    ),
}


class Work(NamedTuple):
    """What a process works for."""

    experiment: str = ""
    stage: str = ""


class Figure(NamedTuple):
    """One line of a series; of a histogram one of its buckets, by its upper bound."""

    name: str
    work: Work
    labels: tuple[tuple[str, str], ...]
    bound: float | None = None


class Traffic(NamedTuple):
    """Requests to a bucket, and how many of them repeat one that failed."""

    requests: int = 0
    retried: int = 0


class Ledger:
    """Totals and levels by figure, and what of the totals has been handed on."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._totals: dict[Figure, float] = {}
        self._handed: dict[Figure, float] = {}
        self._levels: dict[Figure, float] = {}

    def add(self, figures: Sequence[Figure], values: Sequence[float]) -> None:
        """Count on."""
        with self._lock:
            for figure, value in zip(figures, values, strict=True):
                self._totals[figure] = self._totals.get(figure, 0) + value

    def put(self, figure: Figure, value: float) -> None:
        """Set a level."""
        self._levels[figure] = value

    def total(self, name: str) -> float:
        """What was counted under a name."""
        with self._lock:
            return sum(value for figure, value in self._totals.items() if figure.name == name)

    def news(self) -> dict[Figure, float]:
        """What was counted since this was last asked, and all levels: Ray forgets those that it does not hear again."""
        with self._lock:
            told = self._totals.copy()
            news = {figure: value - self._handed.get(figure, 0) for figure, value in told.items()}
            self._handed = told
            return {figure: value for figure, value in news.items() if value > 0} | self._levels


class _State:
    """What this process counts, what for, and what other processes have told it."""

    def __init__(self) -> None:
        self.ledger, self.work = Ledger(), Work()
        self.heard = self.told = Traffic()


_STATE = _State()


def count(name: str, value: float = 1, **labels: str) -> None:
    """Add to a counter."""
    _STATE.ledger.add([Figure(name, _STATE.work, tuple(labels.items()))], [value])


def counter(*names: str) -> Callable[..., None]:
    """Return what adds to several counters at once, for what happens every millisecond: a value for each."""
    figures, ledger = [Figure(name, _STATE.work, ()) for name in names], _STATE.ledger
    return lambda *values: ledger.add(figures, values)


def put(name: str, value: float, **labels: str) -> None:
    """Set a gauge."""
    _STATE.ledger.put(Figure(name, _STATE.work, tuple(labels.items())), value)


def observe(name: str, value: float, **labels: str) -> None:
    """Enter a value into a histogram: of each only its bucket is kept, as Ray does."""
    bounds = SERIES[name].bounds
    at = bisect_left(bounds, value)
    bound = bounds[at] if at < len(bounds) else 2 * bounds[-1]
    _STATE.ledger.add([Figure(name, _STATE.work, tuple(labels.items()), bound)], [1])


def work() -> Work:
    """What this process works for now."""
    return _STATE.work


@contextmanager
def working(experiment: str, stage: str) -> Iterator[None]:
    """What is counted and logged inside the block is of an experiment's stage, by whatever thread."""
    before, _STATE.work = _STATE.work, Work(experiment, stage)
    if _in_session():
        export()
    try:
        yield
    finally:
        _STATE.work = before
        hand_over()  # workers may be killed as soon as they have nothing to do


def traffic() -> Traffic:
    """Requests of this process, and of those that told it of theirs."""
    own = (int(_STATE.ledger.total(name)) for name in ("sskt_s3_requests", "sskt_s3_retries"))
    return Traffic(*(here + there for here, there in zip(own, _STATE.heard, strict=True)))


def since(before: Traffic) -> Traffic:
    """Requests after some moment."""
    return Traffic(*(now - then for now, then in zip(traffic(), before, strict=True)))


def tell() -> Traffic:
    """Requests that this process has not told of yet, to be heard by the one it works for."""
    news, _STATE.told = since(_STATE.told), traffic()
    return news


def hear(told: Traffic) -> None:
    """Add what another process told."""
    _STATE.heard = Traffic(*(mine + theirs for mine, theirs in zip(_STATE.heard, told, strict=True)))


@cache
def export() -> None:
    """Hand figures to Ray from now on. Called where a session runs; the first call in a process counts."""
    threading.Thread(target=_keep_handing, name="sskt-metrics", daemon=True).start()
    atexit.register(hand_over)  # before Ray's own end, which was registered when it was imported


def hand_over() -> None:
    """Hand what is new to Ray, where a session runs."""
    if not _in_session():
        return
    for figure, value in _STATE.ledger.news().items():
        tags = figure.work._asdict() | dict(figure.labels)
        series, metric = SERIES[figure.name], _made(figure.name)
        if series.kind == "counter":
            metric.inc(value, tags)
        elif series.kind == "gauge":
            metric.set(value, tags)
        else:
            for _ in range(int(value)):
                metric.observe(figure.bound, tags)


@cache
def _made(name: str) -> Any:
    """Ray's own object for a series."""
    from ray.util import metrics  # only inside a session

    series = SERIES[name]
    labels = (*Work._fields, *series.labels)
    if series.kind == "histogram":
        return metrics.Histogram(name, series.what, boundaries=list(series.bounds), tag_keys=labels)
    return (metrics.Counter if series.kind == "counter" else metrics.Gauge)(name, series.what, tag_keys=labels)


def _keep_handing() -> None:
    while True:
        time.sleep(HAND_SECONDS)
        hand_over()


def _in_session() -> bool:
    """Whether Ray runs in this process; one that has not imported it has no session."""
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())
