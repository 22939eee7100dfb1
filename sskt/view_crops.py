"""The crop that is stretched to the image's size: bilinear, in integers, so it replays bit-exactly everywhere."""

from decimal import Decimal
from functools import cache
from math import isqrt

import torch
from torch import Tensor

from sskt.view_grids import ONE, Draw

AREAS = 1 << 10
"""A crop's area is a whole number of these parts of the image's."""

_AREA_ROOTS = tuple(isqrt(ONE * ONE * area // AREAS) for area in range(AREAS + 1))
_RATIOS = 1 << 8


def random_resized_crop(images: Tensor, draw: Draw, values: tuple[int, ...]) -> Tensor:
    """Stretch a random part to the whole size. images: uint8 [B, C, S, S]; returns the same.

    values: the least and the largest area in 1/AREAS of the image's, the least and the largest ratio of width to height
    in 16.16. The area is uniform, the ratio log-uniform but for what does not fit: it becomes the nearest that does.
    """
    smallest, largest, narrowest, widest = values
    area = smallest + draw(0, largest - smallest + 1)
    root = _look_up(_ratio_roots(narrowest, widest), draw(1, _RATIOS + 1))
    share = area * (ONE // AREAS)
    width = torch.maximum((_look_up(_AREA_ROOTS, area) * root >> 16).clamp(max=ONE), share)
    height = share * ONE // width
    return stretch(images, top=draw(2, ONE + 1 - height), left=draw(3, ONE + 1 - width), height=height, width=width)


def stretch(images: Tensor, *, top: Tensor, left: Tensor, height: Tensor, width: Tensor) -> Tensor:
    """Enlarge a box of each image to the image's size, bilinear between pixel centres, the border pixels going on.

    images: uint8 [B, C, S, S]; the box: int64 [B, 1, 1, 1], in 16.16 shares of the side, height and width at most ONE.
    """
    rows = _between(images.int(), _positions(top, height, images.shape[-1]))
    columns = _between(rows.transpose(2, 3), _positions(left, width, images.shape[-1]))
    return (columns.transpose(2, 3) + (1 << 15) >> 16).to(torch.uint8)


def _positions(start: Tensor, length: Tensor, size: int) -> Tensor:
    """Where the centres of the output's pixels lie on the input's: int64 [B, S], in 24.8 pixels."""
    centres = 2 * torch.arange(size, device=start.device) + 1
    exact = (start * size).view(-1, 1) + (length.view(-1, 1) * centres >> 1) - ONE // 2
    return (exact + (1 << 7) >> 8).clamp(0, (size - 1) << 8)


def _between(lines: Tensor, positions: Tensor) -> Tensor:
    """Mix neighbouring lines by weights of 8 bits; the result is 256 times as large. lines: int32 [B, C, S, S]."""
    batch, channels, size, _ = lines.shape
    flat = lines.reshape(-1, size)
    first = torch.arange(batch * channels, device=lines.device).view(batch, channels, 1) * size
    low = positions >> 8
    upper = flat.index_select(0, (first + low.unsqueeze(1)).view(-1)).view(batch, channels, size, size)
    lower = flat.index_select(0, (first + (low + 1).clamp(max=size - 1).unsqueeze(1)).view(-1)).view_as(upper)
    weight = (positions & 255).int().view(batch, 1, size, 1)
    return (256 * upper).addcmul_(lower - upper, weight)


@cache
def _ratio_roots(narrowest: int, widest: int) -> tuple[int, ...]:
    """Square roots, in 16.16, of ratios in equal steps of their logarithm; Decimal rounds alike on every machine."""
    low, high = (Decimal(ratio).ln() - Decimal(ONE).ln() for ratio in (narrowest, widest))
    return tuple(round(ONE * ((low + (high - low) * step / _RATIOS) / 2).exp()) for step in range(_RATIOS + 1))


def _look_up(table: tuple[int, ...], index: Tensor) -> Tensor:
    return torch.tensor(table, device=index.device)[index]
