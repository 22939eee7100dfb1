"""A worker of the cache stage: runs a source over the views of a shard's samples and commits what it says."""

import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from cluster.storage import Storage, open_storage
from pipeline.labels import CacheSpec, ShardRecord, commit_shard
from pipeline.packed import PackedDataset, read_images
from sskt.encodings import encode_output, get_encoding
from sskt.errors import SsktError
from sskt.settings import SourceSettings
from sskt.sources import Source, load_source
from sskt.views import Recipe


@dataclass(frozen=True, kw_only=True)
class ShardJob:
    """All a worker needs to make any shard of a source's caches; it travels: no open handles, no secrets."""

    storage_uri: str
    specs: dict[str, CacheSpec]
    """The caches by name; what a shard lacks of those with the same views is made in one pass of the source."""
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
        # Labels are kept for years: no shortened mantissas, no algorithm chosen by a race.
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.deterministic = True
        self.job = job
        self.source = load_source(job.source_name, job.source)
        self.source.network.to(job.device)

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Make one shard of some caches; return the records by cache."""
        shard = int(row["shard"])
        try:
            records = make_shard(self.source, self.job, shard=shard, names=tuple(row["caches"]))
        except Exception as error:
            raise SsktError(f"shard {shard}: {type(error).__name__}: {error}") from error
        return {"shard": shard, "records": {name: asdict(record) for name, record in records.items()}}


def make_shard(source: Source, job: ShardJob, *, shard: int, names: tuple[str, ...]) -> dict[str, ShardRecord]:
    """Run the source over a shard's views, once, and commit each cache's part."""
    storage, records = open_storage(job.storage_uri), {}
    images = torch.from_numpy(read_images(job.packed, storage, job.specs[names[0]].id_range(shard)))
    for turned in (False, True):
        specs = [job.specs[name] for name in names if job.specs[name].turned == turned]
        if specs:
            records |= _make_alike(source, job, images, storage, shard=shard, specs=specs)
    return records


def _make_alike(
    source: Source, job: ShardJob, images: torch.Tensor, storage: Storage, *, shard: int, specs: list[CacheSpec]
) -> dict[str, ShardRecord]:
    """Make the parts of caches that hold the same views."""
    before, began = source.passes, time.perf_counter()
    payloads = label_shard(source, images, job=job, shard=shard, specs=specs)
    seconds, passes, records = time.perf_counter() - began, source.passes - before, {}
    for spec, payload in zip(specs, payloads, strict=True):
        records[spec.name] = commit_shard(storage, spec, shard=shard, payload=payload, passes=passes, seconds=seconds)
        seconds, passes = 0.0, 0  # what one pass cost is told once
    return records


def label_shard(
    source: Source, images: torch.Tensor, *, job: ShardJob, shard: int, specs: list[CacheSpec]
) -> list[np.ndarray]:
    """What the source says of all views of a shard's images, uint8 [rows, C, S, S]: uint8 [rows, M * bytes] by spec.

    The specs hold the same views. Batches are cut by position in the shard alone, so a shard's bytes do not depend on
    who makes it.
    """
    view_ids, first_id = torch.tensor(specs[0].view_ids), specs[0].id_range(shard).start
    rows = torch.arange(len(images)).repeat_interleave(len(view_ids))
    views = view_ids.repeat(len(images))
    show = job.recipe.apply_turned if specs[0].turned else job.recipe.apply
    parts: list[list[torch.Tensor]] = [[] for _ in specs]
    for some, seen in zip(rows.split(job.batch_size), views.split(job.batch_size), strict=True):
        pictures = show(images[some], ids=some + first_id, views=seen).to(job.device)
        answers = source.outputs(pictures, tuple(spec.output for spec in specs))
        for spec, part in zip(specs, parts, strict=True):
            values = answers[spec.output]
            if not values.isfinite().all():
                raise SsktError(
                    f"{spec.name} of samples {first_id + int(some[0])}..{first_id + int(some[-1])} are not finite"
                )
            part.append(encode_output(spec.output, values, get_encoding(spec.encoding)).cpu())
    return [torch.cat(part).view(len(images), -1).numpy() for part in parts]
