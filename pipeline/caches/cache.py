"""The cache stage: Ray Data maps a plan of shards over a pool of workers, each with its own copies of the sources."""

import gc
import json
import logging
import time
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from cluster.logs import event
from cluster.metrics import Traffic, count, hear
from cluster.resources import Resources, cluster_nodes, concurrency
from cluster.session import start_session
from cluster.storage import Storage
from pipeline.caches.claims import Watch, claim_key
from pipeline.caches.labels import (
    ShardRecord,
    as_record,
    finish_segment,
    load_manifest,
    manifest_key,
    quarantine,
    read_record,
    read_shard,
)
from pipeline.caches.segments import WholeCache, require_cache, segments_of
from pipeline.caches.shards import Part, ShardJob, ShardWriter
from pipeline.planning.plan import Plan, SourceCaches
from pipeline.progress import Progress
from sskt.errors import DamagedError, SsktError

TRIES = 3
"""How often the shards that are missing are given to new workers while none of them gets made."""
SHORT_PAUSE, LONG_PAUSE = 0.5, 5.0
"""Seconds between two looks at what others are making: they double from one to the other."""

Records = dict[str, dict[int, ShardRecord]]
"""By the segment's prefix, then by shard."""
Missing = dict[tuple[int, int, int], list[str]]
"""The prefixes that lack a shard, by (first id, last id + 1, shard): what one read of images can serve."""


@dataclass(frozen=True, kw_only=True)
class CacheOutcome:
    """What a run of the stage did for one source."""

    caches: dict[str, WholeCache]
    """By name."""
    passes: int
    """Images that went through the source in this run; 0 where everything was found."""
    worker_seconds: float
    """Time the workers spent on them, summed."""
    workers: int
    repaired: list[str]
    """What was wrong with shards that were made again."""


@dataclass(kw_only=True)
class Work:
    """What is wanted, what of it can be trusted, and what was made now."""

    parts: dict[str, Part]
    found: Records = field(default_factory=dict)
    made: Records = field(default_factory=dict)
    repaired: dict[str, list[str]] = field(default_factory=dict)
    """What was wrong, by source."""
    workers: int = 1

    def missing(self) -> Missing:
        """What is neither found nor made."""
        missing: Missing = {}
        for prefix, part in self.parts.items():
            for shard in range(part.segment.shards):
                if shard not in self.found[prefix] and shard not in self.made[prefix]:
                    ids = part.segment.id_range(shard)
                    missing.setdefault((ids.start, ids.stop, shard), []).append(prefix)
        return missing

    def views(self) -> int:
        """Images that have to go through sources for what is missing."""
        passes = 0
        for (first, stop, _), prefixes in self.missing().items():
            # What the same source says of the same views comes from one pass.
            alike = {(self.parts[prefix].source, self.parts[prefix].segment.view_ids) for prefix in prefixes}
            passes += (stop - first) * sum(len(view_ids) for _, view_ids in alike)
        return passes

    def records(self, prefix: str) -> list[ShardRecord]:
        """All records of a segment, by shard."""
        found = self.found[prefix] | self.made[prefix]
        return [found[shard] for shard in sorted(found)]


def ensure_caches(plan: Plan, storage: Storage, *, wanted: Mapping[str, SourceCaches]) -> dict[str, CacheOutcome]:
    """Make what is missing of some caches and verify what is there; a damaged shard alone is made again."""
    work = _look(storage, wanted)
    if work.missing():
        storage.check(write="caches")
        _make(plan, storage, work)
    for prefix, part in work.parts.items():
        if work.made[prefix] or not _has_manifest(storage, part, work):
            finish_segment(storage, part.segment, work.records(prefix))
    return {name: _outcome(storage, name, specs, work) for name, specs in wanted.items()}


def _look(storage: Storage, wanted: Mapping[str, SourceCaches]) -> Work:
    """Find the segments, and which of their shards can be trusted."""
    segments = {
        segment.prefix: Part(source=name, segment=segment)
        for name, specs in wanted.items()
        for spec in specs.values()
        for segment in segments_of(storage, spec)
    }
    work = Work(parts=segments, found={prefix: {} for prefix in segments}, made={prefix: {} for prefix in segments})
    for prefix, part in segments.items():
        for shard in range(part.segment.shards):
            _find(storage, work, prefix, shard)
    return work


def _find(storage: Storage, work: Work, prefix: str, shard: int) -> bool:
    """Whether a shard is there and can be trusted; one that cannot is put aside."""
    part = work.parts[prefix]
    record = read_record(storage, part.segment, shard)
    if record is None:
        return False
    try:
        read_shard(storage, part.segment, record)
    except DamagedError as error:
        work.repaired.setdefault(part.source, []).append(str(error))
        quarantine(storage, part.segment, shard)
        count("sskt_shards", state="damaged")
        place = {"source": part.source, "shard": shard, "segment": prefix}
        event("shard_damaged", level=logging.WARNING, **place, reason=str(error))
        return False
    work.found[prefix][shard] = record
    return True


def _has_manifest(storage: Storage, part: Part, work: Work) -> bool:
    """Whether a segment's manifest can be trusted; one that cannot is written again from the records."""
    segment = part.segment
    try:
        manifest = load_manifest(storage, segment)
        if manifest is not None and list(manifest.shards) != work.records(segment.prefix):
            raise DamagedError(f"{manifest_key(segment)} differs from the records of its shards")
    except DamagedError as error:
        work.repaired.setdefault(part.source, []).append(str(error))
        return False
    return manifest is not None


def _outcome(storage: Storage, name: str, specs: SourceCaches, work: Work) -> CacheOutcome:
    mine = [prefix for prefix, part in work.parts.items() if part.source == name]
    made = [record for prefix in mine for record in work.made[prefix].values()]
    return CacheOutcome(
        caches={cache: require_cache(storage, spec, source=name) for cache, spec in specs.items()},
        passes=sum(record.passes for record in made),
        worker_seconds=sum(record.seconds for record in made),
        workers=work.workers,
        repaired=work.repaired.get(name, []),
    )


def _make(plan: Plan, storage: Storage, work: Work) -> None:
    resources = plan.experiment.resources
    job = ShardJob(
        storage_uri=storage.uri,
        parts=work.parts,
        sources={part.source: plan.experiment.sources[part.source] for part in work.parts.values()},
        recipe=plan.recipe,
        batch_size=plan.experiment.source_batch,
        threads=resources.source_threads,
        device=resources.source_device,
        packed=plan.packed,
        node_cache_gb=resources.node_cache_gb,
    )
    _make_shards(job, storage, work, need=resources.source_worker)


def _make_shards(job: ShardJob, storage: Storage, work: Work, *, need: Resources) -> None:
    """Make what is missing and nobody else makes; wait for the rest, to find it or to make what was given up."""
    total, tries, pause, watch = work.views(), 0, SHORT_PAUSE, Watch(storage)
    before = total
    with Progress("cache", total=total, unit="views") as progress:
        while work.missing():
            free = _free(storage, work, watch)
            if work.views() < before:  # machines may be lost as often as others get on
                before, tries = work.views(), 0
            waits = sum(map(len, work.missing().values())) - sum(map(len, free.values()))
            progress.note = f"others work on {waits} of its shards" if waits else ""
            progress.reach(total - work.views(), total)
            if free:
                failure = _make_free(job, work, free, need=need, progress=progress)
                tries, pause = tries + bool(failure), SHORT_PAUSE
                if tries == TRIES:
                    left = sorted({shard for *_, shard in work.missing()})
                    raise SsktError(f"cache: workers died {TRIES} times, shards {left} are missing: {failure}")
            elif waits:
                time.sleep(pause)
                pause = min(2 * pause, LONG_PAUSE)


def _free(storage: Storage, work: Work, watch: Watch) -> Missing:
    """What nobody is making of what is missing; what others have made meanwhile is found."""
    free: Missing = {}
    for where, prefixes in work.missing().items():
        for prefix in prefixes:
            shard, segment = where[-1], work.parts[prefix].segment
            if not watch.lives(claim_key(segment, shard)) and not _find(storage, work, prefix, shard):
                free.setdefault(where, []).append(prefix)
    return free


def _make_free(job: ShardJob, work: Work, free: Missing, *, need: Resources, progress: Progress) -> str:
    """Give shards to a pool of workers; return why workers died, nothing where all lived."""
    start_session()
    from ray.exceptions import RayError, RayTaskError  # only inside a session

    work.workers = concurrency(cluster_nodes(), need)
    try:
        for shard, records in _mapped(job, work, free, need=need):
            for prefix, record in records.items():
                work.made[prefix][shard] = record
            progress.reach(progress.total - work.views(), progress.total)
    except RayTaskError as error:  # the code failed, and would fail again
        raise SsktError(f"cache: {_first_cause(error)}") from error
    except RayError as error:
        reason = str(error).strip().splitlines()[0]
    else:
        return ""
    gc.collect()  # the error holds frames that hold the pool, whose other workers would keep their CPUs and GPUs
    return reason


def _first_cause(error: Exception) -> str:
    """What a worker itself had to say: the last line before Ray's own explanations."""
    told = str(error).rpartition("\n\nThe above exception")[0] or str(error)
    return told.strip().splitlines()[-1].removeprefix("sskt.errors.SsktError: ")


def _mapped(
    job: ShardJob, work: Work, free: Missing, *, need: Resources
) -> Iterator[tuple[int, dict[str, ShardRecord]]]:
    """Map the plan of shards over a pool of workers; yields each shard's new records as they come."""
    rows: list[Any] = [{"shard": shard, "prefixes": prefixes} for (*_, shard), prefixes in free.items()]
    for answer in over_workers(ShardWriter, job, rows, at_once=work.workers, need=need):
        hear(Traffic(*map(int, answer["traffic"])))
        records = {prefix: as_record(record) for prefix, record in json.loads(answer["records"]).items()}
        yield int(answer["shard"]), records


def over_workers(
    worker: type, job: object, rows: list[Any], *, at_once: int, need: Resources
) -> Iterator[dict[str, Any]]:
    """Give rows to a pool of workers, each made of the job; yields what they say as it comes. A session is open."""
    import ray.data  # only inside a session

    _quiet_ray_data()
    plan = ray.data.from_items(rows, override_num_blocks=len(rows))
    with warnings.catch_warnings():
        # There is no other way yet to say max_restarts; Ray would restart for ever a worker that dies of its shard.
        warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")
        answers = plan.map(
            worker,
            fn_constructor_args=(job,),
            compute=ray.data.ActorPoolStrategy(size=min(at_once, len(rows))),
            max_restarts=0,
            **need.options(),
        )
    yield from answers.iter_rows()


def _quiet_ray_data() -> None:
    """Our own progress is shown instead of Ray Data's."""
    import ray.data  # only inside a session

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # its import has set another level
    context.max_errored_blocks = 0  # a shard that cannot be made is an error, never fewer rows
