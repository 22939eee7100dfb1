"""The operations a recipe may hold, and what a person may write after their names."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sskt import view_colours as colours
from sskt import view_grids as grids
from sskt.errors import InputError, unknown_name
from sskt.rand_augment import MAGNITUDES, rand_augment
from sskt.view_crops import AREAS, random_resized_crop
from sskt.view_grids import ONE, Draw, PullBack


@dataclass(frozen=True)
class Parameter:
    """A number that a person writes, or two where the default is a range; kept as whole numbers of 1/unit."""

    low: float
    high: float | None = None
    unit: int = 1
    default: float | tuple[float, float] | None = None

    def parse(self, where: str, written: Any) -> tuple[int, ...]:
        """Check what was written, or take the default."""
        pair = isinstance(self.default, tuple)
        numbers = written if pair else (written,)
        whole = isinstance(numbers, list | tuple) and len(numbers) == 1 + pair
        if not whole or not all(self._fits(number) for number in numbers) or list(numbers) != sorted(numbers):
            raise InputError(f"views.ops: {where} is {written!r}; it has to be {self._right(pair=pair)}")
        return tuple(round(number * self.unit) for number in numbers)

    def _fits(self, number: Any) -> bool:
        kind = int if self.unit == 1 else (int, float)
        known = isinstance(number, kind) and not isinstance(number, bool)
        return known and number >= self.low and (self.high is None or number <= self.high)

    def _right(self, *, pair: bool) -> str:
        within = f"at least {self.low}" if self.high is None else f"from {self.low} to {self.high}"
        if pair:
            return f"two numbers {within}, the smaller first"
        return f"a whole number, {within}" if self.unit == 1 else f"a number {within}"


@dataclass(frozen=True, kw_only=True)
class Kind:
    """An operation: one that moves whole pixels pulls coordinates back, any other changes the images."""

    pull_back: PullBack | None = None
    change: Callable[[Tensor, Draw, tuple[int, ...]], Tensor] | None = None
    """(images, draw, values) -> images, uint8 [B, C, S, S]."""
    parameters: dict[str, Parameter] = field(default_factory=dict)
    """One is written `operation: value`; several are written by their names, and each has a default."""

    def parse(self, name: str, given: Any) -> tuple[int, ...]:
        """Check what was written after the operation's name, None where nothing was; all its values in a row."""
        if len(self.parameters) > 1:
            return self._parse_named(name, {} if given is None else given)
        if (given is None) != (not self.parameters):
            right = "".join(f": {parameter}" for parameter in self.parameters)
            raise InputError(f"views.ops: {name} takes {right[2:] or 'no value'}; write `{name}{right}`")
        return tuple(number for parameter in self.parameters.values() for number in parameter.parse(name, given))

    def _parse_named(self, name: str, named: Any) -> tuple[int, ...]:
        if not isinstance(named, dict):
            right = ", ".join(f"{parameter}: ..." for parameter in self.parameters)
            raise InputError(f"views.ops: {name} is {named!r}; write `{name}: {{{right}}}`")
        for other in named:
            if other not in self.parameters:
                raise unknown_name(f"views.ops: {name}: parameter", other, self.parameters)
        return tuple(
            number
            for key, parameter in self.parameters.items()
            for number in parameter.parse(f"{name}.{key}", named.get(key, parameter.default))
        )


_PIXELS = {"pixels": Parameter(1)}
_AMOUNT = {"amount": Parameter(0.01, 1, unit=colours.UNIT)}
_PROBABILITY = {"probability": Parameter(0.01, 1, unit=ONE)}
_HALF = Parameter(0.01, 1, unit=ONE, default=0.5)


def _by_factor(colour: Callable[[Tensor, Tensor], Tensor]) -> Kind:
    """By a factor drawn from 1 - amount to 1 + amount."""

    def change(images: Tensor, draw: Draw, values: tuple[int, ...]) -> Tensor:
        return colour(images, colours.UNIT - values[0] + draw(0, 2 * values[0] + 1))

    return Kind(change=change, parameters=_AMOUNT)


def _at_times(colour: Callable[..., Tensor], **parameters: Parameter) -> Kind:
    """In a share of the views; the parameters beside the probability are what it takes beside the images."""

    def change(images: Tensor, draw: Draw, values: tuple[int, ...]) -> Tensor:
        *others, probability = values
        return torch.where(draw(0, ONE) < probability, colour(images, *others), images)

    return Kind(change=change, parameters=parameters | {"probability": _HALF} if parameters else _PROBABILITY)


OPERATIONS = {
    "pad_crop": Kind(pull_back=grids.pad_crop, parameters=_PIXELS),
    "hflip": Kind(pull_back=grids.hflip),
    "rot90": Kind(pull_back=grids.rot90),
    "cutout": Kind(pull_back=grids.cutout, parameters=_PIXELS),
    "random_resized_crop": Kind(
        change=random_resized_crop,
        parameters={
            "scale": Parameter(0.01, 1, unit=AREAS, default=(0.08, 1)),
            "ratio": Parameter(0.1, 10, unit=ONE, default=(3 / 4, 4 / 3)),
        },
    ),
    "brightness": _by_factor(colours.brightness),
    "contrast": _by_factor(colours.contrast),
    "saturation": _by_factor(colours.saturation),
    "sharpness": _by_factor(colours.sharpness),
    "grayscale": _at_times(colours.grey),
    "invert": _at_times(colours.invert),
    "autocontrast": _at_times(colours.autocontrast),
    "equalize": _at_times(colours.equalize),
    "solarize": _at_times(colours.solarize, threshold=Parameter(0, 255, default=128)),
    "posterize": _at_times(colours.posterize, bits=Parameter(1, 7, default=4)),
    "rand_augment": Kind(
        change=rand_augment,
        parameters={"number": Parameter(1, default=2), "magnitude": Parameter(0, MAGNITUDES, default=9)},
    ),
}
