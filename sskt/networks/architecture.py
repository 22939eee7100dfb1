"""What is known of a network before it is built."""

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Protocol

from torch import Tensor, nn

from sskt.errors import InputError, unknown_name
from sskt.networks.preprocess import Preprocessing
from sskt.networks.tapped import Blueprint
from sskt.settings import Option

Options = Mapping[str, Option]
SCALARS = (bool, int, float, str)


class Builder(Protocol):
    """Builds the plain network with random weights."""

    def __call__(self, *, classes: int, channels: int, options: Options) -> nn.Module:
        """Raise InputError for options it does not accept."""


@dataclass(frozen=True)
class Weights:
    """Weights from a file or by name, and what is known of the network they were trained in.

    label: how messages call them; state: by dotted name; the rest is None where nobody said.
    """

    label: str
    state: Mapping[str, Tensor] = field(repr=False)
    classes: int | None = None
    preprocessing: Preprocessing | None = None
    blueprint: Blueprint | None = None


@dataclass(frozen=True)
class Architecture:
    """A kind of network; everything but `build` has an answer that suits a classifier of your own."""

    build: Builder
    taps: tuple[str, ...] = ()
    """Dotted names of the parts whose outputs are features of interest, first to last."""
    head: str | None = None
    """Dotted name of the classifier; None is the last linear layer."""
    preprocessing: Callable[[], Preprocessing] | None = None
    """What its pretrained weights were made for; None is any channels, size, mean and std."""
    named_weights: Callable[[str], Weights] | None = None
    """Loads weights by name; None knows no names."""


def from_function(function: Callable[..., Any]) -> Builder:
    """Make a builder of f(*, classes, **options) or f(*, classes, channels, **options) -> nn.Module."""
    signature = inspect.signature(function)

    def build(*, classes: int, channels: int, options: Options) -> nn.Module:
        given = {"classes": classes} | ({"channels": channels} if "channels" in signature.parameters else {})
        if not _takes_anything(signature):
            check_options(options, option_types(signature, without=("classes", "channels")))
        try:
            bound = signature.bind(**given, **options)
        except TypeError as error:
            raise InputError(f"options {dict(options)} do not fit {function.__name__}{signature}: {error}") from error
        network = function(*bound.args, **bound.kwargs)
        if not isinstance(network, nn.Module):
            raise InputError(
                f"architecture {function.__name__!r} returned a {type(network).__name__}; it has to return an nn.Module"
            )
        return network

    return build


def _takes_anything(signature: inspect.Signature) -> bool:
    return any(parameter.kind is parameter.VAR_KEYWORD for parameter in signature.parameters.values())


def option_types(signature: inspect.Signature, *, without: tuple[str, ...]) -> dict[str, type]:
    """The options a signature takes, with what type they have to be; object is any."""
    kinds = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {
        name: next((kind for kind in (parameter.annotation, type(parameter.default)) if kind in SCALARS), object)
        for name, parameter in signature.parameters.items()
        if parameter.kind in kinds and name not in without
    }


def check_options(options: Options, accepted: Mapping[str, type]) -> None:
    """Check names and types."""
    for name, value in options.items():
        if name not in accepted:
            raise unknown_name("options entry", name, accepted)
        wanted = accepted[name]
        fits = wanted is object or type(value) is wanted or (wanted is float and type(value) is int)
        if not fits:
            raise InputError(f"options.{name} is {value!r}; it has to be of type {wanted.__name__}")


@contextmanager
def errors_in(prefix: str) -> Iterator[None]:
    """Say in what part of a person's input a mistake is."""
    try:
        yield
    except InputError as error:
        raise type(error)(f"{prefix}{error}") from error
