"""What a feed draws at once of several steps: most of what a draw costs is its number of operations, not of images."""

from dataclasses import dataclass

import torch
from torch import Tensor

from sskt.gallery import Images
from sskt.views import Kind

MOST_BYTES, MOST_STEPS = 1 << 21, 16
"""Of the labelled images that are drawn at once, and of the steps that they are for."""


@dataclass(frozen=True)
class Shown:
    """Views of one kind, [steps, rows, ...] each: images, labels, ids and views as those of a batch."""

    kind: Kind
    images: Tensor
    labels: Tensor
    ids: Tensor
    views: Tensor


@dataclass(frozen=True)
class Drawn:
    """All of some steps but for what sources say, which may be the work of a live one."""

    parts: tuple[Shown, ...]
    """The rows of a batch, one part below the other."""
    turned: Shown | None = None
    pair: "Drawn | None" = None


def steps_ahead(images: Images, *, rows: int) -> int:
    """How many steps of so many rows to draw at once. images: uint8 [N, C, S, S]."""
    one = images[torch.zeros(1, dtype=torch.int64, device=images.device)]
    return min(MOST_STEPS, max(1, MOST_BYTES // (one.numel() * rows)))
