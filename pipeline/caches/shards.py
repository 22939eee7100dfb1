"""A worker of the cache stage: runs sources over the views of a shard's samples and commits what they say."""

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cluster.logs import event
from cluster.metrics import Work, count, tell, work, working
from cluster.near import nearby
from cluster.storage import Storage, open_storage
from pipeline.caches.claims import Claim, claim_key, claimed
from pipeline.caches.labels import Made, ShardRecord, commit_shard, read_record
from pipeline.canonical import canonical
from pipeline.computing import compute_here
from pipeline.packing.packed import PackedDataset, read_images
from pipeline.planning.specs import Segment
from sskt.encodings import get_encoding
from sskt.errors import SsktError
from sskt.gallery import Gallery
from sskt.golden import golden_samples, pixel_hashes
from sskt.settings import SourceSettings
from sskt.sources import Source, load_source
from sskt.views import Kind, Recipe

GOLDEN = 64
"""Views of a segment whose pixels are remembered, at least."""
DRAWN = 256
"""Views that are drawn at once, about."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One segment to be made, and the source that makes it."""

    source: str
    segment: Segment


@dataclass(frozen=True, kw_only=True)
class ShardJob:
    """All a worker needs to make any shard of any segment; it travels: no open handles, no secrets."""

    storage_uri: str
    parts: dict[str, Part]
    """By the segment's prefix. What has the same samples is made from one read of the images, what has the same source
    and views too in one pass."""
    sources: dict[str, SourceSettings]
    recipe: Recipe
    batch_size: int
    threads: int
    device: str
    packed: PackedDataset
    node_cache_gb: float = 0
    work: Work = field(default_factory=work)
    """What it is done for."""


class ShardWriter:
    """A worker: loads each source once, then makes the shards it is given."""

    def __init__(self, job: ShardJob) -> None:
        compute_here(job.threads)
        # Labels are kept for years: no shortened mantissas, no algorithm chosen by a race.
        torch.backends.cudnn.allow_tf32 = False
        torch.backends.cudnn.deterministic = True
        self.job = job
        self.sources: dict[str, Source] = {}

    def __call__(self, row: dict[str, Any]) -> dict[str, Any]:
        """Make what is free of one shard; return the records by prefix, as JSON: rows share their columns."""
        shard, prefixes = int(row["shard"]), list(row["prefixes"])
        for name in {self.job.parts[prefix].source for prefix in prefixes} - set(self.sources):
            self.sources[name] = load_source(name, self.job.sources[name]).place(self.job.device)
        with working(*self.job.work):
            records = make_shard(self.sources, self.job, shard=shard, prefixes=prefixes)
        return {"shard": shard, "records": canonical(records), "traffic": list(tell())}


def make_shard(
    sources: dict[str, Source], job: ShardJob, *, shard: int, prefixes: Sequence[str]
) -> dict[str, ShardRecord]:
    """Read a shard's images once, run each source over each of its views once, and commit each segment's part.

    What others have made meanwhile or are making now is left to them: the records are of what was made here.
    """
    storage, records = open_storage(job.storage_uri), {}
    shown = [job.parts[prefix].segment.shown_range(shard) for prefix in prefixes]
    gallery = cache(lambda: _gallery(job, storage, shown))
    for (source, _), alike in _alike(job, prefixes).items():
        wanted = {claim_key(segment, shard): segment for segment in alike}
        with claimed(storage, wanted) as claims:
            # Looked up under the claim: its last holder may have made the shard.
            free = [(claims[key], wanted[key]) for key in wanted if key in claims]
            mine = [(claim, segment) for claim, segment in free if read_record(storage, segment, shard) is None]
            if not mine:
                continue
            images = gallery()
            try:
                records |= _make_alike(sources[source], job, images, storage, shard=shard, mine=mine)
            except Exception as error:
                count("sskt_shards", len(mine), state="failed")
                event("shard_failed", level=logging.ERROR, source=source, shard=shard, reason=str(error))
                raise SsktError(f"source {source!r}, shard {shard}: {type(error).__name__}: {error}") from error
    return records


def _gallery(job: ShardJob, storage: Storage, shown: list[range]) -> Gallery:
    """The samples of all of some ranges that overlap."""
    ids = range(min(some.start for some in shown), max(some.stop for some in shown))
    near = nearby(storage, job.node_cache_gb)  # other workers of the node want other rows of the same parts
    images = torch.from_numpy(read_images(job.packed, near, ids))
    return Gallery(job.recipe, images, job.packed.edges, first=ids.start)


def _alike(job: ShardJob, prefixes: Sequence[str]) -> dict[tuple[str, tuple[int, ...]], list[Segment]]:
    """What can come from the same pass: the segments of the same source and the same views."""
    alike: dict[tuple[str, tuple[int, ...]], list[Segment]] = {}
    for prefix in prefixes:
        part = job.parts[prefix]
        alike.setdefault((part.source, part.segment.view_ids), []).append(part.segment)
    return alike


def _make_alike(
    source: Source, job: ShardJob, gallery: Gallery, storage: Storage, *, shard: int, mine: list[tuple[Claim, Segment]]
) -> dict[str, ShardRecord]:
    """Make the parts of segments that hold the same views, and publish those whose claims are still ours."""
    before, began, records = source.passes, time.perf_counter(), {}
    segments = [segment for _, segment in mine]
    payloads = label_shard(source, gallery, job=job, shard=shard, segments=segments)
    seconds, passes = time.perf_counter() - began, source.passes - before
    golden = _golden(gallery, segment=segments[0], shard=shard)
    for (claim, segment), payload in zip(mine, payloads, strict=True):
        if claim.held():
            made = Made(payload=payload, golden=golden, passes=passes, seconds=seconds)
            records[segment.prefix] = commit_shard(storage, segment, shard=shard, made=made)
            count("sskt_shards", state="made")
            told = {"passes": passes, "seconds": seconds}
            event("shard_made", source=job.parts[segment.prefix].source, shard=shard, segment=segment.prefix, **told)
            seconds, passes = 0.0, 0  # what one pass cost is told once
    return records


def label_shard(
    source: Source, gallery: Gallery, *, job: ShardJob, shard: int, segments: list[Segment]
) -> list[np.ndarray]:
    """What the source says of all views of a shard's samples: uint8 [rows, views, bytes] for each segment.

    The segments hold the same views. Batches hold one view each and are cut by position in the shard, so what is stored
    of a view depends neither on who makes it nor on which other views are made with it.
    """
    ids = torch.tensor(segments[0].id_range(shard))
    by_view = [_one_view(source, gallery, ids, view, job=job, segments=segments) for view in segments[0].view_ids]
    return [np.stack(views, axis=1) for views in zip(*by_view, strict=True)]


def _one_view(
    source: Source, gallery: Gallery, ids: Tensor, view: int, *, job: ShardJob, segments: list[Segment]
) -> list[np.ndarray]:
    """Return uint8 [rows, bytes] for each segment."""
    labels = [segment.labels for segment in segments]
    parts: list[list[Tensor]] = [[] for _ in segments]
    batches = ids.split(job.batch_size)
    shown = _shown(gallery, ids, view, kind=labels[0].kind, batch=job.batch_size)
    seen = next(shown)
    for some in batches:
        answers = source.outputs(seen.to(job.device), tuple(one.output for one in labels))
        seen = next(shown, seen)  # drawn while a GPU is at work on its answers, which are waited for below
        count("sskt_source_views", len(some))
        for one, part in zip(labels, parts, strict=True):
            values = answers[one.output]
            if not values.isfinite().all():
                raise SsktError(f"{one.name} of samples {int(some[0])}..{int(some[-1])} are not finite")
            part.append(get_encoding(one.encoding, one.output).encode(values).cpu())
    return [torch.cat(part).numpy() for part in parts]


def _shown(gallery: Gallery, ids: Tensor, view: int, *, kind: Kind, batch: int) -> Iterator[Tensor]:
    """Pixels of a view, batch by batch; drawn for several at once, for that costs mostly its number of operations."""
    for some in ids.split(max(1, DRAWN // batch) * batch):
        yield from gallery.show(some, views=torch.full_like(some, view), kind=kind).split(batch)


def _golden(gallery: Gallery, *, segment: Segment, shard: int) -> dict[str, str]:
    """Hashes of the pixels of some of a shard's views, by `sample/view`."""
    owned = segment.id_range(shard)
    rows, places = golden_samples(len(owned), len(segment.view_ids), -(-GOLDEN // segment.shards))
    ids, views = rows + owned.start, torch.tensor(segment.view_ids)[places]
    hashes = pixel_hashes(gallery, ids=ids, views=views, kind=segment.labels.kind)
    return {f"{int(one)}/{int(view)}": seen for one, view, seen in zip(ids, views, hashes, strict=True)}
