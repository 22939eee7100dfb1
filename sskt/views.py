"""Views: deterministic augmentations of uint8 images, replayed bit-exactly from (sample, view) alone.

A view's parameters are an integer hash of (recipe seed, sample id, view id, operation, draw). Nothing is stored,
there is no generator state, and any batch size, worker count or device gives the same pixels. The operations pull
the coordinates of the output back to the input, last operation first, so a whole recipe costs one gather.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sskt.errors import InputError, unknown_name
from sskt.settings import ViewSettings

RECIPE_VERSION = 1
"""Part of every fingerprint; a change of any view's pixels raises it."""

TURN = 1 << 20
"""A view id v + r * TURN is the view v drawn anew and turned by r quarters; a recipe has fewer views than this."""

_GOLDEN = 0x9E3779B97F4A7C15
_MULTIPLIERS = (0xBF58476D1CE4E5B9, 0x94D049BB133111EB)


def _signed(value: int) -> int:
    """The int64 with the same 64 bits; torch has no full set of uint64 operations."""
    value &= (1 << 64) - 1
    return value - (1 << 64) if value >> 63 else value


def _shift(bits: Tensor, by: int) -> Tensor:
    """Logical shift right of int64 values."""
    return (bits >> by) & ((1 << (64 - by)) - 1)


def _mix(bits: Tensor) -> Tensor:
    """The finaliser of splitmix64: every input bit moves every output bit."""
    bits = (bits ^ _shift(bits, 30)) * _signed(_MULTIPLIERS[0])
    bits = (bits ^ _shift(bits, 27)) * _signed(_MULTIPLIERS[1])
    return bits ^ _shift(bits, 31)


def hash_counters(seed: int, *counters: Tensor | int) -> Tensor:
    """Hash a seed and counters (broadcast against each other) to 64 random bits, as int64."""
    first = next(counter for counter in counters if isinstance(counter, Tensor))
    bits = torch.tensor(_signed(seed), dtype=torch.int64, device=first.device)
    for counter in counters:
        step = counter * _signed(_GOLDEN) if isinstance(counter, Tensor) else _signed(counter * _GOLDEN)
        bits = _mix(bits + _signed(_GOLDEN) ^ step)
    return bits


def bounded(bits: Tensor, bound: int) -> Tensor:
    """Random integers in [0, bound) from 64 random bits; the bias is below bound / 2**31."""
    return (_shift(bits, 33) * bound) >> 31


class _Grid(NamedTuple):
    """Which input pixel an output pixel shows. y, x: int64, broadcastable to [B, H, W]; visible: bool, likewise."""

    y: Tensor
    x: Tensor
    visible: Tensor


_Draw = Callable[[int, int], Tensor]
"""(draw number, bound) -> [B, 1, 1] random integers in [0, bound)."""


def _pad_crop(grid: _Grid, draw: _Draw, padding: int, size: int) -> _Grid:
    """Pad with black on all sides, crop the old size at a random place."""
    y = grid.y + draw(0, 2 * padding + 1) - padding
    x = grid.x + draw(1, 2 * padding + 1) - padding
    inside = (y >= 0) & (y < size) & (x >= 0) & (x < size)
    return _Grid(y.clamp(0, size - 1), x.clamp(0, size - 1), grid.visible & inside)


def _hflip(grid: _Grid, draw: _Draw, _argument: int, size: int) -> _Grid:
    """Mirror left and right in half of the views."""
    return grid._replace(x=torch.where(draw(0, 2) == 1, size - 1 - grid.x, grid.x))


def _rot90(grid: _Grid, draw: _Draw, _argument: int, size: int) -> _Grid:
    """Rotate counter-clockwise by a random multiple of 90 degrees."""
    turns, last = draw(0, 4), size - 1
    half, quarter = turns >= 2, turns % 2 == 1
    y, x = torch.where(half, last - grid.y, grid.y), torch.where(half, last - grid.x, grid.x)
    y, x = torch.where(quarter, x, y), torch.where(quarter, last - y, x)
    return _Grid(y, x, grid.visible)


def _cutout(grid: _Grid, draw: _Draw, side: int, size: int) -> _Grid:
    """Blacken a square around a random centre; at the border less of it shows."""
    top, left = draw(0, size) - side // 2, draw(1, size) - side // 2
    hidden = (grid.y >= top) & (grid.y < top + side) & (grid.x >= left) & (grid.x < left + side)
    return grid._replace(visible=grid.visible & ~hidden)


@dataclass(frozen=True)
class _Kind:
    pull_back: Callable[[_Grid, _Draw, int, int], _Grid]
    takes_pixels: bool


OPERATIONS = {
    "pad_crop": _Kind(_pad_crop, takes_pixels=True),
    "hflip": _Kind(_hflip, takes_pixels=False),
    "rot90": _Kind(_rot90, takes_pixels=False),
    "cutout": _Kind(_cutout, takes_pixels=True),
}


@dataclass(frozen=True)
class Operation:
    """One step of a recipe."""

    name: str
    pixels: int = 0


@dataclass(frozen=True)
class Recipe:
    """What happens to an image on its way to a view."""

    operations: tuple[Operation, ...]
    seed: int

    def identity(self) -> dict[str, object]:
        """Everything that changes a pixel of a view, for fingerprints."""
        operations = [[operation.name, operation.pixels] for operation in self.operations]
        return {"version": RECIPE_VERSION, "operations": operations, "seed": self.seed}

    def apply(self, images: Tensor, *, ids: Tensor, views: Tensor) -> Tensor:
        """Show views[i] of sample ids[i]. images: uint8 [B, C, S, S], the samples as packed; returns the same shape."""
        if not self.operations:
            return images
        batch, channels, size, _ = images.shape
        line = torch.arange(size, device=images.device)
        grid = _Grid(line.view(1, -1, 1), line.view(1, 1, -1), torch.ones((), dtype=torch.bool, device=images.device))
        for index in reversed(range(len(self.operations))):
            operation = self.operations[index]
            draw = _drawer(self.seed, ids=ids, views=views, operation=index)
            grid = OPERATIONS[operation.name].pull_back(grid, draw, operation.pixels, size)
        flat = (grid.y * size + grid.x).expand(batch, size, size).reshape(batch, 1, -1).expand(-1, channels, -1)
        pixels = images.flatten(2).gather(2, flat).view_as(images)
        return pixels * grid.visible.expand(batch, size, size).unsqueeze(1)

    def apply_turned(self, images: Tensor, *, ids: Tensor, views: Tensor) -> Tensor:
        """Show turned views: ids made by `turned`, every view with draws of its own before it is turned."""
        return turn(self.apply(images, ids=ids, views=views), views // TURN)


def turned(views: Tensor, quarters: Tensor | int) -> Tensor:
    """Ids of views turned by 0 to 3 quarters; 0 is the view as it was."""
    return views + quarters * TURN


def turn(images: Tensor, quarters: Tensor) -> Tensor:
    """Turn images [B, C, S, S] counter-clockwise by quarters [B], each 0 to 3."""
    if images.shape[-1] != images.shape[-2]:
        raise InputError(f"images are {images.shape[-2]} by {images.shape[-1]}; only square ones can be turned")
    wanted = quarters.view(-1, 1, 1, 1)
    for number in (1, 2, 3):
        images = torch.where(wanted == number, torch.rot90(images, number, dims=(2, 3)), images)
    return images


def _drawer(seed: int, *, ids: Tensor, views: Tensor, operation: int) -> _Draw:
    def draw(number: int, bound: int) -> Tensor:
        return bounded(hash_counters(seed, ids, views, operation, number), bound).view(-1, 1, 1)

    return draw


def make_recipe(settings: ViewSettings, *, image_size: int) -> Recipe:
    """Check the operations a person wrote and freeze them."""
    operations = tuple(_parse(op) for op in settings.ops)
    for operation in operations:
        if operation.pixels >= image_size:
            raise InputError(
                f"views.ops: {operation.name} of {operation.pixels} pixels on images of {image_size}; "
                f"it has to be below {image_size}"
            )
    return Recipe(operations, settings.seed)


def _parse(op: str | dict[str, int]) -> Operation:
    name, pixels = (op, None) if isinstance(op, str) else next(iter(op.items()), ("", None))
    if name not in OPERATIONS:
        raise unknown_name("views.ops: operation", name, OPERATIONS)
    if isinstance(op, dict) and len(op) != 1:
        raise InputError(f"views.ops: {op} holds {len(op)} operations; write each as an entry of its own")
    if OPERATIONS[name].takes_pixels != (pixels is not None):
        right = f"`{name}: pixels`" if OPERATIONS[name].takes_pixels else f"`{name}` alone"
        raise InputError(f"views.ops: {op!r} is not complete; write {right}")
    if pixels is not None and pixels < 1:
        raise InputError(f"views.ops: {name} is {pixels}; it has to be at least 1 pixel")
    return Operation(name, pixels or 0)


def view_of_pass(ids: Tensor, passes: Tensor, *, count: int, seed: int) -> Tensor:
    """Choose the view of each sample in its n-th pass: a keyed permutation of the M views, walked in a circle.

    ids, passes: int64 [B]; returns int64 [B]. Every view is seen equally often and no state needs saving.
    """
    if count == 1:
        return torch.zeros_like(ids)
    views = torch.arange(count, device=ids.device)
    order = hash_counters(seed, ids.view(-1, 1), views.view(1, -1)).argsort(dim=1)
    return order.gather(1, (passes % count).view(-1, 1)).view(-1)
