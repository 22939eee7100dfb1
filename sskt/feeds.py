"""The resident feed: the whole uint8 set on the device, shuffled by index, views replayed in batches."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor

from sskt.datasets import SPLITS, UNLABELLED, Split
from sskt.encodings import Encoding
from sskt.seeds import derive
from sskt.settings import TrainingSettings
from sskt.sources import Source
from sskt.views import Recipe, view_of_pass


@dataclass(frozen=True)
class Batch:
    """What one step learns from.

    images: uint8 [B, C, S, S], views of the samples; labels: int64 [B], UNLABELLED where a
    method may not use them; ids, views: int64 [B];
    outputs: by source, then by output name, float32 [B, ...], filled alike by a cached and by a live source.
    """

    images: Tensor
    labels: Tensor
    ids: Tensor
    views: Tensor
    outputs: dict[str, dict[str, Tensor]] = field(default_factory=dict)


class SourceOutputs(Protocol):
    """What a source says about views, by whatever means."""

    def __call__(self, images: Tensor, *, ids: Tensor, views: Tensor) -> dict[str, Tensor]:
        """Return each output for the views (images) of samples (ids), float32 [B, ...]."""


@dataclass(frozen=True)
class CachedOutputs:
    """Labels read from a cache. payload: by output name, uint8 [P, M, bytes], sample id first."""

    payload: dict[str, Tensor]
    encoding: Encoding

    def __call__(self, images: Tensor, *, ids: Tensor, views: Tensor) -> dict[str, Tensor]:
        """Look the views up."""
        return {name: self.encoding.decode(rows[ids, views]) for name, rows in self.payload.items()}


@dataclass(frozen=True)
class LiveOutputs:
    """Labels computed on the spot by a source network."""

    source: Source
    wanted: tuple[str, ...]

    def __call__(self, images: Tensor, *, ids: Tensor, views: Tensor) -> dict[str, Tensor]:
        """Run the source on the views."""
        return self.source.outputs(images, self.wanted)


@dataclass(frozen=True)
class ImageSet:
    """A packed dataset in memory. images: uint8 [N, C, S, S]; labels: int64 [N]; splits: int8 [N]."""

    images: Tensor
    labels: Tensor
    splits: Tensor

    def to(self, device: torch.device) -> "ImageSet":
        """Copy to a device, or return the same tensors if they are there."""
        return ImageSet(self.images.to(device), self.labels.to(device), self.splits.to(device))


class IndexStream:
    """An endless, shuffled stream of ids with random access: each pass is its own permutation of them."""

    def __init__(self, ids: Tensor, *, seed: int) -> None:
        self.ids = ids
        self.seed = seed
        self._orders: dict[int, Tensor] = {}

    def take(self, start: int, count: int) -> tuple[Tensor, Tensor]:
        """Return ids and passes (int64 [count]) of the positions start, start + 1, ..."""
        length = len(self.ids)
        first, last = start // length, (start + count - 1) // length
        self._orders = {number: self._order(number) for number in range(first, last + 1)}
        positions = torch.arange(start, start + count, device=self.ids.device)
        joined = torch.cat([self._orders[number] for number in range(first, last + 1)])
        return self.ids[joined[positions - first * length]], positions // length

    def _order(self, number: int) -> Tensor:
        if number in self._orders:
            return self._orders[number]
        # Always on the CPU, so that a seed means the same order on every device.
        generator = torch.Generator().manual_seed(derive(self.seed, f"pass {number}"))
        return torch.randperm(len(self.ids), generator=generator).to(self.ids.device)


def labelled_ids(images: ImageSet, *, classes: int, per_class: int | None) -> Tensor:
    """Ids whose labels may be used: the first `per_class` of each class of the training split, all for None."""
    usable = (images.splits == SPLITS.index("train")) & (images.labels >= 0)
    if per_class is not None:
        one_hot = torch.nn.functional.one_hot(images.labels.clamp(min=0), classes) * usable.unsqueeze(1)
        rank_in_class = one_hot.cumsum(dim=0).gather(1, images.labels.clamp(min=0).unsqueeze(1)).squeeze(1)
        usable &= rank_in_class <= per_class
    return usable.nonzero().squeeze(1)


@dataclass(frozen=True, kw_only=True)
class Share:
    """Which rows of every batch this process trains on."""

    rank: int = 0
    world: int = 1


class ResidentFeed:
    """Batches by step number: a pure function of (seed, step), so training resumes anywhere."""

    def __init__(
        self,
        images: ImageSet,
        *,
        classes: int,
        training: TrainingSettings,
        recipe: Recipe,
        view_count: int,
        seed: int,
        outputs: Mapping[str, SourceOutputs] | None = None,
        pool: bool = False,
        share: Share | None = None,
    ) -> None:
        self.set = images
        self.training = training
        self.recipe = recipe
        self.view_count = view_count
        self.outputs = outputs or {}
        self.share = share or Share()
        self.label_rows = 0
        self._view_seed = derive(seed, "views")
        labelled = labelled_ids(images, classes=classes, per_class=training.labels_per_class)
        self._labelled = IndexStream(labelled, seed=derive(seed, "labelled order"))
        everything = (images.splits == SPLITS.index("train")).nonzero().squeeze(1)
        self._pool = IndexStream(everything, seed=derive(seed, "pool order")) if pool else None

    @property
    def steps_per_epoch(self) -> int:
        """As set, else as many as one pass over the labelled images takes."""
        return self.training.steps_per_epoch or -(-len(self._labelled.ids) // self.training.batch_size)

    def batch(self, step: int) -> Batch:
        """Build this process's rows of the batch of a step: labelled images first, then those of the pool."""
        ids, passes = self._labelled.take(step * self.training.batch_size, self.training.batch_size)
        ids, passes = self._mine(ids), self._mine(passes)
        labels = self.set.labels[ids]
        if self._pool is not None:
            size = self.training.pool_batch_size or self.training.batch_size
            pool_ids, pool_passes = self._pool.take(step * size, size)
            pool_ids = self._mine(pool_ids)
            ids, passes = torch.cat([ids, pool_ids]), torch.cat([passes, self._mine(pool_passes)])
            labels = torch.cat([labels, torch.full_like(pool_ids, UNLABELLED)])
        views = view_of_pass(ids, passes, count=self.view_count, seed=self._view_seed)
        images = self.recipe.apply(self.set.images[ids], ids=ids, views=views)
        outputs = {name: read(images, ids=ids, views=views) for name, read in self.outputs.items()}
        self.label_rows += len(ids) * len(outputs)
        return Batch(images, labels, ids, views, outputs)

    def evaluation(self, split: Split, *, batch_size: int = 512) -> Iterator[tuple[Tensor, Tensor]]:
        """All labelled images of a split as packed, without views: (uint8 [B, C, S, S], int64 [B])."""
        ids = ((self.set.splits == SPLITS.index(split)) & (self.set.labels >= 0)).nonzero().squeeze(1)
        for some in torch.split(ids, batch_size):
            yield self.set.images[some], self.set.labels[some]

    def _mine(self, rows: Tensor) -> Tensor:
        return rows[self.share.rank :: self.share.world]
