"""The cache stage: Ray Data maps a plan of shards over a pool of actors, each with its own copy of the source."""

import logging
import math
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from cluster.resources import Resources, cluster_resources, concurrency
from cluster.session import start_session
from cluster.storage import Storage, open_storage
from pipeline.labels import (
    CacheManifest,
    CacheSpec,
    ShardRecord,
    commit_shard,
    finish_cache,
    load_manifest,
    read_record,
    read_shard,
    record_key,
)
from pipeline.packed import PackedDataset, read_images
from pipeline.plan import Plan
from pipeline.progress import Progress
from sskt.encodings import get_encoding
from sskt.errors import DamagedError, SsktError
from sskt.settings import SourceSettings
from sskt.sources import Source, load_source
from sskt.views import Recipe

TRIES = 3
"""How often the shards that are missing are given to new workers."""


@dataclass(frozen=True, kw_only=True)
class CacheOutcome:
    """What a run of the stage did for one source."""

    manifest: CacheManifest
    passes: int
    """Images that went through the source now; 0 where everything was found."""
    worker_seconds: float = 0
    """Time the workers spent on them, summed."""
    workers: int = 1
    repaired: tuple[str, ...] = ()
    """What was wrong with shards that were made again."""


@dataclass(frozen=True, kw_only=True)
class ShardJob:
    """All a worker needs to make any shard of a cache. It is sent to other machines: no open handles, no secrets."""

    storage_uri: str
    spec: CacheSpec
    source_name: str
    source: SourceSettings
    recipe: Recipe
    batch_size: int
    threads: int
    device: str
    packed: PackedDataset


class ShardWriter:
    """A worker: loads the source once, then makes the shards it is given."""

    def __init__(self, job: ShardJob) -> None:
        torch.set_num_threads(job.threads)
        self.job = job
        self.storage = open_storage(job.storage_uri)
        self.source = load_source(job.source_name, job.source)
        self.source.network.to(job.device)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Make one shard; return its record."""
        shard, job = int(row["shard"]), self.job
        images = read_images(job.packed, self.storage, job.spec.id_range(shard))
        began = time.perf_counter()
        try:
            outputs = label_shard(self.source, torch.from_numpy(images), job=job, shard=shard)
        except Exception as error:
            raise SsktError(f"shard {shard}: {type(error).__name__}: {error}") from error
        seconds = time.perf_counter() - began
        return asdict(commit_shard(self.storage, job.spec, shard=shard, outputs=outputs, seconds=seconds))


def label_shard(source: Source, images: torch.Tensor, *, job: ShardJob, shard: int) -> dict[str, np.ndarray]:
    """Run the source over all views of a shard's images, uint8 [rows, C, S, S]; returns uint8 [rows, M * bytes].

    Batches are cut by position in the shard alone, so a shard's bytes do not depend on who makes it.
    """
    spec, encoding = job.spec, get_encoding(job.spec.encoding)
    rows = torch.arange(len(images)).repeat_interleave(spec.view_count)
    views = torch.arange(spec.view_count).repeat(len(images))
    first_id = spec.id_range(shard).start
    parts: dict[str, list[torch.Tensor]] = {name: [] for name in spec.widths}
    for some, seen in zip(rows.split(job.batch_size), views.split(job.batch_size), strict=True):
        pictures = job.recipe.apply(images[some], ids=some + first_id, views=seen).to(job.device)
        for name, values in source.outputs(pictures, tuple(spec.widths)).items():
            parts[name].append(encoding.encode(values).cpu())
    return {name: torch.cat(encoded).view(len(images), -1).numpy() for name, encoded in parts.items()}


def ensure_caches(plan: Plan, storage: Storage, *, specs: dict[str, CacheSpec]) -> dict[str, CacheOutcome]:
    """Make what is missing of some caches and verify what is there; a damaged shard alone is made again."""
    outcomes, missing = {}, {}
    for name, spec in specs.items():
        records, repaired = _verified_records(storage, spec)
        manifest = load_manifest(storage, spec) if len(records) == spec.shards else None
        if manifest is not None:
            outcomes[name] = CacheOutcome(manifest=manifest, passes=0)
        else:
            missing[name] = (records, repaired)
    if missing:
        outcomes |= _build(plan, storage, missing=missing)
    return outcomes


def _verified_records(storage: Storage, spec: CacheSpec) -> tuple[list[ShardRecord], tuple[str, ...]]:
    """The records of the shards that can be trusted, and what is wrong with the others that were there."""
    good, wrong = [], []
    for shard in range(spec.shards):
        record = read_record(storage, spec, shard)
        if record is None:
            continue
        try:
            read_shard(storage, spec, record)
            good.append(record)
        except DamagedError as error:
            wrong.append(str(error))
            storage.delete(record_key(spec, shard))
    return good, tuple(wrong)


def _build(
    plan: Plan, storage: Storage, *, missing: dict[str, tuple[list[ShardRecord], tuple[str, ...]]]
) -> dict[str, CacheOutcome]:
    start_session()
    outcomes = {}
    need = plan.experiment.resources.source_worker
    workers = concurrency(cluster_resources(), need)
    for name, (records, repaired) in missing.items():
        spec = plan.caches[name]
        todo = sorted(set(range(spec.shards)) - {record.shard for record in records})
        job = _shard_job(plan, storage, name)
        made = _make_shards(job, todo, need=need, workers=workers)
        manifest = finish_cache(storage, spec, records + made)
        outcomes[name] = CacheOutcome(
            manifest=manifest,
            passes=sum(record.passes for record in made),
            worker_seconds=sum(record.seconds for record in made),
            workers=workers,
            repaired=repaired,
        )
    return outcomes


def _shard_job(plan: Plan, storage: Storage, name: str) -> ShardJob:
    spec = plan.caches[name]
    return ShardJob(
        storage_uri=storage.uri,
        spec=spec,
        source_name=name,
        source=plan.experiment.sources[name],
        recipe=plan.recipe,
        batch_size=plan.experiment.cache.batch_size,
        threads=max(1, math.floor(plan.experiment.resources.cpus_per_source_worker)),
        device=str(spec.numerics["device"]),
        packed=plan.packed,
    )


def _make_shards(job: ShardJob, shards: list[int], *, need: Resources, workers: int) -> list[ShardRecord]:
    """Make shards; where workers die, what is missing is made by new ones, a bounded number of times."""
    from ray.exceptions import RayError, RayTaskError  # only inside a session

    made: dict[int, ShardRecord] = {}
    views = sum(len(job.spec.id_range(shard)) for shard in shards) * job.spec.view_count
    with Progress(f"cache {job.source_name}", total=views, unit="views") as progress:
        for attempt in range(1, TRIES + 1):
            todo = [shard for shard in shards if shard not in made]
            try:
                for record in _mapped(job, todo, need=need, workers=workers):
                    made[record.shard] = record
                    progress.advance(record.passes)
                break
            except RayTaskError as error:  # the code failed, and would fail again
                raise SsktError(f"cache of source {job.source_name!r}: {_first_cause(error)}") from error
            except RayError as error:
                if attempt == TRIES:
                    left = [shard for shard in shards if shard not in made]
                    raise SsktError(
                        f"cache of source {job.source_name!r}: workers died {TRIES} times, shards {left} are missing: "
                        f"{str(error).strip().splitlines()[0]}"
                    ) from error
    return list(made.values())


def _first_cause(error: Exception) -> str:
    """What a worker itself had to say: the last line before Ray's own explanations."""
    told = str(error).rpartition("\n\nThe above exception")[0] or str(error)
    return told.strip().splitlines()[-1].removeprefix("sskt.errors.SsktError: ")


def _mapped(job: ShardJob, shards: list[int], *, need: Resources, workers: int) -> Iterator[ShardRecord]:
    """Map the plan of shards over a pool of workers; yields records as they come."""
    import ray.data  # only inside a session

    if not shards:
        return
    _quiet_ray_data()
    plan = ray.data.from_items([{"shard": shard} for shard in shards], override_num_blocks=len(shards))
    with warnings.catch_warnings():
        # There is no other way yet to say max_restarts; Ray would restart for ever a worker that dies of its shard.
        warnings.filterwarnings("ignore", message="`ray_remote_args` is deprecated")
        rows = plan.map(
            ShardWriter,
            fn_constructor_args=(job,),
            compute=ray.data.ActorPoolStrategy(size=min(workers, len(shards))),
            num_cpus=need.cpus,
            num_gpus=need.gpus or None,
            max_restarts=0,
        )
    for row in rows.iter_rows():
        yield ShardRecord(**row)


def _quiet_ray_data() -> None:
    """Our own progress is shown instead of Ray Data's."""
    import ray.data  # only inside a session

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    logging.getLogger("ray.data").setLevel(logging.ERROR)  # its import has set another level
    context.max_errored_blocks = 0  # a shard that cannot be made is an error, never fewer rows
