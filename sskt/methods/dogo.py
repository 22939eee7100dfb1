"""Distill on the Go (Bhat 2021): each peer tells two views of an image from other images, and as its peers do.

L_k = CE_k + ssl_weight * NT-Xent_k + mutual_weight * mean over l != k of KL(P_l || P_k), in which P is the softmax over
the images j of the second view of their cosines with an image i of the first.
"""

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sskt.contrastive_losses import cross_view_kl, nt_xent
from sskt.errors import InputError
from sskt.feeds import Batch
from sskt.methods.base import Facts, LearnFrom, Needs, learns_from_all
from sskt.methods.peers import PeerMethod, mutual_parts
from sskt.networks import Features, TappedNetwork

WIDTH = 128
"""Dimensions of the space where views are compared, the release's."""


@dataclass(frozen=True, kw_only=True)
class DoGoOptions:
    """Temperatures and the mutual weight are those of the release; it has no labels, and so no weight beside them."""

    peers: int = 2
    """Networks that learn together, the target among them; two, as published. 1 leaves NT-Xent beside the labels."""
    ssl_weight: float = 1.0
    """Weight of NT-Xent beside the primary loss; ours, untuned: the release has no primary loss."""
    mutual_weight: float = 0.39
    """Of the mean KL per row. The release's 100 is of a mean over B x B entries, so 100 / B a row; B is 256 there."""
    temperature: float = 0.5
    """Of NT-Xent; the release's."""
    mutual_temperature: float = 0.1
    """Of the softmaxes that the peers compare; the release's."""
    learn_from: LearnFrom = "all"
    """The images whose views are compared; that needs no labels, and the release has none."""

    def __post_init__(self) -> None:
        if self.peers < 1:
            raise InputError(f"peers is {self.peers}; it has to be at least 1")
        for name in ("ssl_weight", "mutual_weight"):
            if not getattr(self, name) >= 0:
                raise InputError(f"{name} is {getattr(self, name)}; it has to be at least 0")
        for name in ("temperature", "mutual_temperature"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} is {getattr(self, name)}; it has to be above 0")

    @property
    def weights(self) -> tuple[float, float]:
        """Of NT-Xent and of the comparison with others, which is worth nothing where there are none."""
        return self.ssl_weight, self.mutual_weight * (self.peers > 1)


class Projection(nn.Module):
    """Linear, BatchNorm, ReLU, Linear: from the embedding to the space where views are compared."""

    def __init__(self, embedding_dim: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(embedding_dim, embedding_dim),
            nn.BatchNorm1d(embedding_dim),
            nn.ReLU(),
            nn.Linear(embedding_dim, WIDTH),
        )

    def forward(self, features: Features) -> Tensor:
        """Return [B, WIDTH]."""
        projected: Tensor = self.layers(features.embedding)
        return projected


class DoGo(PeerMethod):
    """Peers learn the labels, to find the other view of an image, and how alike the others find images; no sources.

    Both views of the batch pass through a peer at once, so they share the statistics of batch normalisation. All peers
    look before anyone steps, and at the same two views; in the release each peer draws its own.
    """

    Options: ClassVar[type[Any]] = DoGoOptions
    options: DoGoOptions

    @classmethod
    def needs(cls, options: DoGoOptions) -> Needs:
        """No outputs; and where a comparison of views has a weight, second views, and the pool if it learns from it."""
        return Needs(pool=learns_from_all(options.learn_from, *options.weights), pair=any(options.weights))

    @classmethod
    def check(cls, options: DoGoOptions, facts: Facts) -> None:
        """No sources; enough images in a batch to mistake one for another."""
        super().check(options, facts)
        needs = cls.needs(options)
        rows = facts.rows + facts.pool_rows * needs.pool
        if needs.pair and rows < 2:
            raise InputError(f"batch_size gives each process {rows} image at a time; this method compares at least 2")

    def build_heads(self, target: TappedNetwork) -> nn.ModuleDict:
        """The projection, where it has something to learn."""
        return nn.ModuleDict({"projection": Projection(target.embedding_dim)} if any(self.options.weights) else {})

    def losses(self, batch: Batch) -> list[dict[str, Tensor]]:
        """The equation above. Labels are those of the first view, as in all other methods."""
        images = torch.cat([batch.images, batch.pair.images]) if batch.pair else batch.images
        seen = [peer.student(images) for peer in self.peers]
        losses = [{"primary": self.task.primary_loss(logits[: len(batch.labels)], batch.labels)} for logits, _ in seen]
        if not batch.pair:
            return losses
        projected = [heads["projection"] for _, heads in seen]
        compared = partial(cross_view_kl, temperature=self.options.mutual_temperature)
        mutual = mutual_parts(projected, compared, weight=self.options.mutual_weight)
        return [
            parts | {"ssl": self._contrast(rows)} | taught
            for parts, rows, taught in zip(losses, projected, mutual, strict=True)
        ]

    def _contrast(self, rows: Tensor) -> Tensor:
        return self.options.ssl_weight * nt_xent(*rows.chunk(2), temperature=self.options.temperature)
