"""What is kept of a network's feature maps: where it looks, and what it sees there on a coarse grid."""

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F

from sskt.relations import unit_rows

T = TypeVar("T")
S = TypeVar("S")

GRID = 4
"""Features are averaged to at most this many cells a side: whole maps would be hundreds of kilobytes an image."""


class MapShape(NamedTuple):
    """Shape of one tap of one image."""

    channels: int
    height: int
    width: int

    @property
    def cells(self) -> int:
        """Values of its attention map."""
        return self.height * self.width

    @property
    def coarse(self) -> "MapShape":
        """The shape its features are kept in."""
        return MapShape(self.channels, min(self.height, GRID), min(self.width, GRID))


def in_range(tap: Tensor) -> Tensor:
    """Divide each image's values [B, C, H, W] by the largest of them, so that squares stay in range."""
    size = tap.detach().abs().amax(dim=(1, 2, 3), keepdim=True)
    return tap / torch.where(size > 0, size, 1.0)


def activity(tap: Tensor) -> Tensor:
    """Mean over the channels of the squares, up to a factor for each image: [B, C, H, W] -> [B, H, W]."""
    return in_range(tap).square().mean(dim=1)


def attention_map(tap: Tensor) -> Tensor:
    """`activity` as a unit vector, which no factor changes: [B, C, H, W] -> [B, H * W]. A zero map stays zero."""
    return unit_rows(activity(tap).flatten(1))


def coarse_features(tap: Tensor) -> Tensor:
    """Averages over at most GRID x GRID cells: [B, C, H, W] -> [B, C * h * w]."""
    shape = MapShape(*tap.shape[1:]).coarse
    return F.adaptive_avg_pool2d(tap, (shape.height, shape.width)).flatten(1)


def from_the_last(target: Sequence[T], source: Sequence[S]) -> list[tuple[T, S]]:
    """Pair the target's taps with a source's, the last with the last, as many as both have; in their order."""
    count = min(len(target), len(source))
    return list(zip(target[len(target) - count :], source[len(source) - count :], strict=True))


def split_attention(rows: Tensor, shapes: Sequence[MapShape]) -> tuple[Tensor, ...]:
    """Cut an `attention` output [B, sum of H * W] into maps [B, H, W], a tap each."""
    parts = torch.split(rows, [shape.cells for shape in shapes], dim=1)
    return tuple(part.reshape(-1, shape.height, shape.width) for part, shape in zip(parts, shapes, strict=True))


def split_features(rows: Tensor, shapes: Sequence[MapShape]) -> tuple[Tensor, ...]:
    """Cut a `features` output [B, sum of C * h * w] into maps [B, C, h, w], a tap each."""
    coarse = [shape.coarse for shape in shapes]
    parts = torch.split(rows, [shape.channels * shape.cells for shape in coarse], dim=1)
    return tuple(part.reshape(-1, *shape) for part, shape in zip(parts, coarse, strict=True))
