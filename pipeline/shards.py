"""A worker of the cache stage: runs a source over the views of a shard's samples and commits what it says."""

import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from cluster.storage import open_storage
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
    """The caches by output; what a shard lacks of them is made in one pass of the source."""
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
        """Make some outputs of one shard; return the number of images and the records by output."""
        shard = int(row["shard"])
        try:
            records = make_shard(self.source, self.job, shard=shard, outputs=tuple(row["outputs"]))
        except Exception as error:
            raise SsktError(f"shard {shard}: {type(error).__name__}: {error}") from error
        return {"shard": shard, "records": {output: asdict(record) for output, record in records.items()}}


def make_shard(source: Source, job: ShardJob, *, shard: int, outputs: tuple[str, ...]) -> dict[str, ShardRecord]:
    """Run the source over a shard's views, once, and commit each output."""
    storage, before = open_storage(job.storage_uri), source.passes
    images = torch.from_numpy(read_images(job.packed, storage, job.specs[outputs[0]].id_range(shard)))
    began = time.perf_counter()
    payloads = label_shard(source, images, job=job, shard=shard, outputs=outputs)
    seconds, passes, records = time.perf_counter() - began, source.passes - before, {}
    for output, payload in payloads.items():
        records[output] = commit_shard(
            storage, job.specs[output], shard=shard, payload=payload, passes=passes, seconds=seconds
        )
        seconds, passes = 0.0, 0  # what one pass cost is told once
    return records


def label_shard(
    source: Source, images: torch.Tensor, *, job: ShardJob, shard: int, outputs: tuple[str, ...]
) -> dict[str, np.ndarray]:
    """What the source says of all views of a shard's images, uint8 [rows, C, S, S]: uint8 [rows, M * bytes] by output.

    Batches are cut by position in the shard alone, so a shard's bytes do not depend on who makes it.
    """
    spec = job.specs[outputs[0]]
    rows = torch.arange(len(images)).repeat_interleave(spec.view_count)
    views = torch.arange(spec.view_count).repeat(len(images))
    first_id = spec.id_range(shard).start
    parts: dict[str, list[torch.Tensor]] = {output: [] for output in outputs}
    for some, seen in zip(rows.split(job.batch_size), views.split(job.batch_size), strict=True):
        pictures = job.recipe.apply(images[some], ids=some + first_id, views=seen).to(job.device)
        for output, values in source.outputs(pictures, outputs).items():
            if not values.isfinite().all():
                raise SsktError(
                    f"{output} of samples {first_id + int(some[0])}..{first_id + int(some[-1])} are not finite"
                )
            encoding = get_encoding(job.specs[output].encoding)
            parts[output].append(encode_output(output, values, encoding).cpu())
    return {output: torch.cat(encoded).view(len(images), -1).numpy() for output, encoded in parts.items()}
