"""What pieces of work take on this kind of machine: from finished work on the storage, or from a pilot."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import mean

from cluster.storage import Storage
from pipeline.caches.segments import open_cache
from pipeline.forecasts.work import Training, kind_of, steps_of
from pipeline.planning.plan import Plan
from pipeline.trials.results import Result, existing_results, read_results, seconds_of


@dataclass(frozen=True, kw_only=True)
class Pace:
    """Seconds that a kind of trial takes, with as many side by side as will run."""

    step: float
    evaluation: float = 0.0
    """Of the validation split, after every epoch."""
    checkpoint: float = 0.0
    trial: float = 0.0
    """Beside its epochs: its feed, its networks, the test split, its result."""
    checkpoint_bytes: int = 0

    @property
    def epoch(self) -> float:
        """Beside its steps."""
        return self.evaluation + self.checkpoint


@dataclass(frozen=True, kw_only=True)
class SourcePace:
    """Seconds that a source takes, with as many workers side by side as will run."""

    view: float
    """To make a view, answer for it and encode what is said."""
    answer: float
    """The answer alone: what a training with a live source takes more."""
    shard: float = 0.0
    """To publish what was said of a shard: claims, writing, reading back."""
    batches: dict[int, float] = field(default_factory=dict)
    """The answer alone, by the number of views asked for at once, where that was tried."""


@dataclass(frozen=True, kw_only=True)
class Rates:
    """All that is known. What is not stays out of the mappings, or None."""

    paces: dict[str, Pace] = field(default_factory=dict)
    """By kind of trial."""
    sources: dict[str, SourcePace] = field(default_factory=dict)
    session: float | None = None
    """To start Ray."""
    cache_start: float | None = None
    """From there to the first shard: worker processes, their sources."""
    sweep_start: float | None = None
    """From the end of the caches to the first trial, and after the last."""
    turn: float | None = None
    """From the end of a trial to the beginning of the next in its process."""

    @property
    def starts(self) -> bool:
        """Whether anything is known of what comes before and between pieces of work."""
        return self.session is not None

    def __or__(self, other: "Rates") -> "Rates":
        """Both; where they differ the other counts."""
        told = {name: value for name, value in vars(other).items() if value is not None}
        return Rates(**vars(self) | told | {"paces": self.paces | other.paces, "sources": self.sources | other.sources})

    def lacking(self, left: Sequence[Training], sources: Sequence[str]) -> list[str]:
        """What would have to be known to tell how long it takes. sources: those that have views to see."""
        kinds = sorted({one.kind for one in left} - set(self.paces))
        unknown = [f"seconds a step of {kind.rpartition(' ')[0]}" for kind in kinds]
        return unknown + [f"seconds a view of source {name}" for name in sources if name not in self.sources]


def result_paces(plan: Plan, storage: Storage) -> dict[str, list[float]]:
    """Seconds per step, all else included, of each result of the same data, by kind of trial."""

    def pace(result: Result) -> tuple[str, float] | None:
        spec = result["spec"]
        if spec["dataset"] != plan.packed.fingerprint:
            return None
        return kind_of(spec["trial"]), seconds_of(result) / steps_of(spec["trial"]["training"], plan.packed)

    paces: dict[str, list[float]] = {}
    for kind, seconds in read_results(storage, sorted(existing_results(storage)), reduce=pace).values():
        paces.setdefault(kind, []).append(seconds)
    return paces


def found_rates(plan: Plan, storage: Storage) -> Rates:
    """What finished trials and whole caches of the same data took."""
    paces = {kind: Pace(step=mean(seconds)) for kind, seconds in result_paces(plan, storage).items()}
    views = {name: _view_seconds(plan, storage, name) for name in plan.caches_for()}
    sources = {name: SourcePace(view=seconds, answer=seconds) for name, seconds in views.items() if seconds}
    return Rates(paces=paces, sources=sources)


def _view_seconds(plan: Plan, storage: Storage, source: str) -> float:
    """Seconds of a source pass, as it took when its caches were made; 0 where none is whole."""
    specs = plan.caches_for()[source].values()
    whole = [cache for spec in specs if (cache := open_cache(storage, spec)) is not None]
    passes = sum(cache.passes for cache in whole)
    return sum(cache.seconds for cache in whole) / passes if passes else 0.0
