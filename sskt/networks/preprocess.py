"""From the bytes of an image to what a network wants to see, as part of the network."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sskt.errors import InputError

LUMINANCE = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in a grey picture (ITU-R BT.601)."""


@dataclass(frozen=True)
class Preprocessing:
    """What a network wants to see; size None leaves images at theirs. mean, std: for pixels scaled to 0..1."""

    channels: int
    size: int | None
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.channels:
                raise InputError(
                    f"input.{name} is {list(values)}; it has to have an entry for each of {self.channels} channels"
                )
        if min(self.std, default=1.0) <= 0:
            raise InputError(f"input.std is {list(self.std)}; every entry has to be above 0")


class Preprocess(nn.Module):
    """Adapts channels, resizes and normalises. Its constants describe a network and are no part of its state."""

    mean: Tensor
    std: Tensor
    luminance: Tensor

    def __init__(self, values: Preprocessing) -> None:
        super().__init__()
        self.values = values
        for name, numbers in (("mean", values.mean), ("std", values.std), ("luminance", LUMINANCE)):
            self.register_buffer(name, torch.tensor(numbers).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        """Turn uint8 [B, c, H, W] into float32 [B, channels, S, S]."""
        pixels = self._adapted(images.to(torch.float32) / 255)
        size = self.values.size
        if size is not None and tuple(pixels.shape[-2:]) != (size, size):
            # Not antialiased: sources mostly see images enlarged, and there it changes nothing.
            pixels = F.interpolate(pixels, size=(size, size), mode="bilinear", align_corners=False, antialias=False)
        return (pixels - self.mean) / self.std

    def _adapted(self, pixels: Tensor) -> Tensor:
        """Turn [B, c, H, W] into [B, channels, H, W]; a grey image stays [B, 1, H, W], normalising repeats it."""
        seen, wanted = pixels.shape[1], self.values.channels
        if seen == wanted or (seen, wanted) == (1, 3):
            return pixels
        if (seen, wanted) == (3, 1):
            return (pixels * self.luminance).sum(dim=1, keepdim=True)
        raise InputError(
            f"images have {seen} channels and the network sees {wanted}; only 1 and 3 turn into each other"
        )
