"""Views: deterministic augmentations of uint8 images, replayed bit-exactly from (sample, view) alone.

A view's parameters are an integer hash of (recipe seed, sample id, view id, operation, draw). Nothing is stored,
there is no generator state, and all arithmetic is on integers, so any batch size, worker count, device or version of a
library gives the same pixels. Operations that move whole pixels pull the coordinates of the output back to the input,
last operation first, so any number of them in a row costs one gather.
"""

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from sskt.errors import InputError, unknown_name
from sskt.settings import ViewSettings
from sskt.view_grids import Draw, PullBack, gather, identity
from sskt.view_operations import OPERATIONS

RECIPE_VERSION = 1
"""Part of every fingerprint; a change of any view's pixels raises it."""

TURN = 1 << 20
"""A recipe has fewer views than this; ids v + n * TURN are those of other kinds of views."""

Kind = Literal["", "turned", "mixup", "cutmix"]

KINDS: dict[Kind, tuple[int, ...]] = {"": (0,), "turned": (1, 2, 3), "mixup": (4,), "cutmix": (5,)}
"""Which n are whose: the recipe's own views, those drawn anew and turned by n quarters, two samples' views v in one."""

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
    # Filled on the device: a number that is copied there makes the host wait for it.
    return _absorb(torch.full((), _signed(seed), dtype=torch.int64, device=first.device), *counters)


def _absorb(bits: Tensor, *counters: Tensor | int) -> Tensor:
    """Go on with a hash: more counters after those that it has."""
    for counter in counters:
        step = counter * _signed(_GOLDEN) if isinstance(counter, Tensor) else _signed(counter * _GOLDEN)
        bits = _mix(bits + _signed(_GOLDEN) ^ step)
    return bits


def bounded(bits: Tensor, bound: int | Tensor) -> Tensor:
    """Random integers in [0, bound) from 64 random bits; the bias is below bound / 2**31."""
    return (_shift(bits, 33) * bound) >> 31


@dataclass(frozen=True)
class Operation:
    """One step of a recipe; its values are whole numbers, in the units of its parameters."""

    name: str
    values: tuple[int, ...] = ()


_Move = tuple[PullBack, Draw, tuple[int, ...]]


@dataclass(frozen=True)
class Recipe:
    """What happens to an image on its way to a view."""

    operations: tuple[Operation, ...]
    seed: int

    def identity(self) -> dict[str, object]:
        """Everything that changes a pixel of a view, for fingerprints."""
        # An operation without values has always had a 0 here.
        operations = [[operation.name, *(operation.values or (0,))] for operation in self.operations]
        return {"version": RECIPE_VERSION, "operations": operations, "seed": self.seed}

    def apply(self, images: Tensor, *, ids: Tensor, views: Tensor) -> Tensor:
        """Show views[i] of sample ids[i]. images: uint8 [B, C, S, S], the samples as packed; returns the same shape."""
        if not self.operations:
            return images
        key, moves = hash_counters(self.seed, ids, views), list[_Move]()
        for index, operation in enumerate(self.operations):
            kind, draw = OPERATIONS[operation.name], drawer(key, index)
            if kind.pull_back:
                moves.append((kind.pull_back, draw, operation.values))
            if kind.change:
                images = kind.change(_moved(images, moves), draw, operation.values)
                moves = []
        return _moved(images, moves)

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


def _moved(images: Tensor, moves: list[_Move]) -> Tensor:
    """Move pixels by operations in a row, in one gather."""
    if not moves:
        return images
    grid = identity(images.shape[-1], images.device)
    for pull_back, draw, values in reversed(moves):
        grid = pull_back(grid, draw, values, images.shape[-1])
    return gather(images, grid)


def drawer(key: Tensor, operation: int) -> Draw:
    """Draws of one operation; key: the hash of seed, sample and view, int64 [B]."""
    bits = _absorb(key, operation)

    def draw(number: int, bound: int | Tensor) -> Tensor:
        return bounded(_absorb(bits, number).view(-1, 1, 1, 1), bound)

    return draw


def make_recipe(settings: ViewSettings, *, image_size: int) -> Recipe:
    """Check the operations a person wrote and freeze them."""
    operations = tuple(_parse(op) for op in settings.ops)
    for operation in operations:
        if "pixels" in OPERATIONS[operation.name].parameters and operation.values[0] >= image_size:
            raise InputError(
                f"views.ops: {operation.name} of {operation.values[0]} pixels on images of {image_size}; "
                f"it has to be below {image_size}"
            )
    return Recipe(operations, settings.seed)


def _parse(op: str | dict[str, Any]) -> Operation:
    name, given = (op, None) if isinstance(op, str) else next(iter(op.items()), ("", None))
    if name not in OPERATIONS:
        raise unknown_name("views.ops: operation", name, OPERATIONS)
    if isinstance(op, dict) and len(op) != 1:
        raise InputError(f"views.ops: {op} holds {len(op)} operations; write each as an entry of its own")
    return Operation(name, OPERATIONS[name].parse(name, given))


def view_of_pass(ids: Tensor, passes: Tensor, *, count: int, seed: int) -> Tensor:
    """Choose the view of each sample in its n-th pass: a keyed permutation of the M views, walked in a circle.

    ids, passes: int64 [B]; returns int64 [B]. Every view is seen equally often and no state needs saving.
    """
    if count == 1:
        return torch.zeros_like(ids)
    views = torch.arange(count, device=ids.device)
    order = hash_counters(seed, ids.view(-1, 1), views.view(1, -1)).argsort(dim=1)
    return order.gather(1, (passes % count).view(-1, 1)).view(-1)
