"""House-keeping of a storage: tables of what lies on it, and the removal of what no experiment needs."""

import time
from collections.abc import Sequence
from dataclasses import dataclass

from cluster.storage import Storage, Stored
from pipeline.caches.segments import segments_of
from pipeline.care.inventory import (
    StoredCache,
    by_folder,
    dependents,
    differences,
    find_cache,
    graph_origins,
    open_inventory,
    stored_caches,
)
from pipeline.packing.growth import packed_datasets
from pipeline.planning.plan import Plan

BUSY_SECONDS = 3600
"""What is not finished and was written to since then counts as being made right now."""
MEGABYTE = 1e6

CACHE_COLUMNS = (
    "cache", "source", "output", "encoding", "samples", "views", "MB", "state", "age", "results",
)  # fmt: skip
GRAPH_COLUMNS = ("graph", "embedding", "neighbours", "MB", "state", "age", "results")


@dataclass(frozen=True, kw_only=True)
class Pile:
    """Objects that only make sense together, and that nothing given needs."""

    name: str
    objects: Sequence[Stored]
    busy: bool
    """Whether somebody may be making it right now."""

    @property
    def bytes(self) -> int:
        """Of all its objects."""
        return sum(found.bytes for found in self.objects)


def list_caches(storage: Storage) -> list[str]:
    """Tables of the caches and the graphs on a storage, a line each."""
    open_inventory(storage)
    caches, now = stored_caches(storage), time.time()
    told, datasets = dependents(storage, caches), _dataset_names(storage)
    rows = []
    for cache in caches:
        what = _what(cache, names=told.names[cache.id], datasets=datasets)
        size, age = _size_and_age(cache.objects, now=now)
        rows.append((cache.id, *what, size, cache.state, age, str(told.results[cache.id])))
    return [*_table(CACHE_COLUMNS, rows), "", *_table(GRAPH_COLUMNS, _graphs(storage, caches, told.graphs, now=now))]


def _dataset_names(storage: Storage) -> dict[str, str]:
    """Of the data sets on a storage, by the fingerprint of a block of their pool."""
    return {block.fingerprint: packed.name for packed in packed_datasets(storage) for block in packed.blocks}


def _what(cache: StoredCache, *, names: set[str], datasets: dict[str, str]) -> tuple[str, ...]:
    """Source, output, encoding, samples and views of a cache, as far as they are known."""
    if cache.identity is None:
        return (", ".join(sorted(names)) or "?", "?", "?", "?", "?")
    labels, first = cache.segments[0].labels, cache.segments[0]
    named = f" ({', '.join(sorted(names))})" if names else ""
    samples = f"{datasets.get(first.pool, '?')} {first.first}..{first.stop - 1}"
    views = ", ".join(f"{segment.first_view}..{segment.stop_view - 1}" for segment in cache.segments)
    return f"{labels.source.get('architecture', '?')}{named}", labels.name, labels.encoding, samples, views


def _graphs(
    storage: Storage, caches: Sequence[StoredCache], results: dict[str, int], *, now: float
) -> list[tuple[str, ...]]:
    found: dict[str, list[Stored]] = {}
    for stored in storage.objects("graphs"):
        found.setdefault(stored.key.split("/")[1].partition(".")[0], []).append(stored)
    origins, rows = graph_origins(caches, found), []
    for name, objects in found.items():
        origin = origins.get(name)
        embedding, neighbours = (origin[0], str(origin[1])) if origin else ("?", "?")
        size, age = _size_and_age(objects, now=now)
        state = "whole" if _has_both(name, objects) else "lacks its file or its record"
        rows.append((name, embedding, neighbours, size, state, age, str(results.get(name, 0))))
    return rows


def _has_both(name: str, objects: Sequence[Stored]) -> bool:
    """Whether a graph's file and its record are there."""
    return {f"graphs/{name}.parquet", f"graphs/{name}.json"} <= {found.key for found in objects}


def _size_and_age(objects: Sequence[Stored], *, now: float) -> tuple[str, str]:
    seconds = max(0.0, now - max(found.written for found in objects))
    age = next((f"{seconds / unit:.0f} {name}" for name, unit in _UNITS if seconds >= unit), "now")
    return f"{sum(found.bytes for found in objects) / MEGABYTE:.2f}", age


_UNITS = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Aligned columns under their names; one line where there are no rows."""
    if not rows:
        return [f"no {columns[0]}s"]
    widths = [max(len(row[at]) for row in (columns, *rows)) for at in range(len(columns))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in (columns, *rows)]
    return [line.rstrip() for line in lines]


def diff_caches(storage: Storage, one: str, other: str) -> list[str]:
    """What two caches differ in, a field each line."""
    open_inventory(storage)
    caches = stored_caches(storage)
    rows = differences(find_cache(caches, one), find_cache(caches, other))
    return _table(("field", one, other), rows) if rows else ["identical"]


def find_waste(storage: Storage, plans: Sequence[Plan]) -> list[Pile]:
    """What no experiment needs of what can be made again: caches, graphs, checkpoints of finished trainings, damage."""
    now = time.time()
    caches = by_folder(storage.objects("caches"))
    graphs: dict[str, list[Stored]] = {}
    for stored in storage.objects("graphs"):
        graphs.setdefault(stored.key.rpartition(".")[0], []).append(stored)
    needed = _needed(storage, plans)
    piles = [
        Pile(name=name, objects=objects, busy=_busy(objects, whole=f"{name}/manifest.json", now=now))
        for name, objects in caches.items()
        if name not in needed
    ] + [
        Pile(name=name, objects=objects, busy=_busy(objects, whole=f"{name}.json", now=now))
        for name, objects in graphs.items()
        if name not in needed
    ]
    return piles + _never_needed(storage, now=now)


def _needed(storage: Storage, plans: Sequence[Plan]) -> set[str]:
    """Names of the segments and graphs that some trial reads, or will once they are made."""
    specs = [spec for plan in plans for of in plan.caches_for().values() for spec in of.values()]
    graphs = [graph for plan in plans for graph in plan.graphs_for().values()]
    segments = {segment.prefix for spec in specs for segment in segments_of(storage, spec)}
    return segments | {graph.key.rpartition(".")[0] for graph in graphs}


def _busy(objects: Sequence[Stored], *, whole: str, now: float) -> bool:
    """Whether somebody claimed a part of it lately, or wrote to it while it has no record of being whole."""
    young = [found.key for found in objects if now - found.written < BUSY_SECONDS]
    unfinished = whole not in {found.key for found in objects}
    return bool(young) if unfinished else any(key.endswith(".claim") for key in young)


def _never_needed(storage: Storage, *, now: float) -> list[Pile]:
    """Damaged objects that were put aside, checkpoints of trainings that have a result, claims that nobody renews."""
    aside = list(storage.objects("quarantine"))
    dead = [found for found in storage.objects("claims") if now - found.written >= BUSY_SECONDS]
    finished = {key.removeprefix("results/").removesuffix(".json") for key in storage.keys("results")}
    piles = [Pile(name="quarantine", objects=aside, busy=False)] if aside else []
    piles += [Pile(name="claims", objects=dead, busy=False)] if dead else []
    for name, objects in by_folder(storage.objects("checkpoints")).items():
        if name.removeprefix("checkpoints/") in finished:
            piles.append(Pile(name=name, objects=objects, busy=False))
    return piles


def remove(storage: Storage, pile: Pile) -> None:
    """Remove a pile: what makes it whole first, so that an interruption leaves nothing that looks whole."""

    def order(found: Stored) -> tuple[bool, bool, str]:
        return not found.key.endswith("/manifest.json"), not found.key.endswith(".json"), found.key

    for found in sorted(pile.objects, key=order):
        storage.delete(found.key)


def collect(storage: Storage, plans: Sequence[Plan], *, delete: bool) -> list[str]:
    """Remove what no experiment needs, or only say what that is; a line for each, then the sum."""
    piles = find_waste(storage, plans)
    idle = [pile for pile in piles if not pile.busy]
    for pile in idle if delete else ():
        remove(storage, pile)
    total = f"{len(idle)} found, {sum(pile.bytes for pile in idle) / MEGABYTE:.2f} MB"
    ending = "removed" if delete else "nothing was removed; --yes removes it"
    return [
        *(f"gc      {pile.name}: {pile.bytes / MEGABYTE:.2f} MB{_kept(pile)}" for pile in piles),
        f"gc      {total}: {ending}" if idle else "gc      nothing to remove",
    ]


def _kept(pile: Pile) -> str:
    return ", kept: somebody may be making it right now" if pile.busy else ""
