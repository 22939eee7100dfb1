"""A gallery: images that can be shown in any view of any kind."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sskt.mixing import MIXTURES, partners
from sskt.views import TURN, Kind, Recipe, drawer, hash_counters


class Images(Protocol):
    """Images as packed, by their rows: a tensor uint8 [n, C, S, S], or what stands for one."""

    @property
    def device(self) -> torch.device:
        """Where rows come to lie."""

    def __getitem__(self, rows: Tensor, /) -> Tensor:
        """Rows, int64 [B], as uint8 [B, C, S, S]."""


@dataclass(frozen=True)
class Gallery:
    """Adjacent samples, and what is made of them."""

    recipe: Recipe
    images: Images
    """Uint8 [n, C, S, S]."""
    edges: tuple[int, ...]
    """Where the blocks of the pool begin, and where the last one ends."""
    first: int = 0
    """Id of the first sample."""

    def show(self, ids: Tensor, *, views: Tensor, kind: Kind = "") -> Tensor:
        """Show views[i] of sample ids[i], all of one kind: uint8 [B, C, S, S]. Their partners have to be here."""
        if kind in MIXTURES:
            return self._mixed(ids, views, kind)
        show = self.recipe.apply_turned if kind == "turned" else self.recipe.apply
        rows, images = ids - self.first, self.images
        # Of a tensor whole images are copied, where an index in brackets goes value by value.
        packed = images.index_select(0, rows) if isinstance(images, Tensor) else images[rows]
        return show(packed, ids=ids, views=views)

    def _mixed(self, ids: Tensor, views: Tensor, kind: Kind) -> Tensor:
        key = hash_counters(self.recipe.seed, ids, views)
        others = partners(ids, drawer(key, 0), edges=self.edges)
        own, other = (self.show(samples, views=views % TURN) for samples in (ids, others))
        return MIXTURES[kind](own, other, drawer(key, 1))
