import pickle
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest

from pipeline.planning.validation import field_paths, validate
from sskt.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float = 0.1
    kind: Literal["a", "b"] = "a"

    def __post_init__(self) -> None:
        if self.rate <= 0:
            raise InputError(f"inner.rate is {self.rate}; it has to be above 0")


@dataclass(frozen=True, kw_only=True)
class Outer:
    name: str
    inner: Inner = Inner()
    many: dict[str, Inner] = field(default_factory=dict)
    pair: tuple[int, ...] = ()
    flag: bool = False
    free: dict[str, Any] = field(default_factory=dict)


def test_values_become_the_dataclass_itself():
    value = validate(Outer, {"name": "n", "inner": {"rate": 1}, "pair": [1, 2], "many": {"x": {}}, "free": {"a": [1]}})
    assert value == Outer(name="n", inner=Inner(rate=1.0), pair=(1, 2), many={"x": Inner()}, free={"a": [1]})
    assert type(value.inner) is Inner
    assert pickle.loads(pickle.dumps(value)) == value  # noqa: S301 (our own bytes)


@pytest.mark.parametrize(
    ("raw", "says"),
    [
        (
            {"name": "n", "iner": {}},
            "field 'iner' is unknown; did you mean 'inner'? known: flag, free, inner, many, name, pair",
        ),
        ({"nam": "n"}, "field 'nam' is unknown; did you mean 'name'?"),
        ({"name": "n", "inner": {"rat": 1}}, "field 'inner.rat' is unknown; did you mean 'inner.rate'?"),
        ({"name": "n", "many": {"x": {"rat": 1}}}, "field 'many.x.rat' is unknown; did you mean 'many.x.rate'?"),
        ({}, "field name; it is missing and has no default"),
        ({"name": 3}, "field name is 3; it has to be text"),
        ({"name": "n", "inner": {"rate": "fast"}}, "field inner.rate is 'fast'; it has to be a number"),
        ({"name": "n", "inner": {"kind": "c"}}, "field inner.kind is 'c'; it has to be 'a' or 'b'"),
        ({"name": "n", "inner": {"rate": -1}}, "inner.rate is -1.0; it has to be above 0"),
        ({"name": "n", "many": {"x": {"rate": -1}}}, "many.x: inner.rate is -1.0; it has to be above 0"),
        ({"name": "n", "inner": 3}, "field inner is 3; it has to hold named fields"),
        ({"name": "n", "pair": [1, 2.5]}, "field pair.1 is 2.5; it has to be a whole number"),
        ({"name": "n", "pair": 1}, "field pair is 1; it has to be a list"),
        ({"name": "n", "flag": "yes"}, "field flag is 'yes'; it has to be true or false"),
        ({"name": "n", "inner": None}, "field inner is None; it has to hold named fields"),
        ({"name": 3, "flag": 3}, "(and 1 more)"),
        ({"name": "n", "inner": {"rate": float("inf")}}, "field inner.rate is inf; it has to be finite"),
        ({"name": "n", "inner": {"rate": float("nan")}}, "field inner.rate is nan; it has to be finite"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_would_be_right(raw, says):
    with pytest.raises(InputError) as caught:
        validate(Outer, raw)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ("", "inner.rate is -1.0; it has to be above 0"),
        ("inner", "inner.rate is -1.0; it has to be above 0"),
        ("methods[2]", "methods[2]: inner.rate is -1.0; it has to be above 0"),
    ],
)
def test_what_a_dataclass_refuses_is_placed_once(where, says):
    with pytest.raises(InputError) as caught:
        validate(Inner, {"rate": -1}, where=where)
    assert str(caught.value) == says


def test_errors_say_where_the_values_stand():
    with pytest.raises(InputError, match=r"field methods\[2\].rate is 'x'; it has to be a number"):
        validate(Inner, {"rate": "x"}, where="methods[2]")
    with pytest.raises(InputError, match=r"field 'methods\[2\].rote' is unknown; did you mean 'methods\[2\].rate'"):
        validate(Inner, {"rote": 1}, where="methods[2]")


def test_fields_have_dotted_names_and_those_of_mappings_any():
    assert field_paths(Inner) == ["rate", "kind"]
    assert field_paths(Outer) == [
        "name", "inner", "inner.rate", "inner.kind", "many", "many.*", "pair", "flag", "free", "free.*",
    ]  # fmt: skip
