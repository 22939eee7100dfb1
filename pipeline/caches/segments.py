"""From the segments that lie on storage to the cache that an experiment wants, and to what is missing of it."""

import re
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from cluster.storage import Storage
from pipeline.caches.labels import Manifest, load_manifest, manifest_key, read_segment
from pipeline.canonical import digest
from pipeline.planning.specs import CacheSpec, Segment
from sskt.errors import DamagedError
from sskt.views import TURN

_RANGE = re.compile(r"/views-(\d+)-(\d+)/")


@dataclass(frozen=True, kw_only=True)
class WholeCache:
    """A cache all of whose segments are whole."""

    spec: CacheSpec
    parts: tuple[tuple[Segment, Manifest], ...]

    @cached_property
    def content(self) -> str:
        """Hash of what is stored of every view of every sample: the same however, and however often, it came about."""
        hashes = {
            (segment.first, record.shard, view): stored
            for segment, manifest in self.parts
            for record in manifest.shards
            for view, stored in zip(segment.view_ids, record.views, strict=True)
            if view % TURN < self.spec.view_count
        }
        return digest([[*place, stored] for place, stored in sorted(hashes.items())])

    @property
    def golden(self) -> dict[str, str]:
        """Hashes of the pixels of some views, by `sample/view`."""
        records = [record for _, manifest in self.parts for record in manifest.shards]
        return {place: seen for record in records for place, seen in record.golden.items()}

    @property
    def passes(self) -> int:
        """Images that went through the source."""
        return sum(record.passes for _, manifest in self.parts for record in manifest.shards)

    @property
    def bytes(self) -> int:
        """Bytes on storage."""
        return sum(record.bytes for _, manifest in self.parts for record in manifest.shards)

    @property
    def seconds(self) -> float:
        """Time the source took."""
        return sum(record.seconds for _, manifest in self.parts for record in manifest.shards)


def segments_of(storage: Storage, spec: CacheSpec) -> list[Segment]:
    """The segments a cache consists of: what is on storage where it serves, what has to be made where not."""
    return [segment for block in range(len(spec.blocks)) for segment in _cover(storage, spec, block)]


def open_cache(storage: Storage, spec: CacheSpec) -> WholeCache | None:
    """Return a cache, or None where it is not whole."""
    parts = []
    for segment in segments_of(storage, spec):
        manifest = load_manifest(storage, segment)
        if manifest is None:
            return None
        parts.append((segment, manifest))
    return WholeCache(spec=spec, parts=tuple(parts))


def read_cache(storage: Storage, cache: WholeCache) -> np.ndarray:
    """Read and verify every shard. Returns uint8 [rows, numbers * M, bytes], of each number its M views."""
    spec = cache.spec
    numbers, size = len(spec.labels.numbers), spec.labels.view_bytes
    rows = np.empty((spec.rows, numbers, spec.view_count, size), np.uint8)
    for segment, manifest in cache.parts:
        stop = min(segment.stop_view, spec.view_count)
        stored = read_segment(storage, segment, manifest).reshape(segment.rows, numbers, -1, size)
        rows[segment.first : segment.stop, :, segment.first_view : stop] = stored[:, :, : stop - segment.first_view]
    return rows.reshape(spec.rows, -1, size)


def require_cache(storage: Storage, spec: CacheSpec, *, source: str) -> WholeCache:
    """Return a cache that has to be whole."""
    cache = open_cache(storage, spec)
    if cache is None:
        raise DamagedError(f"cache {spec.id} of source {source!r} is not whole; run `cache`")
    return cache


def _cover(storage: Storage, spec: CacheSpec, block: int) -> list[Segment]:
    """Segments of a block that hold its first views, each beginning where the one before ends."""
    known = _on_storage(storage, spec, block)
    cover: list[Segment] = []
    while (reached := cover[-1].stop_view if cover else 0) < spec.view_count:
        # Whole ones before those that were begun: another run may be making more views than it has finished.
        starting = [(whole, stop) for (first, stop), whole in known.items() if first == reached]
        later = [first for first, _ in known if first > reached]
        _, stop = max(starting, default=(False, min([*later, spec.view_count])))
        cover.append(spec.segment(block, reached, stop))
    return cover


def _on_storage(storage: Storage, spec: CacheSpec, block: int) -> dict[tuple[int, int], bool]:
    """Ranges of views and whether they are whole; those that were begun only if no more of them than is wanted."""
    some = spec.segment(block, 0, 1)
    ranges: dict[tuple[int, int], bool] = {}
    for key in storage.keys(f"caches/{some.id}"):
        found = _RANGE.search(key)
        if found:
            first, stop = int(found[1]), int(found[2])
            whole = key == manifest_key(spec.segment(block, first, stop))
            if whole or stop <= spec.view_count:
                ranges[first, stop] = whole or ranges.get((first, stop), False)
    return ranges
