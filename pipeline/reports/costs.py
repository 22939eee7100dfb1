"""What an experiment cost, and what its caches saved: counted where it was counted, estimated where it was not."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cluster.storage import Storage
from pipeline.caches.segments import WholeCache, open_cache
from pipeline.planning.plan import Plan, PlannedTrial


@dataclass(frozen=True, kw_only=True)
class Used:
    """What one training took."""

    seconds: float
    processes: int
    label_rows: int
    """Labels of sources that it read from caches."""


@dataclass(frozen=True, kw_only=True)
class CacheCost:
    """One output of one source for all views of the pool."""

    source: str
    name: str
    id: str
    content: str
    encoding: str
    passes: int
    seconds: float
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What the trials and the caches behind them took, whenever that was."""

    trials: int = 0
    training_seconds: float = 0.0
    process_seconds: float = 0.0
    """The same, where a training ran on several processes counted once for each."""
    readers: int = 0
    """Trials that read a cache."""
    label_rows: int = 0
    live_seconds: float = 0.0
    """What the sources would have taken inside the trainings, at the pace of the pass that made the caches."""
    made: tuple[CacheCost, ...] = ()

    @property
    def caches(self) -> int:
        """How many there are."""
        return len(self.made)

    @property
    def source_passes(self) -> int:
        """Images that went through a source."""
        return sum(cache.passes for cache in self.made)

    @property
    def source_seconds(self) -> float:
        """Time the sources took."""
        return sum(cache.seconds for cache in self.made)

    @property
    def cache_bytes(self) -> int:
        """Bytes on storage."""
        return sum(cache.bytes for cache in self.made)

    @property
    def passes_saved(self) -> int:
        """Source passes that training with live sources would have made beyond those made for the caches."""
        return max(0, self.label_rows - self.source_passes)

    @property
    def speed_up(self) -> float | None:
        """How many times as long everything would have taken with live sources."""
        spent = self.training_seconds + self.source_seconds
        return (self.training_seconds + self.live_seconds) / spent if self.live_seconds and spent else None

    @property
    def speed_up_bound(self) -> float | None:
        """The same if caches cost nothing: no cache can do better."""
        known = self.live_seconds and self.training_seconds
        return (self.training_seconds + self.live_seconds) / self.training_seconds if known else None

    @property
    def break_even(self) -> float | None:
        """Trials after which the caches had paid for themselves."""
        return self.source_seconds * self.readers / self.live_seconds if self.live_seconds else None


def cost_of(plan: Plan, storage: Storage, *, trials: Sequence[PlannedTrial], used: Mapping[str, Used]) -> Cost:
    """What some trials took, and the caches that all of them read. used: by run key, of those that are done."""
    specs = [(name, spec) for name, by_name in plan.caches_for(trials).items() for spec in by_name.values()]
    whole = [(name, cache) for name, spec in specs if (cache := open_cache(storage, spec)) is not None]
    made = tuple(_cache_cost(name, cache) for name, cache in whole)
    done = [planned for planned in trials if planned.run_key in used]
    return Cost(
        trials=len(used),
        training_seconds=sum(one.seconds for one in used.values()),
        process_seconds=sum(one.seconds * one.processes for one in used.values()),
        readers=sum(one.label_rows > 0 for one in used.values()),
        label_rows=sum(one.label_rows for one in used.values()),
        live_seconds=sum(_live_seconds(plan.cached(one), used[one.run_key].label_rows, made) for one in done),
        made=made,
    )


def _cache_cost(source: str, cache: WholeCache) -> CacheCost:
    labels = cache.spec.labels
    return CacheCost(
        source=source,
        name=labels.name,
        id=cache.spec.id,
        content=cache.content,
        encoding=labels.encoding,
        passes=cache.passes,
        seconds=cache.seconds,
        bytes=cache.bytes,
    )


def _live_seconds(sources: Sequence[str], rows: int, made: Sequence[CacheCost]) -> float:
    """Of one trial: every source it reads labels of would have seen as many images as any other."""
    return sum(rows / len(sources) * pace(source, made) for source in sources)


def pace(source: str, made: Sequence[CacheCost]) -> float:
    """Seconds a source takes for an image, as it took when its caches were made; 0 where that is not known."""
    caches = [cache for cache in made if cache.source == source]
    passes = sum(cache.passes for cache in caches)
    return sum(cache.seconds for cache in caches) / passes if passes else 0.0
