"""The auxiliary heads of SSKT, from a target's features to a source's classes. They are dropped at export."""

from typing import Literal

import torch
from torch import Tensor, nn

from sskt.errors import InputError, unknown_name
from sskt.networks.tapped import Features

COMBINATIONS = ("mean", "sum")


class LinearHead(nn.Module):
    """One linear layer on the embedding."""

    reads_taps = False
    """A head that does not say so gets the target's taps, which are copies."""

    def __init__(self, embedding_dim: int, classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(embedding_dim, classes)

    def forward(self, features: Features) -> Tensor:
        """Return logits [B, classes]."""
        logits: Tensor = self.fc(features.embedding)
        return logits


class EmbeddingHead(nn.Module):
    """The embedding itself, for losses that compare it as it is."""

    reads_taps = False

    def forward(self, features: Features) -> Tensor:
        """Return the embedding [B, D]."""
        return features.embedding


class TapsHead(nn.Module):
    """The taps themselves, for losses that compare them as they are."""

    def forward(self, features: Features) -> tuple[Tensor, ...]:
        """Return the taps, [B, C_i, H_i, W_i] each."""
        return features.taps


class TransferModule(nn.Module):
    """The paper's transfer module: a bottleneck on each tap, averaged over the image, joined, then one linear layer."""

    def __init__(
        self,
        tap_channels: tuple[int, ...],
        classes: int,
        *,
        width: int = 64,
        combine: Literal["mean", "sum"] = "mean",
        read: tuple[int, ...] | None = None,
    ) -> None:
        """Read: the places of the taps that it reads; None is all of them."""
        super().__init__()
        if not tap_channels:
            raise InputError("a transfer module needs at least one tap; use linear heads for a network that has none")
        if width < 2:
            raise InputError(f"width is {width}; it has to be at least 2")
        if combine not in COMBINATIONS:
            raise unknown_name("combine", combine, COMBINATIONS)
        self.combine = combine
        self.read = tuple(range(len(tap_channels))) if read is None else read
        self.bottlenecks = nn.ModuleList(_bottleneck(tap_channels[tap], width=width) for tap in self.read)
        self.fc = nn.Linear(width, classes)

    def forward(self, features: Features) -> Tensor:
        """Return logits [B, classes]."""
        pairs = zip(self.bottlenecks, self.read, strict=True)
        pooled = torch.stack([bottleneck(features.taps[tap]).mean(dim=(2, 3)) for bottleneck, tap in pairs])
        joined = pooled.mean(dim=0) if self.combine == "mean" else pooled.sum(dim=0)
        logits: Tensor = self.fc(joined)
        return logits


def _bottleneck(channels: int, *, width: int) -> nn.Sequential:
    """[B, channels, H, W] -> [B, width, H / 2, W / 2], rounded up."""
    narrow = width // 2
    return nn.Sequential(
        *_layer(nn.Conv2d(channels, narrow, 1)),
        *_layer(nn.Conv2d(narrow, narrow, 3, stride=2, padding=1)),
        *_layer(nn.Conv2d(narrow, width, 1)),
    )


def _layer(convolution: nn.Conv2d) -> tuple[nn.Module, ...]:
    return convolution, nn.BatchNorm2d(convolution.out_channels), nn.ReLU()
