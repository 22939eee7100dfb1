"""The resident feed: the whole uint8 set on the device, shuffled by index, views replayed in batches."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import reduce
from typing import Protocol

import torch
from torch import Tensor

from sskt.ahead import Drawn, Shown, steps_ahead
from sskt.answers import SourceOutputs
from sskt.datasets import SPLITS, UNLABELLED, Split
from sskt.gallery import Gallery
from sskt.graphs import Graph
from sskt.seeds import derive
from sskt.settings import TrainingSettings
from sskt.views import KINDS, TURN, Kind, Recipe, turned, view_of_pass


@dataclass(frozen=True)
class Batch:
    """What one step learns from.

    images: uint8 [B, C, S, S], views of the samples; labels: int64 [B], or int8 [B, classes] of 1 and 0 where several
    classes may hold, UNLABELLED where a method may not use them; ids, views: int64 [B];
    outputs: by source, then by output name, float32 [B, ...], filled alike by a cached and by a live source.
    """

    images: Tensor
    labels: Tensor
    ids: Tensor
    views: Tensor
    outputs: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    pair: "Batch | None" = None
    """The same samples in other views, where the method asks for two; all of its labels are hidden."""
    turned: "Batch | None" = None
    """All samples turned by one quarter, then all by two, then by three, where asked for: [3 * B]; labels hidden."""


class Ask(Protocol):
    """What a source says of any samples, not only of those in a batch."""

    def __call__(self, source: str, ids: Tensor, *, view: int = 0, quarters: int = 0) -> dict[str, Tensor]:
        """Return each output for one view of samples (int64 [n]), turned by so many quarters: float32 [n, ...]."""


@dataclass(frozen=True)
class Pool:
    """The training images as a whole, for methods that look beyond a batch. Their ids are 0..P-1."""

    labels: Tensor
    """As those of a batch, [P] or [P, classes]; UNLABELLED where a method may not use them."""
    ask: "Ask"
    graphs: Mapping[str, Graph] = field(default_factory=dict)
    """By source, where the method asks for them."""


@dataclass(frozen=True)
class ImageSet:
    """A packed dataset in memory. images: uint8 [N, C, S, S]; labels: int64 [N] or int8 [N, classes]; splits: int8 [N].

    UNLABELLED stands for a label that is not known.
    """

    images: Tensor
    labels: Tensor
    splits: Tensor
    edges: tuple[int, ...] = ()
    """Where the blocks of the pool begin, and where the last one ends; none stand for a single block."""

    def to(self, device: torch.device) -> "ImageSet":
        """Copy to a device, or return the same tensors if they are there."""
        return replace(self, **{name: getattr(self, name).to(device) for name in ("images", "labels", "splits")})


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
        # Of every pass only what is asked for: an order is as long as the set.
        parts = [
            self.ids[order[max(0, start - number * length) : start + count - number * length]]
            for number, order in self._orders.items()
        ]
        return torch.cat(parts), torch.arange(start, start + count, device=self.ids.device) // length

    def _order(self, number: int) -> Tensor:
        if number in self._orders:
            return self._orders[number]
        # Always on the CPU, so that a seed means the same order on every device.
        generator = torch.Generator().manual_seed(derive(self.seed, f"pass {number}"))
        return torch.randperm(len(self.ids), generator=generator).to(self.ids.device)


def known(labels: Tensor) -> Tensor:
    """Which images have a label: bool [N], for labels [N] or [N, classes]."""
    return labels != UNLABELLED if labels.ndim == 1 else (labels != UNLABELLED).any(dim=1)


def labelled_ids(images: ImageSet, *, classes: int, per_class: int | None) -> Tensor:
    """Ids whose labels may be used: the first `per_class` of each class of the training split, all for None.

    Where several classes may hold, an image counts for each of them, and one that is wanted for one comes along.
    """
    usable = (images.splits == SPLITS.index("train")) & known(images.labels)
    if per_class is not None:
        one_hot = _one_hot(images.labels, classes) * usable.unsqueeze(1)
        usable = ((one_hot.cumsum(dim=0) <= per_class) & (one_hot > 0)).any(dim=1)
    return usable.nonzero().squeeze(1)


def _one_hot(labels: Tensor, classes: int) -> Tensor:
    """1 where a class holds, int64 [N, classes]."""
    if labels.ndim == 2:
        return labels.clamp(min=0).long()
    return torch.nn.functional.one_hot(labels.clamp(min=0), classes) * known(labels).unsqueeze(1)


@dataclass(frozen=True, kw_only=True)
class Share:
    """Which rows of every batch this process trains on."""

    rank: int = 0
    world: int = 1


@dataclass(frozen=True, kw_only=True)
class Extras:
    """What batches hold beside labelled images."""

    pool: bool = False
    """Images of the whole pool, labels hidden."""
    pair: bool = False
    """Another view of every image."""
    turned: bool = False
    """Every image in its three turned views."""
    near: tuple[str, int] | None = None
    """(source, n): the pool's images come as one followed by its n nearest in that source's graph, and so on."""


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
        graphs: Mapping[str, Graph] | None = None,
        extras: Extras | None = None,
        share: Share | None = None,
    ) -> None:
        self.set = images
        self.training = training
        self.view_count = view_count
        self.outputs = outputs or {}
        self.graphs = graphs or {}
        self.extras = extras or Extras()
        self.share = share or Share()
        self.label_rows = 0
        self.ahead = steps_ahead(images.images, rows=training.batch_size)
        self._drawn: dict[int, Drawn] = {}
        self._view_seed = derive(seed, "views")
        labelled = labelled_ids(images, classes=classes, per_class=training.labels_per_class)
        self._labelled = IndexStream(labelled, seed=derive(seed, "labelled order"))
        everything = (images.splits == SPLITS.index("train")).nonzero().squeeze(1)
        self._pool = IndexStream(everything, seed=derive(seed, "pool order"))
        self.gallery = Gallery(recipe, images.images, images.edges or (0, len(everything)))

    @property
    def multi_label(self) -> bool:
        """Whether several classes, or none, may hold for an image."""
        return self.set.labels.ndim == 2

    @property
    def steps_per_epoch(self) -> int:
        """As set, else as many as one pass over the labelled images takes."""
        return self.training.steps_per_epoch or -(-len(self._labelled.ids) // self.training.batch_size)

    def pool(self) -> Pool:
        """The training images as a whole."""
        ids, shown = self._pool.ids, self._labelled.ids
        labels = torch.full_like(self.set.labels[ids], UNLABELLED)
        labels[shown] = self.set.labels[shown]  # the pool comes first in the packed order, so its ids are its rows
        return Pool(labels, self._ask, self.graphs)

    def batch(self, step: int) -> Batch:
        """Build this process's rows of the batch of a step: labelled images first, then those of the pool."""
        number, at = divmod(step, self.ahead)
        if number not in self._drawn:
            self._drawn = {number: self._draw(range(number * self.ahead, (number + 1) * self.ahead))}
        return self._answered(self._drawn[number], at)

    def _draw(self, steps: range) -> Drawn:
        """All of some steps but for what sources say, which may be a live source's work."""
        ids, passes = self._taken(self._labelled, steps, self.training.batch_size)
        labels = self.set.labels[ids]
        if self.extras.pool:
            pool_ids, pool_passes = self._pool_rows(steps)
            if self.training.mix != "none":
                upright = self._shown(labels, ids, self._views(ids, passes))
                return Drawn((upright, self._mixed(pool_ids, pool_passes, kind=self.training.mix)))
            ids, passes = torch.cat([ids, pool_ids], dim=1), torch.cat([passes, pool_passes], dim=1)
            labels = torch.cat([labels, torch.full_like(self.set.labels[pool_ids], UNLABELLED)], dim=1)
        if not self.extras.pair:
            return self._with_turned(labels, ids, self._views(ids, passes))
        first, second = (self._views(ids, 2 * passes + number) for number in (0, 1))
        pair = self._with_turned(torch.full_like(labels, UNLABELLED), ids, second)
        return replace(self._with_turned(labels, ids, first), pair=pair)

    def evaluation(self, split: Split, *, batch_size: int = 512) -> Iterator[tuple[Tensor, Tensor]]:
        """All labelled images of a split as packed, without views: uint8 [B, C, S, S] and their labels."""
        ids = ((self.set.splits == SPLITS.index(split)) & known(self.set.labels)).nonzero().squeeze(1)
        for some in torch.split(ids, batch_size):
            yield self.set.images[some], self.set.labels[some]

    def _pool_rows(self, steps: range) -> tuple[Tensor, Tensor]:
        size = self.training.pool_batch_size or self.training.batch_size
        if self.extras.near is None:
            return self._taken(self._pool, steps, size)
        source, count = self.extras.near
        seeds, passes = self._taken(self._pool, steps, size // (1 + count))
        near = self.graphs[source].ids[seeds, :count]
        return torch.cat([seeds.unsqueeze(2), near], dim=2).flatten(1), passes.repeat_interleave(1 + count, dim=1)

    def _taken(self, stream: IndexStream, steps: range, size: int) -> tuple[Tensor, Tensor]:
        """Return the ids and passes of some steps that are for this process: int64 [steps, rows]."""
        mine = slice(self.share.rank, None, self.share.world)
        ids, passes = (rows.view(len(steps), size) for rows in stream.take(steps.start * size, len(steps) * size))
        return ids[:, mine], passes[:, mine]

    def _views(self, ids: Tensor, passes: Tensor) -> Tensor:
        chosen = view_of_pass(ids.flatten(), passes.flatten(), count=self.view_count, seed=self._view_seed)
        return chosen.view_as(ids)

    def _with_turned(self, labels: Tensor, ids: Tensor, views: Tensor) -> Drawn:
        """The views, and their turned ones where asked for."""
        upright = self._shown(labels, ids, views)
        if not self.extras.turned:
            return Drawn((upright,))
        hidden = torch.full_like(torch.cat([labels] * 3, dim=1), UNLABELLED)
        sideways = torch.cat([turned(views, quarters) for quarters in KINDS["turned"]], dim=1)
        return Drawn((upright,), turned=self._shown(hidden, ids.repeat(1, 3), sideways, kind="turned"))

    def _mixed(self, ids: Tensor, passes: Tensor, *, kind: Kind) -> Shown:
        """Images of the pool, mixed. Labelled ones never are: the label of what comes in may be hidden."""
        (number,), hidden = KINDS[kind], torch.full_like(self.set.labels[ids], UNLABELLED)
        return self._shown(hidden, ids, self._views(ids, passes) + number * TURN, kind=kind)

    def _shown(self, labels: Tensor, ids: Tensor, views: Tensor, *, kind: Kind = "") -> Shown:
        """Views of a kind."""
        images = self.gallery.show(ids.flatten(), views=views.flatten(), kind=kind)
        return Shown(kind, images.view(*ids.shape, *images.shape[1:]), labels, ids, views)

    def _answered(self, drawn: Drawn, at: int) -> Batch:
        """The batch of one of the steps that are drawn, with what the sources say of its views."""
        batch = reduce(_joined, (self._read(part, at) for part in drawn.parts))
        if drawn.turned:
            batch = replace(batch, turned=self._read(drawn.turned, at))
        return replace(batch, pair=self._answered(drawn.pair, at)) if drawn.pair else batch

    def _read(self, shown: Shown, at: int) -> Batch:
        images, labels, ids, views = (rows[at] for rows in (shown.images, shown.labels, shown.ids, shown.views))
        outputs = {name: read(images, ids=ids, views=views, kind=shown.kind) for name, read in self.outputs.items()}
        self.label_rows += len(ids) * len(outputs)
        return Batch(images, labels, ids, views, outputs)

    def _ask(self, source: str, ids: Tensor, *, view: int = 0, quarters: int = 0) -> dict[str, Tensor]:
        ids = ids.to(self.set.images.device)
        views = turned(torch.full_like(ids, view), quarters)
        kind: Kind = "turned" if quarters else ""
        images = self.gallery.show(ids, views=views, kind=kind)
        return self.outputs[source](images, ids=ids, views=views, kind=kind)


def _joined(one: Batch, other: Batch) -> Batch:
    """The rows of two batches, one below the other."""
    images, labels, ids, views = (
        torch.cat([getattr(one, name), getattr(other, name)]) for name in ("images", "labels", "ids", "views")
    )
    outputs = {
        source: {name: torch.cat([values, other.outputs[source][name]]) for name, values in by_name.items()}
        for source, by_name in one.outputs.items()
    }
    return Batch(images, labels, ids, views, outputs)
