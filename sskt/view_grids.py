"""Operations that move whole pixels: they pull coordinates of the output back to the input, so many cost one gather."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

ONE = 1 << 16
"""Fixed point: 1.0 in 16.16, the unit of shares, coordinates, sines and probabilities."""

Draw = Callable[[int, int | Tensor], Tensor]
"""(draw number, bound) -> int64 [B, 1, 1, 1] random integers in [0, bound); a bound may differ from image to image."""


class Grid(NamedTuple):
    """Which input pixel an output pixel shows. y, x: int64, broadcastable to [B, 1, S, S]; visible: bool, likewise."""

    y: Tensor
    x: Tensor
    visible: Tensor


PullBack = Callable[[Grid, Draw, tuple[int, ...], int], Grid]
"""(grid, draw, values, side of the images) -> grid."""


def identity(size: int, device: torch.device) -> Grid:
    """Every pixel shows itself."""
    line = torch.arange(size, device=device)
    return Grid(line.view(1, 1, -1, 1), line.view(1, 1, 1, -1), torch.ones((), dtype=torch.bool, device=device))


def gather(images: Tensor, grid: Grid) -> Tensor:
    """Show the input pixels of a grid, black where none is visible. images: uint8 [B, C, S, S]; returns the same."""
    batch, channels, size, _ = images.shape
    flat = (grid.y * size + grid.x).expand(batch, 1, size, size).reshape(batch, 1, size * size)
    return images.flatten(2).gather(2, flat.expand(-1, channels, -1)).view_as(images) * grid.visible


def bounded_by(grid: Grid, size: int) -> Grid:
    """Hide what lies outside of the input."""
    # Rows and columns each by themselves: mostly they are single lines, whose masks are small.
    rows, columns = (grid.y >= 0) & (grid.y < size), (grid.x >= 0) & (grid.x < size)
    return Grid(grid.y.clamp(0, size - 1), grid.x.clamp(0, size - 1), grid.visible & rows & columns)


def pad_crop(grid: Grid, draw: Draw, values: tuple[int, ...], size: int) -> Grid:
    """Pad with black on all sides, crop the old size at a random place."""
    (padding,) = values
    y = grid.y + draw(0, 2 * padding + 1) - padding
    x = grid.x + draw(1, 2 * padding + 1) - padding
    return bounded_by(Grid(y, x, grid.visible), size)


def hflip(grid: Grid, draw: Draw, values: tuple[int, ...], size: int) -> Grid:
    """Mirror left and right in half of the views."""
    return grid._replace(x=torch.where(draw(0, 2) == 1, size - 1 - grid.x, grid.x))


def rot90(grid: Grid, draw: Draw, values: tuple[int, ...], size: int) -> Grid:
    """Rotate counter-clockwise by a random multiple of 90 degrees."""
    turns, last = draw(0, 4), size - 1
    half, quarter = turns >= 2, turns % 2 == 1
    y, x = torch.where(half, last - grid.y, grid.y), torch.where(half, last - grid.x, grid.x)
    y, x = torch.where(quarter, x, y), torch.where(quarter, last - y, x)
    return Grid(y, x, grid.visible)


def cutout(grid: Grid, draw: Draw, values: tuple[int, ...], size: int) -> Grid:
    """Blacken a square around a random centre; at the border less of it shows."""
    (side,) = values
    return grid._replace(visible=grid.visible & ~in_square(grid, draw, side, size))


def in_square(grid: Grid, draw: Draw, side: int | Tensor, size: int) -> Tensor:
    """Which pixels of a grid lie in a square around a random centre: bool, broadcastable to [B, 1, S, S]."""
    top, left = draw(0, size) - side // 2, draw(1, size) - side // 2
    return (grid.y >= top) & (grid.y < top + side) & (grid.x >= left) & (grid.x < left + side)
