import itertools
import math
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.planning import space
from pipeline.planning.space import Axis, corners, draw, grid_points, parse_axes
from sskt.errors import InputError

NAMES = "abcde"


@st.composite
def raw_axes(draw, ranges=True):
    """Up to five axes in any order; conditions go from later names to earlier ones, so that there is no circle."""
    raw = {}
    for at, name in enumerate(NAMES[: draw(st.integers(0, 5))]):
        if ranges and draw(st.booleans()):
            whole, log = draw(st.booleans()), draw(st.booleans())
            low = draw(st.integers(1 if log else -5, 5)) if whole else draw(st.floats(1e-4 if log else -5, 5))
            raw[name] = {"low": low, "high": low + draw(st.integers(1, 9)), "log": log, "whole": whole}
        else:
            raw[name] = {
                "values": draw(
                    st.lists(st.sampled_from(["x", "y", [1, 2], {"z": 1}]), min_size=1, max_size=3, unique_by=str)
                )
            }
        listed = [other for other in NAMES[:at] if "values" in raw[other]]
        for other in draw(st.lists(st.sampled_from(listed), max_size=2, unique=True)) if listed else ():
            wanted = draw(st.lists(st.sampled_from(raw[other]["values"]), min_size=1, max_size=2, unique_by=str))
            raw[name].setdefault("when", {})[other] = wanted[0] if len(wanted) == 1 else wanted
    return {name: raw[name] for name in draw(st.permutations(list(raw)))}


def met(name, raw, values):
    """Slowly: whether an axis is there, given values of all axes, there or not."""
    for other, wanted in raw[name].get("when", {}).items():
        fits = values[other] == wanted or (isinstance(wanted, list) and values[other] in wanted)
        if not (fits and met(other, raw, values)):
            return False
    return True


def slow_points(raw):
    ends = {name: said.get("values") or [said["low"], said["high"]] for name, said in raw.items()}
    points = []
    for values in itertools.product(*ends.values()):
        every = dict(zip(ends, values, strict=True))
        point = {name: value for name, value in every.items() if met(name, raw, every)}
        if point not in points:
            points.append(point)
    return points


def spelled(points):
    return sorted(repr(sorted(point.items())) for point in points)


@settings(deadline=None)
@given(raw_axes())
def test_a_grid_is_every_combination_once_without_what_no_condition_lets_in(raw):
    axes = parse_axes(raw, where="grid")
    found = list(grid_points(axes))
    assert spelled(found) == spelled(slow_points(raw))
    assert len(set(spelled(found))) == len(found)
    assert spelled(corners(axes)) == spelled(found)


@settings(deadline=None)
@given(raw_axes())
def test_every_axis_comes_after_those_that_it_asks_for(raw):
    axes = parse_axes(raw, where="grid")
    order = [axis.path for axis in axes]
    assert sorted(order) == sorted(raw)
    assert all(order.index(other) < order.index(axis.path) for axis in axes for other in axis.when)


def test_the_last_axis_changes_fastest_and_the_order_is_that_of_the_file():
    axes = parse_axes({"b": [1, 2], "a": ["x", "y"]}, where="grid")
    assert list(grid_points(axes)) == [
        {"b": 1, "a": "x"}, {"b": 1, "a": "y"}, {"b": 2, "a": "x"}, {"b": 2, "a": "y"},
    ]  # fmt: skip
    assert list(grid_points(())) == [{}]


@settings(deadline=None)
@given(raw_axes(), st.integers(0, 10**6), st.integers(0, 10**6))
def test_a_drawn_point_is_one_of_the_space(raw, number, seed):
    axes = parse_axes(raw, where="search")
    point = draw(axes, number=number, seed=seed)
    assert point == draw(axes, number=number, seed=seed)
    by_path = {axis.path: axis for axis in axes}
    for path, value in point.items():
        axis = by_path[path]
        assert value in axis.values if axis.values else axis.low <= value <= axis.high
        assert isinstance(value, int) or not axis.whole
    every = {axis.path: point.get(axis.path) for axis in axes}
    assert set(point) == {path for path in raw if met(path, raw, every)}


@settings(deadline=None)
@given(raw_axes(), st.integers(0, 100))
def test_the_value_of_an_axis_does_not_depend_on_the_others(raw, number):
    axes = parse_axes(raw, where="search")
    point = draw(axes, number=number, seed=3)
    for axis in axes:
        alone = draw([Axis(**(vars(axis) | {"when": {}}))], number=number, seed=3)
        assert point.get(axis.path, alone[axis.path]) == alone[axis.path]


def test_points_that_were_drawn_once_stay_what_they_were():
    """Written down: results of a search are found again by them, whatever becomes of the code."""
    axes = parse_axes({"training.lr": {"low": 1e-4, "high": 0.1, "log": True}, "options.k": [1, 2, 3]}, where="search")
    assert [draw(axes, number=number, seed=0) for number in range(3)] == [
        {"training.lr": 0.03678, "options.k": 1},
        {"training.lr": 0.001697, "options.k": 1},
        {"training.lr": 0.09517, "options.k": 2},
    ]


DRAWN = 4000


def chi_square(counts, cells):
    """Of counts in so many cells that should be alike."""
    expected = sum(counts.values()) / cells
    return sum((counts[cell] - expected) ** 2 / expected for cell in range(cells))


@pytest.mark.parametrize(
    ("axis", "cell"),
    [
        (Axis(path="a", low=-1.0, high=3.0), lambda value: (value + 1) / 4 * 10),
        (Axis(path="a", low=1e-5, high=1e-1, log=True), lambda value: (math.log10(value) + 5) / 4 * 10),
        (Axis(path="a", low=1, high=10, whole=True), lambda value: value - 1),
        (Axis(path="a", values=tuple(range(10))), lambda value: value),
    ],
)
def test_every_part_of_an_axis_is_as_likely(axis, cell):
    drawn = [draw([axis], number=number, seed=1)["a"] for number in range(DRAWN)]
    counts = Counter(min(9, int(cell(value))) for value in drawn)
    assert chi_square(counts, 10) < 27.9  # 9 degrees of freedom, one in a thousand


def test_whole_numbers_by_factors_reach_both_ends():
    axis = Axis(path="a", low=1, high=64, whole=True, log=True)
    drawn = Counter(draw([axis], number=number, seed=0)["a"] for number in range(DRAWN))
    assert set(drawn) >= {1, 2, 3, 4, 64}
    assert drawn[1] > 5 * drawn[20] > 0


@settings(deadline=None)
@given(st.floats(-1e6, 1e6), st.floats(1e-6, 1e6), st.floats(0, 1))
def test_a_drawn_number_has_few_digits_and_stays_near(low, span, share):
    high = low + span
    if low == high:
        return
    axis = Axis(path="a", low=low, high=high)
    value = axis.rounded(low + share * (high - low))
    assert low <= value <= high
    assert abs(value - (low + share * (high - low))) <= (high - low) / 1000 + 1e-9 * abs(low)


def test_of_too_many_corners_a_sample_misses_no_single_value(monkeypatch):
    monkeypatch.setattr(space, "MOST_CORNERS", 50)
    raw = {f"p{at}": {"low": 0, "high": at + 1} for at in range(10)}
    raw |= {"kind": ["a", *(f"other{at}" for at in range(60))]}
    raw |= {"sub": {"values": ["s", "t"], "when": {"kind": "a"}}, "deep": {"low": 5, "high": 6, "when": {"sub": "t"}}}
    axes = parse_axes(raw, where="search")
    found = list(corners(axes))
    assert len(found) < 200
    for axis in axes:
        assert {point[axis.path] for point in found if axis.path in point} == set(axis.ends)
    for point in found:
        assert ("sub" in point) == (point["kind"] == "a")
        assert ("deep" in point) == (point.get("sub") == "t")


def test_a_condition_on_a_list_asks_for_the_list_or_for_one_of_several():
    sources = {"values": [["m"], ["m", "l"]]}
    for wanted, count in ((["m", "l"], 3), ([["m"], ["m", "l"]], 4)):
        axes = parse_axes({"sources": sources, "a": {"values": [1, 2], "when": {"sources": wanted}}}, where="grid")
        assert len(list(grid_points(axes))) == count


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        ({"a": 3}, "grid.a is 3; it has to be a list of values, or low and high"),
        ({"a": []}, "grid.a: it has no values; give a list of at least one, or `low` and `high`"),
        ({"a": {}}, "grid.a: it has no values"),
        ({"a": {"low": 1}}, "grid.a: it has no values"),
        ({"a": {"vals": [1]}}, "field 'grid.a.vals' is unknown; did you mean 'grid.a.values'?"),
        ({"a": {"low": 2, "high": 2}}, "grid.a: low is 2.0, high 2.0; both have to be finite, and low below high"),
        ({"a": {"low": 0, "high": 2, "log": True}}, "grid.a: low is 0.0; with `log` it has to be above 0"),
        ({"a": {"low": 0.5, "high": 2, "whole": True}}, "with `whole` they have to be whole numbers"),
        ({"a": {"low": 1, "high": float("inf")}}, "field grid.a.high is inf; it has to be finite"),
        ({"a": {"low": "x", "high": 2}}, "field grid.a.low is 'x'; it has to be a number"),
        ({"a": {"values": [1], "low": 2, "high": 3}}, "grid.a: it has values, so low, high, log and whole"),
        ({"a": {"values": [1], "log": True}}, "leave them out"),
        ({"a": [1, 2, 1]}, "grid.a: its values are 1, 2, 1; name each once"),
        ({"a": {"values": [1], "when": 3}}, "field grid.a.when is 3; it has to hold named fields"),
        ({"a": {"values": [1], "when": {"bb": 1}}, "b": [1]}, "grid.a.when: axis 'bb' is unknown; did you mean 'b'?"),
        ({"a": {"values": [1], "when": {"b": 2}}, "b": [1, 3]}, "grid.a.when.b is 2; it has to be among the values of"),
        ({"a": {"values": [1], "when": {"b": [1, 2]}}, "b": [1, 3]}, "grid.a.when.b is [1,2]; it has to be among"),
        ({"a": {"values": [1], "when": {"b": 2}}, "b": {"low": 1, "high": 3}}, "none, for it is a range"),
        ({"a": {"values": [1], "when": {"a": 1}}}, "grid: the conditions of 'a' stand in a circle"),
        (
            {"c": [0], "a": {"values": [1], "when": {"b": 1}}, "b": {"values": [1], "when": {"a": 1}}},
            "grid: the conditions of 'a', 'b' stand in a circle; one has to do without",
        ),
    ],
)  # fmt: skip
def test_an_axis_that_makes_no_sense_is_refused_in_one_line(raw, says):
    with pytest.raises(InputError) as caught:
        parse_axes(raw, where="grid")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
