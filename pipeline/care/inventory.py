"""What lies on a storage: its caches and graphs, what they are of, and how many results came from them."""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from cluster.storage import Storage, Stored
from pipeline.caches.labels import manifest_key, record_key, shard_key
from pipeline.canonical import canonical, digest, unseal
from pipeline.packing.growth import packed_datasets
from pipeline.planning.specs import Labels, Segment, graph_id
from pipeline.planning.validation import validate
from pipeline.trials.results import read_result
from sskt.errors import DamagedError, InputError
from sskt.methods import get_method

MOST_NEIGHBOURS = 1024
"""Up to how many a graph's name, which is a hash, is understood."""

_VIEWS = re.compile(r"views-(\d+)-(\d+)")
_POOL_FIELDS = ("format", "pool", "first", "stop")


@dataclass(frozen=True, kw_only=True)
class StoredCache:
    """All segments of one id: one block of a pool, in however many ranges of views."""

    id: str
    identity: Mapping[str, Any] | None
    """None where no manifest tells it."""
    objects: Sequence[Stored]
    segments: Sequence[Segment]
    """Those of known identity, in the order of their views."""
    damage: Sequence[str]

    @property
    def labels(self) -> str | None:
        """What is said in it, whatever the samples: the same for all blocks of a pool."""
        if self.identity is None:
            return None
        return digest({name: value for name, value in self.identity.items() if name not in _POOL_FIELDS})

    @cached_property
    def keys(self) -> frozenset[str]:
        """Of its objects."""
        return frozenset(found.key for found in self.objects)

    @property
    def state(self) -> str:
        """Whether it is whole, or what is wrong, or how much is missing."""
        if self.damage:
            return f"damaged: {self.damage[0]}"
        if self.identity is None:
            return f"begun, {sum(key.endswith('.parquet') for key in self.keys)} shards, no manifest"
        lacking = sum(self._lacks(segment, shard) for segment in self.segments for shard in range(segment.shards))
        if lacking:
            return f"lacks {lacking} of {sum(segment.shards for segment in self.segments)} shards"
        unfinished = [segment for segment in self.segments if manifest_key(segment) not in self.keys]
        return "lacks a manifest" if unfinished else "whole"

    def _lacks(self, segment: Segment, shard: int) -> bool:
        return not {shard_key(segment, shard), record_key(segment, shard)} <= self.keys


@dataclass(kw_only=True)
class Dependents:
    """What the results on a storage say of the caches they came from, by the cache's id."""

    names: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    """What experiments call the source."""
    results: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    graphs: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    """Results by the id of a graph."""


def open_inventory(storage: Storage) -> None:
    """Refuse a storage that is not there: a mistyped address must not look like an empty one."""
    if next(storage.keys(""), None) is None:
        raise InputError(f"storage {storage.uri!r} does not exist or holds nothing; it has to be that of an experiment")


def by_folder(objects: Iterable[Stored]) -> dict[str, list[Stored]]:
    """Objects by all of their key but its last step."""
    folders: dict[str, list[Stored]] = {}
    for found in objects:
        folders.setdefault(found.key.rpartition("/")[0], []).append(found)
    return folders


def stored_caches(storage: Storage) -> list[StoredCache]:
    """All caches, in the order of their ids."""
    found: dict[str, list[Stored]] = {}
    for stored in storage.objects("caches"):
        found.setdefault(stored.key.split("/")[1], []).append(stored)
    return [_cache(storage, name, objects) for name, objects in found.items()]


def _cache(storage: Storage, name: str, objects: list[Stored]) -> StoredCache:
    ranges, identity, damage = list[tuple[int, int]](), None, list[str]()
    for folder, inside in by_folder(objects).items():
        views = _VIEWS.fullmatch(folder.rpartition("/")[2])
        if views is None:
            damage.append(f"{folder} holds what this version does not know")
            continue
        ranges.append((int(views[1]), int(views[2])))
        key = f"{folder}/manifest.json"
        if key in {one.key for one in inside}:
            try:
                identity = _identity(storage, key, name)
            except (ValueError, TypeError, KeyError) as error:
                damage.append(f"{key} ({error})")
    segments = [_segment(identity, first, stop) for first, stop in sorted(ranges)] if identity else []
    return StoredCache(id=name, identity=identity, objects=objects, segments=segments, damage=damage)


def _identity(storage: Storage, key: str, name: str) -> dict[str, Any]:
    """What a manifest says its cache is of; raise ValueError, TypeError or KeyError for one that cannot be right."""
    identity: dict[str, Any] = unseal(storage.read(key) or b"")["identity"]
    if digest(identity) != name or _segment(identity, 0, 1).id != name:
        raise ValueError("it is of another cache")
    return identity


def _segment(identity: Mapping[str, Any], first_view: int, stop_view: int) -> Segment:
    said = {name: value for name, value in identity.items() if name not in _POOL_FIELDS}
    pool = {name: identity[name] for name in _POOL_FIELDS if name != "format"}
    return Segment(labels=Labels(**said), first_view=first_view, stop_view=stop_view, **pool)


def dependents(storage: Storage, caches: Sequence[StoredCache]) -> Dependents:
    """Count results. One that names a cache of a grown pool came from the caches of its earlier blocks too."""
    known, told = _with_earlier(storage, caches), Dependents()
    for spec in _trained(storage):
        for name, *ids in spec["sources"]:
            for cache in {one for id_ in ids if isinstance(id_, str) for one in known.get(id_, [id_])}:
                told.names[cache].add(name)
                told.results[cache] += 1
            for graph in _graphs_of(spec["trial"], ids):
                told.graphs[graph] += 1
    return told


def _trained(storage: Storage) -> Iterator[dict[str, Any]]:
    """What the results say was trained; one that is damaged or foreign says nothing, the report names it."""
    for key in storage.keys("results"):
        try:
            result = read_result(storage, key.removeprefix("results/").removesuffix(".json")) or {}
            _ = result["spec"]["sources"], result["spec"]["trial"]
        except (DamagedError, KeyError, TypeError):
            continue
        yield result["spec"]


def _with_earlier(storage: Storage, caches: Sequence[StoredCache]) -> dict[str, list[str]]:
    """By id of a cache: itself, and those of the same labels of the earlier blocks of its pool."""
    earlier: dict[str, set[str]] = defaultdict(set)
    for packed in packed_datasets(storage):
        for number, block in enumerate(packed.blocks):
            earlier[block.fingerprint] |= {before.fingerprint for before in packed.blocks[:number]}
    told = [(cache.id, cache.labels, cache.identity["pool"]) for cache in caches if cache.identity]
    return {
        name: [name, *(other for other, alike, pool in told if alike == labels and pool in earlier[own])]
        for name, labels, own in told
    }


def _graphs_of(trial: Mapping[str, Any], ids: Sequence[Any]) -> list[str]:
    """The graphs that a training may have read, given what its result says of one source."""
    try:
        method = get_method(trial["method"])
        neighbours = method.needs(validate(method.Options, trial["options"])).graph
    except InputError:  # of a method, or of options, that there are no more
        return []
    return [graph_id(id_, neighbours) for id_ in ids if isinstance(id_, str)] if neighbours else []


def graph_origins(caches: Sequence[StoredCache], names: Iterable[str]) -> dict[str, tuple[str, int]]:
    """By graph: the id of the embedding it is derived from, and its number of neighbours, where the name tells."""
    wanted = set(names)
    if not wanted:
        return {}
    embeddings = [cache.id for cache in caches if cache.identity and cache.identity["output"] == "embedding"]
    tried = ((cache, count) for cache in embeddings for count in range(1, MOST_NEIGHBOURS + 1))
    return {name: origin for origin in tried if (name := graph_id(*origin)) in wanted}


def find_cache(caches: Sequence[StoredCache], start: str) -> StoredCache:
    """Return the one cache whose id starts like that."""
    found = [cache for cache in caches if cache.id.startswith(start)]
    if len(found) == 1:
        return found[0]
    what = f"is the start of {len(found)}" if found else "is unknown"
    listed = ", ".join(cache.id for cache in found or caches) or "none"
    raise InputError(f"cache {start!r} {what}; {'name one of' if found else 'there are'}: {listed}")


def differences(one: StoredCache, other: StoredCache) -> list[tuple[str, str, str]]:
    """The fields in which two caches' identities differ, dotted, with both values; `-` stands for none."""
    for cache in (one, other):
        if cache.identity is None:
            raise DamagedError(
                f"cache {cache.id} has no manifest that can be read ({cache.state}), so nothing to compare"
            )
    left, right = (dict(_flat(cache.identity)) for cache in (one, other))
    fields = [*left, *(name for name in right if name not in left)]
    pairs = [(name, left.get(name, "-"), right.get(name, "-")) for name in fields]
    return [(name, mine, others) for name, mine, others in pairs if mine != others]


def _flat(value: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """The values inside mappings, each with its dotted path; a list is one value."""
    if isinstance(value, Mapping) and value:
        for name, inside in value.items():
            yield from _flat(inside, f"{path}.{name}" if path else str(name))
    else:
        yield path, value if isinstance(value, str) else canonical(value)
