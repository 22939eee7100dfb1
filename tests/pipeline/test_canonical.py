from dataclasses import dataclass

import pytest

from pipeline.canonical import canonical, digest


@dataclass(frozen=True)
class Point:
    x: int
    y: tuple[int, ...] = ()


def test_the_order_of_fields_changes_nothing():
    assert canonical({"b": 1, "a": [1, 2]}) == '{"a":[1,2],"b":1}'
    assert digest({"b": 1, "a": 2}) == digest({"a": 2, "b": 1})


def test_dataclasses_count_as_their_fields():
    assert canonical({"point": Point(1, (2, 3))}) == '{"point":{"x":1,"y":[2,3]}}'


def test_any_difference_is_another_digest():
    values = [{"a": 1}, {"a": 2}, {"a": 1.5}, {"a": "1"}, {"b": 1}, {"a": [1]}, {"a": None}]
    assert len({digest(value) for value in values}) == len(values)


def test_what_has_no_spelling_is_refused():
    with pytest.raises(TypeError, match="set has no canonical spelling"):
        canonical({"a": {1, 2}})
    with pytest.raises(ValueError, match="JSON compliant"):
        canonical(float("nan"))
