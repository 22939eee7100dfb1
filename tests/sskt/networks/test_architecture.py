"""Builders made from plain functions."""

import pytest
from torch import nn

from sskt.errors import InputError, UnknownNameError
from sskt.networks.architecture import errors_in, from_function


def plain(*, classes: int, depth: int = 2, rate: float = 0.5, norm: bool = True, name: str = "a") -> nn.Module:
    network = nn.Linear(depth, classes, bias=norm)
    network.seen = (depth, rate, norm, name)
    return network


def with_channels(classes, channels, extra, width=3):
    network = nn.Linear(channels, classes)
    network.seen = (extra, width)
    return network


def takes_anything(*, classes: int, **options) -> nn.Module:
    network = nn.Linear(1, classes)
    network.seen = options
    return network


def test_options_arrive():
    options = {"depth": 4, "rate": 1, "norm": False, "name": "b"}
    network = from_function(plain)(classes=5, channels=3, options=options)
    assert network.out_features == 5
    assert network.seen == (4, 1, False, "b")


def test_channels_go_to_those_who_ask_for_them():
    network = from_function(with_channels)(classes=5, channels=3, options={"extra": "x"})
    assert (network.in_features, network.seen) == (3, ("x", 3))


def test_functions_that_take_anything_get_anything():
    assert from_function(takes_anything)(classes=5, channels=3, options={"a": 1}).seen == {"a": 1}


@pytest.mark.parametrize(
    ("function", "options", "message"),
    [
        (plain, {"dept": 3}, r"options entry 'dept' is unknown; did you mean 'depth'\? known: depth, name, norm, rate"),
        (plain, {"classes": 3}, "options entry 'classes' is unknown"),
        (plain, {"depth": 2.5}, r"options\.depth is 2\.5; it has to be of type int"),
        (plain, {"depth": True}, r"options\.depth is True; it has to be of type int"),
        (plain, {"norm": 1}, r"options\.norm is 1; it has to be of type bool"),
        (plain, {"name": 1}, r"options\.name is 1; it has to be of type str"),
        (with_channels, {"width": "wide"}, r"options\.width is 'wide'; it has to be of type int"),
        (with_channels, {}, "options {} do not fit with_channels.*missing a required argument: 'extra'"),
    ],
)
def test_wrong_options_are_named(function, options, message):
    with pytest.raises(InputError, match=message):
        from_function(function)(classes=5, channels=3, options=options)


def test_a_function_has_to_return_a_module():
    def number(*, classes: int) -> int:
        return classes

    with pytest.raises(InputError, match=r"architecture 'number' returned a int; it has to return an nn\.Module"):
        from_function(number)(classes=5, channels=3, options={})


def test_mistakes_inside_a_function_are_not_taken_for_wrong_options():
    def mistaken(*, classes: int) -> nn.Module:
        return nn.Linear(1, classes + "0")

    with pytest.raises(TypeError):
        from_function(mistaken)(classes=5, channels=3, options={})


def test_errors_keep_their_type_and_get_a_place():
    with pytest.raises(UnknownNameError, match=r"^target\.name is wrong$"), errors_in("target."):
        raise UnknownNameError("name is wrong")
