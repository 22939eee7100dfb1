"""What caches hold, and what of it is still to be made."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from cluster.storage import Storage
from pipeline.caches.labels import record_key, stored_bytes
from pipeline.caches.segments import segments_of
from pipeline.packing.packed import PoolBlock
from pipeline.planning.plan import SourceCaches
from pipeline.planning.specs import CacheSpec, Segment

SUPPOSED = "supposed"
"""In place of a pool's fingerprint, where it is only imagined."""


@dataclass(frozen=True, kw_only=True)
class Holding:
    """One output of one source for all views of the pool."""

    name: str
    rows: int
    views: int
    view_bytes: int
    stored: int
    """Bytes on the storage, once it is whole."""
    shards: int
    segments: int
    lacking: tuple[tuple[Segment, int], ...]
    """The shards that have to be made."""

    @property
    def payload(self) -> int:
        """Bytes of the labels alone: what a node holds of it in memory."""
        return self.rows * self.views * self.view_bytes


@dataclass(frozen=True, kw_only=True)
class Shard:
    """What one worker makes at once: the same samples of the same source, in some views, for some outputs."""

    views: int
    """Source passes."""
    outputs: int


def holdings(wanted: Mapping[str, SourceCaches], storage: Storage) -> dict[str, list[Holding]]:
    """What some caches hold, by source."""
    return {name: [_holding(storage, spec) for spec in specs.values()] for name, specs in wanted.items()}


def supposed(wanted: Mapping[str, SourceCaches], images: int) -> dict[str, SourceCaches]:
    """The same caches of a pool of so many images, none of which exist."""
    blocks = (PoolBlock(stop=images, fingerprint=SUPPOSED),)
    return {
        source: {name: replace(spec, blocks=blocks) for name, spec in specs.items()} for source, specs in wanted.items()
    }


def shards_to_make(caches: Sequence[Holding]) -> list[Shard]:
    """What is missing of the caches of one source: what it says of the same views comes from one pass."""
    outputs: dict[tuple[range, tuple[int, ...]], int] = {}
    for segment, shard in (place for one in caches for place in one.lacking):
        where = segment.id_range(shard), segment.view_ids
        outputs[where] = outputs.get(where, 0) + 1
    return [Shard(views=len(ids) * len(views), outputs=count) for (ids, views), count in outputs.items()]


def passes_to_make(caches: Sequence[Holding]) -> int:
    """Images that one source has still to see."""
    return sum(shard.views for shard in shards_to_make(caches))


def _holding(storage: Storage, spec: CacheSpec) -> Holding:
    segments = segments_of(storage, spec)
    there = {key for segment in segments for key in storage.keys(segment.prefix)}
    every = [(segment, shard) for segment in segments for shard in range(segment.shards)]
    return Holding(
        name=spec.name,
        rows=spec.rows,
        views=len(spec.labels.numbers) * spec.view_count,
        view_bytes=spec.labels.view_bytes,
        stored=sum(map(stored_bytes, segments)),
        shards=len(every),
        segments=len(segments),
        lacking=tuple(place for place in every if record_key(*place) not in there),
    )
