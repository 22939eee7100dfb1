"""Axes of settings that are swept or searched: the points they span, and the points drawn from them."""

import hashlib
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from pipeline.canonical import canonical
from pipeline.planning.validation import validate
from sskt.errors import InputError, unknown_name

Point = dict[str, Any]
"""The value of each axis, by the axis' path: `{"training.lr": 0.1, "options.alpha": 0.5}`."""

MOST_CORNERS = 2000
"""Of more corners than these a sample is looked at."""

DIGITS = 4
"""Of a drawn number: the report prints what was trained, and nobody tunes the fifth."""


@dataclass(frozen=True, kw_only=True)
class Axis:
    """A setting that takes one of several values, or any of a range."""

    path: str
    values: tuple[Any, ...] = ()
    """What it may be; none for a range."""
    low: float | None = None
    high: float | None = None
    """Both ends belong to the range."""
    log: bool = False
    """Whether equal factors of a range are equally likely, rather than equal differences."""
    whole: bool = False
    """Whether a range holds whole numbers only."""
    when: Point = field(default_factory=dict)
    """Other axes, and the value, or one of several, that each has to have for this one to be there."""

    def __post_init__(self) -> None:
        ends = (self.low, self.high)
        if self.values and (ends != (None, None) or self.log or self.whole):
            raise InputError("it has values, so low, high, log and whole are without a meaning; leave them out")
        spelled = [canonical(value) for value in self.values]
        if len(set(spelled)) < len(spelled):
            raise InputError(f"its values are {', '.join(spelled)}; name each once")
        if not self.values:
            self._check_range(*ends)

    def _check_range(self, low: float | None, high: float | None) -> None:
        if low is None or high is None:
            raise InputError("it has no values; give a list of at least one, or `low` and `high`")
        if not (low < high and math.isfinite(low) and math.isfinite(high)):
            raise InputError(f"low is {low}, high {high}; both have to be finite, and low below high")
        if self.log and low <= 0:
            raise InputError(f"low is {low}; with `log` it has to be above 0")
        if self.whole and (low % 1 or high % 1):
            raise InputError(f"low is {low}, high {high}; with `whole` they have to be whole numbers")

    @property
    def ends(self) -> tuple[Any, ...]:
        """Its values, or the lowest and the highest of its range."""
        if self.low is None or self.high is None:
            return self.values
        return (int(self.low), int(self.high)) if self.whole else (self.low, self.high)

    def holds(self, point: Mapping[str, Any]) -> bool:
        """Whether its conditions hold where other axes have these values."""
        return all(path in point and _is_one_of(point[path], wanted) for path, wanted in self.when.items())

    def value_at(self, share: float) -> Any:
        """Its value at a share of the way through it, from 0 up to 1."""
        if self.values:
            return self.values[int(share * len(self.values))]
        low, high = self.ends
        top = high + 1 if self.whole else high
        exact = low * (top / low) ** share if self.log else low + (top - low) * share
        return min(math.floor(exact), high) if self.whole else self.rounded(exact)

    def rounded(self, value: float) -> float:
        """A number of its range with few digits: as many as tell a thousand steps of the range apart, or more."""
        low, high = self.ends
        scale = min(value, high - low) if self.log else high - low
        return min(max(round(value, DIGITS - 1 - math.floor(math.log10(scale))), low), high)


def parse_axes(raw: Mapping[str, Any], *, where: str) -> tuple[Axis, ...]:
    """Read axes, by their paths, in their order, but each after those that its conditions ask for.

    An axis is a list of values, `{values: [...], when: {...}}`, or `{low:, high:, log:, whole:, when:}`.
    """
    axes = {path: _axis(path, said, where=f"{where}.{path}") for path, said in raw.items()}
    for axis in axes.values():
        _check_conditions(axis, axes, where=f"{where}.{axis.path}.when")
    ordered: dict[str, Axis] = {}
    while len(ordered) < len(axes):
        free = [axis for path, axis in axes.items() if path not in ordered and axis.when.keys() <= ordered.keys()]
        if not free:
            circle = ", ".join(repr(path) for path in axes if path not in ordered)
            raise InputError(f"{where}: the conditions of {circle} stand in a circle; one has to do without")
        ordered[free[0].path] = free[0]
    return tuple(ordered.values())


def grid_points(axes: Sequence[Axis]) -> Iterator[Point]:
    """All combinations, of a range its ends, each once: an axis whose conditions do not hold is absent.

    The last axis changes fastest. axes: in the order of `parse_axes`.
    """
    points: Iterator[Point] = iter([{}])
    for axis in axes:
        points = _extended(points, axis)
    return points


def draw(axes: Sequence[Axis], *, number: int, seed: int) -> Point:
    """The number-th random point. It depends on no other point, and the value of an axis on no other axis."""
    return _point(axes, lambda axis: axis.value_at(_share(seed, number, axis.path)))


def corners(axes: Sequence[Axis]) -> Iterator[Point]:
    """Every value and every end of a range in every combination; of too many a sample that misses no value."""
    found = list(itertools.islice(grid_points(axes), MOST_CORNERS + 1))
    if len(found) <= MOST_CORNERS:
        yield from found
        return
    ends = [replace(axis, values=axis.ends, low=None, high=None, log=False, whole=False) for axis in axes]
    for number in range(MOST_CORNERS):
        yield draw(ends, number=number, seed=0)
    for axis in ends:
        for value in axis.values:
            yield _point_with(axis, value, ends)


def _axis(path: str, said: Any, *, where: str) -> Axis:
    if not isinstance(said, list | dict):
        raise InputError(f"{where} is {said!r}; it has to be a list of values, or low and high")
    return validate(
        Axis, {"values": said, "path": path} if isinstance(said, list) else {**said, "path": path}, where=where
    )


def _check_conditions(axis: Axis, axes: Mapping[str, Axis], *, where: str) -> None:
    for path, wanted in axis.when.items():
        if path not in axes:
            raise unknown_name(f"{where}: axis", path, axes)
        values = axes[path].values
        several = isinstance(wanted, list) and wanted not in values
        if not all(value in values for value in (wanted if several else [wanted])):
            known = ", ".join(canonical(value) for value in values) or "none, for it is a range"
            raise InputError(
                f"{where}.{path} is {canonical(wanted)}; it has to be among the values of that axis: {known}"
            )


def _is_one_of(value: Any, wanted: Any) -> bool:
    return value == wanted or (isinstance(wanted, list) and value in wanted)


def _extended(points: Iterator[Point], axis: Axis) -> Iterator[Point]:
    for point in points:
        if axis.holds(point):
            yield from (point | {axis.path: value} for value in axis.ends)
        else:
            yield point


def _point(axes: Sequence[Axis], choose: Callable[[Axis], Any]) -> Point:
    point: Point = {}
    for axis in axes:
        if axis.holds(point):
            point[axis.path] = choose(axis)
    return point


def _share(seed: int, number: int, path: str) -> float:
    """A number from 0 up to 1, the same on every machine and with every version of every library."""
    hashed = hashlib.sha256(canonical([seed, number, path]).encode()).digest()
    return (int.from_bytes(hashed[:8], "big") >> 11) / 2**53


def _point_with(axis: Axis, value: Any, axes: Sequence[Axis]) -> Point:
    """A drawn point in which an axis has this value, and those that its conditions ask for have what they ask."""
    by_path = {one.path: one for one in axes}
    forced, open_axes = {axis.path: value}, [axis]
    while open_axes:
        for path, wanted in open_axes.pop().when.items():
            if path not in forced:
                forced[path] = next(one for one in by_path[path].values if _is_one_of(one, wanted))
                open_axes.append(by_path[path])
    drawn = draw([replace(one, when={}) for one in axes], number=0, seed=0)
    return _point(axes, lambda one: forced.get(one.path, drawn[one.path]))
