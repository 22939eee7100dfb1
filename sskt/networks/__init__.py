"""The networks by name, built as targets or as sources. A new one is a file here and a line in ARCHITECTURES.

Beside those: every classifier of torchvision, and `package.module:function` of your own.
"""

import importlib
from dataclasses import dataclass, replace
from functools import partial

import torch

from sskt.errors import InputError, unknown_name
from sskt.networks import (
    cifar_mobilenet,
    cifar_resnet,
    cifar_resnet50,
    cifar_shufflenet,
    cifar_vgg,
    lite,
    resnet3d,
    small_cnn,
    wide_resnet,
)
from sskt.networks.architecture import Architecture, Options, Weights, errors_in, from_function
from sskt.networks.metadata import exported_metadata
from sskt.networks.preprocess import Preprocess, Preprocessing
from sskt.networks.tapped import PRECISIONS, Blueprint, Features, TappedNetwork, last_linear
from sskt.networks.torchvision_nets import named_weights, torchvision_architecture, torchvision_names
from sskt.networks.weights import SUFFIXES, load_into, load_state_dict
from sskt.settings import InputSettings, SourceSettings, TargetSettings

__all__ = [
    "ARCHITECTURES",
    "Architecture",
    "Features",
    "ImageFormat",
    "Preprocessing",
    "TappedNetwork",
    "assemble",
    "build_source",
    "build_target",
    "get_architecture",
]

ARCHITECTURES: dict[str, Architecture] = {
    "small_cnn": Architecture(from_function(small_cnn.small_cnn), taps=small_cnn.TAPS),
    "resnet20": Architecture(from_function(cifar_resnet.resnet20), taps=cifar_resnet.TAPS),
    "resnet32": Architecture(from_function(cifar_resnet.resnet32), taps=cifar_resnet.TAPS),
    "resnet44": Architecture(from_function(cifar_resnet.resnet44), taps=cifar_resnet.TAPS),
    "resnet56": Architecture(from_function(cifar_resnet.resnet56), taps=cifar_resnet.TAPS),
    "resnet110": Architecture(from_function(cifar_resnet.resnet110), taps=cifar_resnet.TAPS),
    "resnet8x4": Architecture(from_function(cifar_resnet.resnet8x4), taps=cifar_resnet.TAPS),
    "resnet32x4": Architecture(from_function(cifar_resnet.resnet32x4), taps=cifar_resnet.TAPS),
    "wrn_16_2": Architecture(from_function(wide_resnet.wrn_16_2), taps=wide_resnet.TAPS),
    "wrn_40_1": Architecture(from_function(wide_resnet.wrn_40_1), taps=wide_resnet.TAPS),
    "wrn_40_2": Architecture(from_function(wide_resnet.wrn_40_2), taps=wide_resnet.TAPS),
    "cifar_vgg8": Architecture(from_function(cifar_vgg.cifar_vgg8), taps=cifar_vgg.TAPS),
    "cifar_vgg13": Architecture(from_function(cifar_vgg.cifar_vgg13), taps=cifar_vgg.TAPS),
    "mobilenet_v2_half": Architecture(from_function(cifar_mobilenet.mobilenet_v2_half), taps=cifar_mobilenet.TAPS),
    "shufflenet_v1": Architecture(from_function(cifar_shufflenet.shufflenet_v1), taps=cifar_shufflenet.TAPS),
    "shufflenet_v2": Architecture(from_function(cifar_shufflenet.shufflenet_v2), taps=cifar_shufflenet.TAPS),
    "cifar_resnet50": Architecture(from_function(cifar_resnet50.cifar_resnet50), taps=cifar_resnet50.TAPS),
    "resnet3d_18": Architecture(
        from_function(resnet3d.resnet3d_18), taps=resnet3d.TAPS, named_weights=partial(named_weights, "r3d_18")
    ),
    lite.LITE0.name: lite.LITE0.architecture,
    lite.LITE2.name: lite.LITE2.architecture,
}


@dataclass(frozen=True)
class ImageFormat:
    """What a packed dataset holds: uint8 [channels, size, size]. mean, std: of its pixels scaled to 0..1."""

    channels: int
    size: int
    mean: tuple[float, ...]
    std: tuple[float, ...]


def get_architecture(name: str) -> Architecture:
    """Find an architecture: here, in torchvision, or where `package.module:function` says."""
    if name in ARCHITECTURES:
        return ARCHITECTURES[name]
    if ":" in name:
        return _imported(name)
    if name in torchvision_names():
        return torchvision_architecture(name)
    raise unknown_name("architecture", name, [*ARCHITECTURES, *torchvision_names(), "package.module:function"])


def _imported(name: str) -> Architecture:
    """Import f(*, classes, **options) -> nn.Module; it may say its taps in an attribute TAPS."""
    module_name, _, function_name = name.partition(":")
    try:
        function = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise InputError(
            f"architecture {name!r} cannot be imported ({error}); it has to be package.module:function"
        ) from error
    if not callable(function):
        raise InputError(f"architecture {name!r} is a {type(function).__name__}; it has to be a function")
    return Architecture(from_function(function), taps=tuple(getattr(function, "TAPS", ())))


def build_target(settings: TargetSettings, *, classes: int, image: ImageFormat) -> TappedNetwork:
    """Build a network to be trained on such images; `settings.weights` fill everything but its classifier.

    Parts that `settings` freeze are frozen; without weights they would be random for good, and that is refused.

    It sees images at their own size unless told otherwise, even where its pretrained weights were made for another.
    """
    with errors_in("target."):
        if settings.frozen and settings.weights is None:
            raise InputError(
                f"frozen is {list(settings.frozen)}, but random weights would never be trained; give target.weights"
            )
        architecture = get_architecture(settings.architecture)
        weights = None if settings.weights is None else _read_weights(architecture, settings.weights)
        base = Preprocessing(image.channels, None, image.mean, image.std)
        if architecture.preprocessing is not None:
            made_for = weights.preprocessing if weights and weights.preprocessing else architecture.preprocessing()
            base = replace(made_for, size=None, scale=None)
        preprocessing = _overridden(base, settings.input, any_channels=architecture.preprocessing is None)
        target = assemble(
            Blueprint(settings.architecture, settings.options), classes=classes, preprocessing=preprocessing
        )
        if weights is not None:
            load_into(target.network, weights.state, label=weights.label, keep=target.head)
        target.freeze(settings.frozen)
        target.computes_in = PRECISIONS[settings.precision]
        return target


def build_source(settings: SourceSettings, *, name: str) -> TappedNetwork:
    """Build the source called `name` with its pretrained weights, and draw no random numbers from anyone's stream."""
    with errors_in(f"sources.{name}."), torch.random.fork_rng(devices=[]):
        known = None if settings.architecture is None else get_architecture(settings.architecture)
        weights = _read_weights(known, settings.weights)
        blueprint = _blueprint(settings, weights)
        architecture = get_architecture(blueprint.architecture)
        preprocessing = _source_preprocessing(settings, architecture=architecture, weights=weights)
        classes = settings.classes or weights.classes
        # Where nobody said, the shape of the classifier in the file does, once it is known which one that is.
        source = assemble(blueprint, classes=classes or 1000, preprocessing=preprocessing)
        found = weights.state.get(f"{source.head}.weight")
        if classes is None and found is not None and found.ndim == 2:
            source.replace_head(found.shape[0])
        load_into(source.network, weights.state, label=weights.label)
        source.computes_in = PRECISIONS[settings.precision]
        return source


def assemble(blueprint: Blueprint, *, classes: int, preprocessing: Preprocessing) -> TappedNetwork:
    """Build a network with random weights."""
    architecture = get_architecture(blueprint.architecture)
    network = architecture.build(classes=classes, channels=preprocessing.channels, options=blueprint.options)
    head = architecture.head or last_linear(network)
    tapped = TappedNetwork(network, taps=architecture.taps, head=head, preprocess=Preprocess(preprocessing))
    tapped.blueprint = blueprint
    return tapped


def _read_weights(architecture: Architecture | None, weights: str) -> Weights:
    """Read a file, with what it says of itself, or load weights that the architecture knows by name."""
    if weights.lower().endswith(SUFFIXES) or "/" in weights:
        exported = exported_metadata(weights)
        label, state = f"weights {weights!r}", load_state_dict(weights)
        if exported is None:
            return Weights(label, state)
        return Weights(label, state, exported.classes, exported.preprocessing, exported.blueprint)
    if architecture is None:
        raise InputError(f"architecture is missing; say to which one the weights {weights!r} belong")
    if architecture.named_weights is None:
        raise InputError(f"weights {weights!r} are unknown; for this architecture give a file in {', '.join(SUFFIXES)}")
    return architecture.named_weights(weights)


def _blueprint(settings: SourceSettings, weights: Weights) -> Blueprint:
    """What a person says comes before what a file says."""
    said = weights.blueprint
    if settings.architecture is None:
        if said is None:
            raise InputError(f"architecture is missing; {weights.label} do not say what network they belong to")
        if ":" in said.architecture:
            raise InputError(
                f"architecture is missing; {weights.label} name {said.architecture!r}, "
                "and a file does not get to choose what code runs: name it yourself"
            )
        return Blueprint(said.architecture, {**said.options, **settings.options})
    same = said is not None and said.architecture == settings.architecture
    inherited: Options = said.options if said is not None and same else {}
    return Blueprint(settings.architecture, {**inherited, **settings.options})


def _source_preprocessing(settings: SourceSettings, *, architecture: Architecture, weights: Weights) -> Preprocessing:
    """What the weights were trained with, as the file or the name says, else as the architecture's usual ones were."""
    base = weights.preprocessing
    if base is None and architecture.preprocessing is not None:
        base = architecture.preprocessing()
    if base is None:
        mean, std = settings.input.mean, settings.input.std
        if mean is None or std is None:
            raise InputError(
                f"input.mean and input.std are missing; {weights.label} do not say how their pixels were normalised"
            )
        base = Preprocessing(len(mean), settings.input.size, mean, std)
    return _overridden(base, settings.input, any_channels=architecture.preprocessing is None)


def _overridden(base: Preprocessing, given: InputSettings, *, any_channels: bool) -> Preprocessing:
    """Put what a person says in place; where a network takes any number of channels, `mean` says how many."""
    mean = given.mean or base.mean
    channels = len(mean) if any_channels else base.channels
    # Size and scale are two ways to say one thing: either one given takes the place of both.
    sized = base if given.size is None and given.scale is None else given
    return Preprocessing(channels, sized.size, mean, given.std or base.std, sized.scale)
