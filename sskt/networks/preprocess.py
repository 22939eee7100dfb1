"""From the bytes of an image to what a network wants to see, as part of the network."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sskt.errors import InputError

LUMINANCE = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in a grey picture (ITU-R BT.601)."""


@dataclass(frozen=True)
class Preprocessing:
    """What a network wants to see; neither size nor scale leaves images at theirs. mean, std: for pixels in 0..1.

    size: the side in pixels; scale: instead, the side as a multiple of the image's.
    """

    channels: int
    size: int | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    scale: float | None = None

    def __post_init__(self) -> None:
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) != self.channels:
                raise InputError(
                    f"input.{name} is {list(values)}; it has to have an entry for each of {self.channels} channels"
                )
        if min(self.std, default=1.0) <= 0:
            raise InputError(f"input.std is {list(self.std)}; every entry has to be above 0")

    def side(self, length: int) -> int:
        """Return the side that one of `length` pixels is resized to."""
        if self.scale is None:
            return self.size or length
        # Rounded down, as torch scales (32 * 7/3 is 74); 7/3 typed as 2.3333 is a little short, and 96 still gives 224.
        return max(1, math.floor(length * self.scale + 0.01))

    def plain(self) -> dict[str, Any]:
        """As JSON gives it back; without a scale as before there was one, for identities and files hold this."""
        values = asdict(self) | {"mean": list(self.mean), "std": list(self.std)}
        return {name: value for name, value in values.items() if name != "scale" or value is not None}


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
        height, width = pixels.shape[-2:]
        size = self.values.side(height), self.values.side(width)
        if size != (height, width):
            # Not antialiased: sources mostly see images enlarged, and there it changes nothing. By size for a scale
            # too: where a side was rounded down, torch's own scaling would leave out a part of the last pixel.
            pixels = F.interpolate(pixels, size=size, mode="bilinear", align_corners=False, antialias=False)
        return (pixels - self.mean) / self.std

    def _adapted(self, pixels: Tensor) -> Tensor:
        """Turn [B, c, H, W] into [B, channels, H, W]; a grey image stays [B, 1, H, W], normalising repeats it."""
        seen, wanted = pixels.shape[1], self.values.channels
        if seen == wanted or (seen, wanted) == (1, 3):
            return pixels
        if wanted == 3 and seen > 3 and seen % 3 == 0:  # a clip, of which a network for images sees the centre frame
            first = 3 * (seen // 3 // 2)
            return pixels[:, first : first + 3]
        if (seen, wanted) == (3, 1):
            return (pixels * self.luminance).sum(dim=1, keepdim=True)
        raise InputError(
            f"images have {seen} channels and the network sees {wanted}; only 1 and 3 turn into each other"
        )
