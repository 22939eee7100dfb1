"""Some images of the pool in their views, and what every source says of them, read back from its cache."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from cluster.storage import Storage
from pipeline.caches.labels import load_manifest, read_shard
from pipeline.caches.segments import segments_of
from pipeline.packing.packed import read_images, read_packed
from pipeline.planning.plan import Plan, SourceCaches
from pipeline.planning.specs import CacheSpec, Segment
from pipeline.tensors import as_tensor
from sskt.encodings import get_encoding
from sskt.fidelity import Fidelity, fidelity
from sskt.gallery import Gallery
from sskt.graphs import nearest_neighbours
from sskt.sources import Source

MOST_VIEWS = 4
NEIGHBOURS = 4
COMPARED = ("fp16", "u8", "top10", "top1")
"""Encodings that are laid beside each other, from what the cache holds."""


@dataclass(frozen=True, kw_only=True)
class Compared:
    """What an encoding would store, and what it would change."""

    encoding: str
    bytes: int
    """Of a view."""
    change: Fidelity


@dataclass(frozen=True, kw_only=True)
class Said:
    """What a source says, over the samples of the first shard."""

    name: str
    labels: Sequence[str]
    """Of its label space, by number."""
    encoding: str
    probabilities: Tensor
    """[n, M, C]"""
    seen: Tensor
    """The first view of the album's samples as its network sees them, before normalising: [k, c, S', S'] in 0..1."""
    neighbours: Tensor | None
    """Rows of the nearest samples by its embedding, [n, NEIGHBOURS]; None where that is not cached."""
    compared: Sequence[Compared]

    @property
    def entropy(self) -> Tensor:
        """Of every distribution in nats, [n, M]."""
        return torch.special.entr(self.probabilities).sum(dim=-1)


@dataclass(frozen=True, kw_only=True)
class Album:
    """What a picture shows."""

    title: str
    ids: tuple[int, ...]
    """Samples shown, spread over the first shard, which holds images in no order."""
    rows: Tensor
    """Where they stand in it, [k]."""
    truth: tuple[str, ...]
    """What each is labelled."""
    views: Tensor
    """uint8 [k, V, C, S, S]"""
    first_views: Tensor
    """Of all samples of the shard, uint8 [n, C, S, S]: their neighbours are among these."""
    said: tuple[Said, ...]


def make_album(plan: Plan, storage: Storage, *, samples: int) -> Album:
    """Collect it; sources whose cache is not made yet are left out."""
    ids = torch.arange(_shard_rows(plan))
    # Mixed views show partners too, but the album keeps to upright ones.
    images = as_tensor(read_images(plan.packed, storage, range(len(ids))))
    gallery = Gallery(plan.recipe, images, plan.packed.edges)
    count = plan.experiment.views.count
    rows = torch.linspace(0, len(ids) - 1, min(samples, len(ids))).round().long()
    shown = [gallery.show(rows, views=torch.full_like(rows, view)) for view in range(min(count, MOST_VIEWS))]
    first_views = gallery.show(ids, views=torch.zeros_like(ids))
    said = [
        one
        for name, specs in plan.caches_for().items()
        if (one := _said(plan, storage, name, specs, first_views=first_views[rows])) is not None
    ]
    labels = read_packed(plan.packed, storage).labels[rows.numpy()]
    return Album(
        title=f"{plan.experiment.name}: {plan.packed.name}, {len(rows)} of {plan.packed.pool} images to learn from",
        ids=tuple(rows.tolist()),
        rows=rows,
        truth=tuple(_truth(label, plan.packed.classes) for label in labels),
        views=torch.stack(shown, dim=1),
        first_views=first_views,
        said=tuple(said),
    )


def compare_encodings(logits: Tensor) -> list[Compared]:
    """Lay encodings beside each other for logits [n, C]."""
    compared = []
    for name in COMPARED:
        encoder = get_encoding(name, "logits")
        if name.startswith("top") and int(name[3:]) >= logits.shape[1]:
            continue
        decoded = encoder.decode(encoder.encode(logits), logits.shape[1])
        change = fidelity(logits, decoded)
        compared.append(Compared(encoding=name, bytes=encoder.row_bytes(logits.shape[1]), change=change))
    return compared


def label_names(classes: int) -> Sequence[str]:
    """What the classes of a source are called: those of ImageNet by name, for others there is only a number."""
    from torchvision.models import ResNet50_Weights  # seconds of start-up, and only these names need it

    imagenet: list[str] = ResNet50_Weights.IMAGENET1K_V2.meta["categories"]
    return imagenet if classes == len(imagenet) else [f"class {number}" for number in range(classes)]


def _shard_rows(plan: Plan) -> int:
    """Samples of the first shard of every cache, which depend on the pool alone."""
    caches = [spec for specs in plan.caches.values() for spec in specs.values()]
    if not caches:
        return min(plan.packed.pool, 256)
    return len(caches[0].segment(0, 0, caches[0].view_count).id_range(0))


def _said(plan: Plan, storage: Storage, name: str, specs: SourceCaches, *, first_views: Tensor) -> Said | None:
    logits = _decoded(storage, specs, "logits")
    if logits is None:
        return None
    spec, embedding = specs["logits"], _decoded(storage, specs, "embedding")
    return Said(
        name=name,
        labels=label_names(spec.labels.width),
        encoding=spec.labels.encoding,
        probabilities=F.softmax(logits, dim=-1),
        seen=_as_seen(plan.sources[name], first_views),
        neighbours=None if embedding is None else nearest_neighbours(embedding[:, 0], NEIGHBOURS).ids,
        compared=compare_encodings(logits[:, 0]),
    )


def _decoded(storage: Storage, specs: Mapping[str, CacheSpec], output: str) -> Tensor | None:
    """What the first shard of a cache holds, float32 [n, M, W]; None where it is not whole."""
    if output not in specs:
        return None
    spec = specs[output]
    stored = [_first_shard(storage, segment) for segment in segments_of(storage, spec) if segment.first == 0]
    if any(part is None for part in stored):
        return None
    payload = np.concatenate([part for part in stored if part is not None], axis=1)[:, : spec.view_count]
    flat = as_tensor(np.ascontiguousarray(payload)).flatten(0, 1)
    return spec.labels.encoder.decode(flat, spec.labels.width).unflatten(0, payload.shape[:2]).float()


def _first_shard(storage: Storage, segment: Segment) -> np.ndarray | None:
    manifest = load_manifest(storage, segment)
    return None if manifest is None else read_shard(storage, segment, manifest.shards[0])


def _as_seen(source: Source, images: Tensor) -> Tensor:
    """What preprocessing makes of images [k, C, S, S], its normalisation undone."""
    preprocess = source.network.preprocess
    return (preprocess(images) * preprocess.std + preprocess.mean).clamp(0, 1)


def _truth(label: np.ndarray, classes: Sequence[str]) -> str:
    """The name of a label, those that hold of several, or nothing where none is known."""
    if label.ndim:
        return ", ".join(name for name, holds in zip(classes, label, strict=True) if holds == 1)
    return classes[int(label)] if label >= 0 else "unlabelled"
