"""The cache stage: Ray Data maps a plan of shards over a pool of workers, each with its own copy of the source."""

import logging
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from cluster.resources import Resources, cluster_resources, concurrency
from cluster.session import start_session
from cluster.storage import Storage
from pipeline.labels import (
    CacheManifest,
    CacheSpec,
    ShardRecord,
    finish_cache,
    load_manifest,
    read_record,
    read_shard,
    record_key,
)
from pipeline.plan import Plan, SourceCaches
from pipeline.progress import Progress
from pipeline.shards import ShardJob, ShardWriter
from sskt.errors import DamagedError, SsktError

TRIES = 3
"""How often the shards that are missing are given to new workers."""

Records = dict[str, dict[int, ShardRecord]]
"""By cache, then by shard."""


@dataclass(frozen=True, kw_only=True)
class CacheOutcome:
    """What a run of the stage did for one source."""

    manifests: dict[str, CacheManifest]
    """By what the caches are called."""
    passes: int = 0
    """Images that went through the source now; 0 where everything was found."""
    worker_seconds: float = 0
    """Time the workers spent on them, summed."""
    workers: int = 1
    repaired: list[str] = field(default_factory=list)
    """What was wrong with shards that were made again."""


def ensure_caches(plan: Plan, storage: Storage, *, wanted: Mapping[str, SourceCaches]) -> dict[str, CacheOutcome]:
    """Make what is missing of some caches and verify what is there; a damaged shard alone is made again."""
    return {name: _ensure(plan, storage, name=name, specs=specs) for name, specs in wanted.items()}


def _ensure(plan: Plan, storage: Storage, *, name: str, specs: SourceCaches) -> CacheOutcome:
    records: Records = {}
    repaired: list[str] = []
    manifests: dict[str, CacheManifest] = {}
    for cache, spec in specs.items():
        records[cache] = _verified_records(storage, spec, repaired)
        manifest = load_manifest(storage, spec) if len(records[cache]) == spec.shards else None
        if manifest is not None:
            manifests[cache] = manifest
    if len(manifests) == len(specs):
        return CacheOutcome(manifests=manifests)
    return _build(plan, storage, name=name, specs=specs, records=records, repaired=repaired)


def _verified_records(storage: Storage, spec: CacheSpec, repaired: list[str]) -> dict[int, ShardRecord]:
    """The records of the shards that can be trusted; what is wrong with others that were there joins `repaired`."""
    good = {}
    for shard in range(spec.shards):
        record = read_record(storage, spec, shard)
        if record is None:
            continue
        try:
            read_shard(storage, spec, record)
            good[shard] = record
        except DamagedError as error:
            repaired.append(str(error))
            storage.delete(record_key(spec, shard))
    return good


def _build(
    plan: Plan, storage: Storage, *, name: str, specs: SourceCaches, records: Records, repaired: list[str]
) -> CacheOutcome:
    start_session()
    need = plan.experiment.resources.source_worker
    workers = concurrency(cluster_resources(), need)
    made = _make_shards(_shard_job(plan, storage, name=name, specs=specs), records, need=need, workers=workers)
    manifests = {
        cache: finish_cache(storage, spec, [*records[cache].values(), *made[cache].values()])
        for cache, spec in specs.items()
    }
    everything = [record for by_shard in made.values() for record in by_shard.values()]
    return CacheOutcome(
        manifests=manifests,
        passes=sum(record.passes for record in everything),
        worker_seconds=sum(record.seconds for record in everything),
        workers=workers,
        repaired=repaired,
    )


def _shard_job(plan: Plan, storage: Storage, *, name: str, specs: SourceCaches) -> ShardJob:
    resources = plan.experiment.resources
    return ShardJob(
        storage_uri=storage.uri,
        specs=dict(specs),
        source_name=name,
        source=plan.experiment.sources[name],
        recipe=plan.recipe,
        batch_size=plan.experiment.cache.batch_size,
        threads=resources.source_threads,
        device="cuda" if resources.gpus_per_source_worker else "cpu",
        packed=plan.packed,
    )


def _missing(job: ShardJob, *found: Records) -> dict[int, list[str]]:
    """The caches that lack each shard."""
    missing: dict[int, list[str]] = {}
    for cache, spec in job.specs.items():
        for shard in range(spec.shards):
            if not any(shard in records[cache] for records in found):
                missing.setdefault(shard, []).append(cache)
    return missing


def _views(job: ShardJob, missing: dict[int, list[str]]) -> int:
    """Images that have to go through the source."""
    passes = 0
    for shard, names in missing.items():
        # By what they hold: caches with the same views are made in one pass.
        views = {spec.turned: len(spec.view_ids) for spec in (job.specs[name] for name in names)}
        passes += sum(views.values()) * len(job.specs[names[0]].id_range(shard))
    return passes


def _make_shards(job: ShardJob, found: Records, *, need: Resources, workers: int) -> Records:
    """Make what is not found; where workers die, new ones make what is missing then, a bounded number of times."""
    from ray.exceptions import RayError, RayTaskError  # only inside a session

    made: Records = {cache: {} for cache in job.specs}
    views = _views(job, _missing(job, found))
    stage = f"cache of source {job.source_name!r}"
    with Progress(f"cache {job.source_name}", total=views, unit="views") as progress:
        for attempt in range(1, TRIES + 1):
            try:
                for shard, records in _mapped(job, _missing(job, found, made), need=need, workers=workers):
                    for cache, record in records.items():
                        made[cache][shard] = record
                    progress.advance(sum(record.passes for record in records.values()))
                break
            except RayTaskError as error:  # the code failed, and would fail again
                raise SsktError(f"{stage}: {_first_cause(error)}") from error
            except RayError as error:
                if attempt == TRIES:
                    left, reason = sorted(_missing(job, found, made)), str(error).strip().splitlines()[0]
                    raise SsktError(
                        f"{stage}: workers died {TRIES} times, shards {left} are missing: {reason}"
                    ) from error
    return made


def _first_cause(error: Exception) -> str:
    """What a worker itself had to say: the last line before Ray's own explanations."""
    told = str(error).rpartition("\n\nThe above exception")[0] or str(error)
    return told.strip().splitlines()[-1].removeprefix("sskt.errors.SsktError: ")


def _mapped(
    job: ShardJob, missing: dict[int, list[str]], *, need: Resources, workers: int
) -> Iterator[tuple[int, dict[str, ShardRecord]]]:
    """Map the plan of shards over a pool of workers; yields each shard's new records as they come."""
    import ray.data  # only inside a session

    if not missing:
        return
    _quiet_ray_data()
    rows: list[Any] = [{"shard": shard, "caches": names} for shard, names in missing.items()]
    plan = ray.data.from_items(rows, override_num_blocks=len(rows))
    with warnings.catch_warnings():
        # There is no other way yet to say max_restarts; Ray would restart for ever a worker that dies of its shard.
        warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")
        answers = plan.map(
            ShardWriter,
            fn_constructor_args=(job,),
            compute=ray.data.ActorPoolStrategy(size=min(workers, len(rows))),
            num_cpus=need.cpus,
            num_gpus=need.gpus or None,
            max_restarts=0,
        )
    for answer in answers.iter_rows():
        records = {cache: ShardRecord(**record) for cache, record in answer["records"].items()}
        yield int(answer["shard"]), records


def _quiet_ray_data() -> None:
    """Our own progress is shown instead of Ray Data's."""
    import ray.data  # only inside a session

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # its import has set another level
    context.max_errored_blocks = 0  # a shard that cannot be made is an error, never fewer rows
