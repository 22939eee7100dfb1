"""From a target's taps to maps like a source's: a feature pyramid over pyramid pooling. It is dropped at export."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sskt.maps import MapShape, from_the_last
from sskt.networks.tapped import Features

BINS = (1, 2, 3, 6)
"""Cells a side of the grids that the last tap is averaged to; those of pyramid pooling's own paper."""
LEAST_WIDTH = 2 * len(BINS)
"""Two channels for each of them: normalised over a map of one cell, a single channel would be 0."""


class PyramidPooling(nn.Module):
    """A map beside its averages over coarser grids, a quarter of the width each, joined by a 3x3 convolution."""

    def __init__(self, channels: int, *, width: int) -> None:
        super().__init__()
        part = width // len(BINS)
        self.parts = nn.ModuleList(_layer(nn.Conv2d(channels, part, 1)) for _ in BINS)
        self.join = _layer(nn.Conv2d(channels + part * len(BINS), width, 3, padding=1))

    def forward(self, tap: Tensor) -> Tensor:
        """[B, channels, H, W] -> [B, width, H, W]."""
        averages = [part(F.adaptive_avg_pool2d(tap, bins)) for part, bins in zip(self.parts, BINS, strict=True)]
        joined: Tensor = self.join(torch.cat([tap, *(_enlarged(average, tap) for average in averages)], dim=1))
        return joined


class PyramidRegressor(nn.Module):
    """A level for each pair of taps, from the last backwards, every one with what the coarser ones know.

    The last tap goes through pyramid pooling, the others through a 1x1 convolution; top down, each level adds the
    enlarged one below it; a 3x3 convolution smooths, a 1x1 convolution gives the source's channels.
    """

    def __init__(self, taps: Sequence[MapShape], maps: Sequence[MapShape], *, width: int) -> None:
        super().__init__()
        levels = from_the_last(taps, maps)
        *others, last = (tap.channels for tap, _ in levels)
        # An average commutes with the 1x1 convolution, and before it costs less.
        self.sizes = [(min(tap.height, one.height), min(tap.width, one.width)) for tap, one in levels]
        self.laterals = nn.ModuleList(_layer(nn.Conv2d(channels, width, 1)) for channels in others)
        self.pooling = PyramidPooling(last, width=width)
        self.smooths = nn.ModuleList(_layer(nn.Conv2d(width, width, 3, padding=1)) for _ in levels)
        self.projections = nn.ModuleList(nn.Conv2d(width, one.channels, 1) for _, one in levels)

    def forward(self, features: Features) -> tuple[Tensor, ...]:
        """Return a map [B, source's channels, h, w] a level, no larger than the tap of either."""
        merged = self._merged(features.taps[-len(self.sizes) :])
        levels = zip(merged, self.smooths, self.projections, self.sizes, strict=True)
        return tuple(project(F.adaptive_avg_pool2d(smooth(one), size)) for one, smooth, project, size in levels)

    def _merged(self, taps: Sequence[Tensor]) -> list[Tensor]:
        """Each level [B, width, H, W] with the sum of those below it."""
        merged = [self.pooling(taps[-1])]
        for lateral, tap in zip(reversed(self.laterals), reversed(taps[:-1]), strict=True):
            merged.insert(0, lateral(tap) + _enlarged(merged[0], tap))
        return merged


def _enlarged(small: Tensor, like: Tensor) -> Tensor:
    """Repeat cells until the map has the height and width of another."""
    return F.interpolate(small, size=like.shape[-2:], mode="nearest")


def _layer(convolution: nn.Conv2d) -> nn.Sequential:
    """Normalised over each image alone, so that neither the batch nor a map of one cell matters."""
    return nn.Sequential(convolution, nn.GroupNorm(1, convolution.out_channels), nn.ReLU())
