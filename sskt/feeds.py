"""Feeds: batches by step number, views replayed in batches; the resident one holds the whole uint8 set."""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, reduce
from typing import Protocol

import torch
from torch import Tensor

from sskt.ahead import Drawn, Shown, steps_ahead
from sskt.answers import SourceOutputs
from sskt.datasets import SPLITS, UNLABELLED, Split
from sskt.gallery import Gallery
from sskt.graphs import Graph
from sskt.image_set import ImageSet, known, labelled_ids
from sskt.orders import IndexStream, Share, Stream
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


class Feed(ABC):
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
        self._drawn: dict[int, Drawn] = {}
        self._view_seed = derive(seed, "views")
        labelled = labelled_ids(images, classes=classes, per_class=training.labels_per_class)
        self._labelled = self.ordered(labelled, seed=derive(seed, "labelled order"), size=training.batch_size)
        everything = (images.splits == SPLITS.index("train")).nonzero().squeeze(1)
        self._pool = self.ordered(everything, seed=derive(seed, "pool order"), size=self.pool_size)
        self.gallery = Gallery(recipe, images.images, images.edges or (0, len(everything)))

    @abstractmethod
    def ordered(self, ids: Tensor, *, seed: int, size: int) -> Stream:
        """Put ids in the order in which batches take them, so many at a time."""

    @abstractmethod
    def mine(self, rows: Tensor) -> Tensor:
        """Of what a stream has for some steps, [steps, n], that which is for this process, [steps, n / processes]."""

    @property
    def ahead(self) -> int:
        """How many steps are drawn at once."""
        return 1

    @property
    def pool_size(self) -> int:
        """Images of the pool that a step takes, where it takes any."""
        return self.training.pool_batch_size or self.training.batch_size

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
        return Pool(labels, self.ask, self.graphs)

    def batch(self, step: int) -> Batch:
        """Return this process's rows of the batch of a step: labelled images first, then those of the pool."""
        return self.served(self.build(step))

    def served(self, batch: Batch) -> Batch:
        """Count the labels of a batch that is handed out."""
        shown = (batch, batch.turned, batch.pair, batch.pair and batch.pair.turned)
        self.label_rows += sum(len(one.ids) * len(one.outputs) for one in shown if one is not None)
        return batch

    def build(self, step: int) -> Batch:
        """Make the batch of a step."""
        if self.ahead == 1:
            return self._answered(self._draw(range(step, step + 1)), 0)
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
        for some in torch.split(self.labelled_of(split), batch_size):
            yield self.set.images[some], self.set.labels[some]

    def labelled_of(self, split: Split) -> Tensor:
        """Ids of all labelled images of a split, in order."""
        return ((self.set.splits == SPLITS.index(split)) & known(self.set.labels)).nonzero().squeeze(1)

    def close(self) -> None:  # noqa: B027 (most feeds have nothing open)
        """End what works in the background."""

    def _pool_rows(self, steps: range) -> tuple[Tensor, Tensor]:
        if self.extras.near is None:
            return self._taken(self._pool, steps, self.pool_size)
        source, count = self.extras.near
        seeds, passes = self._taken(self._pool, steps, self.pool_size // (1 + count))
        near = self.graphs[source].ids[seeds, :count]
        return torch.cat([seeds.unsqueeze(2), near], dim=2).flatten(1), passes.repeat_interleave(1 + count, dim=1)

    def _taken(self, stream: Stream, steps: range, size: int) -> tuple[Tensor, Tensor]:
        """Return the ids and passes of some steps that are for this process: int64 [steps, rows]."""
        ids, passes = (rows.view(len(steps), size) for rows in stream.take(steps.start * size, len(steps) * size))
        return self.mine(ids), self.mine(passes)

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
        return Batch(images, labels, ids, views, outputs)

    def ask(self, source: str, ids: Tensor, *, view: int = 0, quarters: int = 0) -> dict[str, Tensor]:
        """As `Ask` says."""
        ids = ids.to(self.set.labels.device)
        views = turned(torch.full_like(ids, view), quarters)
        kind: Kind = "turned" if quarters else ""
        images = self.looked_at(source, ids, views=views, kind=kind)
        return self.outputs[source](images, ids=ids, views=views, kind=kind)

    def looked_at(self, source: str, ids: Tensor, *, views: Tensor, kind: Kind) -> Tensor:
        """What a source sees that is asked about images."""
        return self.gallery.show(ids, views=views, kind=kind)


class ResidentFeed(Feed):
    """Of a set that is on the device as a whole: orders are shuffled throughout, rows of a batch dealt out in turn."""

    def ordered(self, ids: Tensor, *, seed: int, size: int) -> Stream:
        """Shuffle them."""
        return IndexStream(ids, seed=seed)

    def mine(self, rows: Tensor) -> Tensor:
        """Every so manieth."""
        return rows[:, self.share.rank :: self.share.world]

    @cached_property
    def ahead(self) -> int:
        """As many as make few large draws of many small ones."""
        return steps_ahead(self.gallery.images, rows=self.training.batch_size)


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
