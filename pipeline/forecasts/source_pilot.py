"""What sources take, measured by as many workers side by side as will make caches."""

import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cluster.resources import cluster_nodes, concurrency
from cluster.storage import FolderStorage, Storage, open_storage
from pipeline.caches.cache import over_workers
from pipeline.caches.claims import claim_key, claimed
from pipeline.caches.labels import Made, commit_shard
from pipeline.computing import compute_here
from pipeline.forecasts.batches import SIZES, seconds_by_size
from pipeline.forecasts.rates import Rates, SourcePace
from pipeline.packing.packed import PackedDataset, read_images
from pipeline.planning.plan import Plan, SourceCaches
from pipeline.planning.specs import CacheSpec
from sskt.gallery import Gallery
from sskt.settings import SourceSettings
from sskt.sources import Source, load_source
from sskt.views import Recipe

SHARD_ROWS = 64
"""Of the shard that is published on trial."""


def measure_sources(
    plan: Plan, storage: Storage, folder: str, *, wanted: Mapping[str, SourceCaches], seconds: float
) -> Rates:
    """Every source that some caches are made of. folder: where a few of their answers are left."""
    resources, called = plan.experiment.resources, time.time()
    job = SourceJob(
        storage_uri=storage.uri,
        folder=folder,
        sources={name: plan.experiment.sources[name] for name in wanted},
        wanted=wanted,
        packed=plan.packed,
        recipe=plan.recipe,
        batch_size=plan.experiment.source_batch,
        threads=resources.source_threads,
        device=resources.source_device,
        seconds=seconds,
    )
    at_once = concurrency(cluster_nodes(), resources.source_worker)
    rows = [{"number": number} for number in range(at_once)]
    answers = over_workers(SourcePilot, job, rows, at_once=at_once, need=resources.source_worker)
    told = [json.loads(answer["told"]) for answer in answers]
    worked = max(one["ended"] for one in told) - min(one["began"] for one in told)
    sources = {name: _averaged([one["paces"][name] for one in told]) for name in wanted}
    return Rates(sources=sources, cache_start=time.time() - called - worked)


def _averaged(paces: list[dict[str, Any]]) -> SourcePace:
    """Of all workers, as JSON has them: its names are words; what not every worker came to is left out."""
    sizes = set.intersection(*({*pace["batches"]} for pace in paces))
    return SourcePace(
        **{part: mean(pace[part] for pace in paces) for part in ("view", "answer", "shard")},
        batches={int(size): mean(pace["batches"][size] for pace in paces) for size in sorted(sizes, key=int)},
    )


@dataclass(frozen=True, kw_only=True)
class SourceJob:
    """All that a worker needs to measure sources; it travels."""

    storage_uri: str
    folder: str
    sources: dict[str, SourceSettings]
    wanted: Mapping[str, SourceCaches]
    packed: PackedDataset
    recipe: Recipe
    batch_size: int
    threads: int
    device: str
    seconds: float


class SourcePilot:
    """A worker that measures every source."""

    def __init__(self, job: SourceJob) -> None:
        compute_here(job.threads)
        self.job = job

    @cached_property
    def sources(self) -> dict[str, Source]:
        """Loaded when they are first needed, as by the workers that make caches."""
        return {name: load_source(name, self.job.sources[name]).place(self.job.device) for name in self.job.wanted}

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Return what was measured, as JSON; of the first row's what the sources said stays in the folder."""
        job = self.job
        ids = range(min(max(job.batch_size, *SIZES), job.packed.pool))
        images = torch.from_numpy(read_images(job.packed, open_storage(job.storage_uri), ids))
        gallery = Gallery(job.recipe, images, (0, len(ids)), first=0)
        sources, began = self.sources, time.time()
        paces = {name: asdict(self._measure(name, source, gallery, len(ids))) for name, source in sources.items()}
        return {"told": json.dumps({"began": began, "ended": time.time(), "paces": paces})}

    def _measure(self, name: str, source: Source, gallery: Gallery, most: int) -> SourcePace:
        job, specs = self.job, list(self.job.wanted[name].values())
        encoders = {spec.labels.output: spec.labels.encoder for spec in specs}
        count, said, answering = min(job.batch_size, most), dict[str, np.ndarray](), list[float]()

        def seen(count: int) -> Tensor:
            return gallery.show(torch.arange(count), views=torch.zeros(count, dtype=torch.int64), kind="")

        def answered(pixels: Tensor) -> dict[str, Tensor]:
            answers = source.outputs(pixels, tuple(encoders))
            wait_for(job.device)
            return answers

        def once() -> float:
            pixels = seen(count).to(job.device)
            asked = time.perf_counter()
            answers = answered(pixels)
            took = time.perf_counter() - asked
            said.update({output: encoder.encode(answers[output]).cpu().numpy() for output, encoder in encoders.items()})
            return took

        once()  # warms up
        began = time.perf_counter()
        while not answering or time.perf_counter() - began < job.seconds:
            answering.append(once())
        seconds = (time.perf_counter() - began) / len(answering)
        for output, rows in said.items():
            np.save(sample_file(job.folder, name, output), rows)
        shard = _publish(f"{job.folder}/{os.getpid()}", specs[0], said[specs[0].labels.output])
        pixels = seen(most).to(job.device)
        batches = seconds_by_size(
            lambda size: answered(pixels[:size]), most=most, used=count, seconds=job.seconds / len(SIZES)
        )
        return SourcePace(view=seconds / count, answer=mean(answering) / count, shard=shard, batches=batches)


def _publish(folder: str, spec: CacheSpec, rows: np.ndarray) -> float:
    """Seconds that a small shard takes beside its labels. rows: uint8 [n, bytes]."""
    segment, payload = spec.segment(0, 0, 1), rows[:SHARD_ROWS, np.newaxis]
    payload = np.repeat(payload, len(segment.view_ids), axis=1)
    small, storage = replace(segment, stop=segment.first + len(payload)), FolderStorage(folder)
    began = time.perf_counter()
    with claimed(storage, [claim_key(small, 0)]):
        commit_shard(storage, small, shard=0, made=Made(payload=payload, golden={}, passes=0, seconds=0.0))
    return time.perf_counter() - began


def sample_file(folder: str, source: str, output: str) -> Path:
    """Where a few answers of a source lie."""
    return Path(folder) / f"{source} {output}.npy"


def wait_for(device: str) -> None:
    """For a device to be done."""
    if device != "cpu":
        torch.cuda.synchronize()
