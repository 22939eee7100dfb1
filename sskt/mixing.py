"""Mixed views: two samples of the pool in one image. Partner and mixture are drawn like everything of a view.

In integers, like all pixels of views. The two images are the samples' own views of the same number.
"""

from functools import cache
from math import isqrt

import torch
from torch import Tensor

from sskt.view_grids import Draw, identity, in_square

GROUP = 64
"""Partners come from the samples packed beside each other, which a shard reads together; their order is random."""

UNIT = 1 << 8
"""A share of 1."""


def partners(ids: Tensor, draw: Draw, *, edges: tuple[int, ...]) -> Tensor:
    """Draw another sample of each one's group, int64 [B]; one that is alone in its group gets itself.

    edges: where the blocks of the pool begin, and where the last one ends. Groups are counted from the beginning of
    their block, and end with it: a pool that grows keeps the partners it has.
    """
    bounds = torch.tensor(edges, device=ids.device)
    block = (ids.unsqueeze(1) >= bounds).sum(dim=1)
    place = (ids - bounds[block - 1]) % GROUP
    first = ids - place
    size = (bounds[block] - first).clamp(max=GROUP)
    further = draw(0, (size - 1).view(-1, 1, 1, 1)).view(-1)
    return first + (place + 1 + further) % size


def group_range(ids: range, block: range) -> range:
    """The samples of all groups that some samples of a block belong to."""
    last = block.start + -(-(ids.stop - block.start) // GROUP) * GROUP
    return range(ids.start - (ids.start - block.start) % GROUP, min(last, block.stop))


def mixup(own: Tensor, other: Tensor, draw: Draw) -> Tensor:
    """The weighted mean, its weight uniform in 0 to 1 by 1/256; rounded. own, other: uint8 [B, C, S, S]; returns it."""
    weight = draw(0, UNIT + 1).int()
    return (weight * own.int() + (UNIT - weight) * other.int() + UNIT // 2 >> 8).to(torch.uint8)


def cutmix(own: Tensor, other: Tensor, draw: Draw) -> Tensor:
    """A square of the other image around any centre, its area uniform; at the border less of it shows. As `mixup`."""
    size = own.shape[-1]
    side = torch.tensor(_sides(size), device=own.device)[draw(2, UNIT + 1)]
    return torch.where(in_square(identity(size, own.device), draw, side, size), other, own)


MIXTURES = {"mixup": mixup, "cutmix": cutmix}
"""By kind of view: (own, other, draw) -> what is shown."""


@cache
def _sides(size: int) -> tuple[int, ...]:
    """Sides of squares of 0 to 256 parts of an image's area, rounded down."""
    return tuple(isqrt(size * size * share // UNIT) for share in range(UNIT + 1))
