"""Any classifier of torchvision by its name, with random weights or with torchvision's own.

torchvision is imported by whoever asks for one: it pulls in most of torch's compiler, seconds for each process.
"""

import inspect
import pickle
import re
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from sskt.errors import InputError, unknown_name
from sskt.networks.architecture import Architecture, Options, Weights, check_options, option_types
from sskt.networks.preprocess import Preprocessing
from sskt.settings import Option

_RESIDUAL_STAGES = ("layer1", "layer2", "layer3", "layer4")
TAPS: dict[str, tuple[str, ...]] = {
    "resnet18": _RESIDUAL_STAGES,
    "resnet34": _RESIDUAL_STAGES,
    "resnet50": _RESIDUAL_STAGES,
    "resnet101": _RESIDUAL_STAGES,
    "resnet152": _RESIDUAL_STAGES,
    # The last block of each of the six bottleneck stages with expansion 6.
    "mobilenet_v2": ("features.3", "features.6", "features.10", "features.13", "features.16", "features.17"),
    "densenet121": ("features.transition1", "features.transition2", "features.transition3"),
}
"""Networks that are not here have no taps."""

# Their auxiliary classifiers would make the output a tuple; their pretrained weights want the input scaled once more,
# which is a matter of indifference to random ones.
_FIXED: dict[str, Option] = {"aux_logits": False, "transform_input": True, "init_weights": True}
FIXED_OPTIONS: dict[str, dict[str, Option]] = {"googlenet": _FIXED, "inception_v3": _FIXED}
AUXILIARY = ("aux1.", "aux2.", "AuxLogits.")
"""Prefixes of the weights that go with the auxiliary classifiers."""

# DenseNet's files are older than its code: denselayer1.norm.1.weight is denselayer1.norm1.weight now.
_OLD_DENSENET = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12]\.)")


def torchvision_names() -> list[str]:
    """All classifiers; squeezenets have no linear head and are left out."""
    from torchvision import models

    return [name for name in models.list_models(module=models) if not name.startswith("squeezenet")]


def torchvision_architecture(name: str) -> Architecture:
    """Describe one of `torchvision_names`."""
    from torchvision.models import get_model_weights

    def build(*, classes: int, channels: int, options: Options) -> nn.Module:
        return _build(name, classes=classes, options=options)

    return Architecture(
        build=build,
        taps=TAPS.get(name, ()),
        preprocessing=lambda: _preprocessing(get_model_weights(name).DEFAULT),
        named_weights=partial(named_weights, name),
    )


def _build(name: str, *, classes: int, options: Options) -> nn.Module:
    from torchvision.models import get_model_builder

    builder = get_model_builder(name)
    fixed = FIXED_OPTIONS.get(name, {})
    check_options(options, _accepted(builder, without=("num_classes", *fixed)))
    try:
        network = builder(weights=None, num_classes=classes, **fixed, **options)
    except (TypeError, ValueError) as error:
        raise InputError(f"options {dict(options)} do not fit {name}: {error}") from error
    assert isinstance(network, nn.Module)  # noqa: S101 (so say torchvision's own signatures)
    return network


def _accepted(builder: Callable[..., Any], *, without: tuple[str, ...]) -> dict[str, type]:
    """Builders pass what they do not know on to the class of the network, so its plain parameters are the options."""
    types = option_types(inspect.signature(inspect.signature(builder).return_annotation), without=without)
    return {name: kind for name, kind in types.items() if kind is not object}


def _preprocessing(weights: Any) -> Preprocessing:
    """What weights were evaluated with, their own crop as the size; resizing is bilinear whatever they used."""
    preset = weights.transforms()
    return Preprocessing(channels=3, size=preset.crop_size[0], mean=tuple(preset.mean), std=tuple(preset.std))


def named_weights(name: str, weights_name: str) -> Weights:
    """Load torchvision's weights from its local cache, or download them into it."""
    from torchvision.models import get_model_weights

    known = get_model_weights(name).__members__
    if weights_name not in known:
        raise unknown_name(f"weights of {name}", weights_name, known)
    weights = known[weights_name]
    try:
        state = weights.get_state_dict(progress=False, check_hash=True, map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:
        raise InputError(
            f"weights {weights_name!r} of {name} could not be had from {weights.url} ({error}); "
            "give the path of a local copy of that file instead"
        ) from error
    return Weights(
        label=f"weights {weights_name!r}",
        state=current_names(state),
        classes=len(weights.meta["categories"]),
        preprocessing=_preprocessing(weights),
    )


def current_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename what torchvision's files call by old names, and drop the auxiliary classifiers."""
    return {
        _OLD_DENSENET.sub(r"\1\2", name): tensor for name, tensor in state.items() if not name.startswith(AUXILIARY)
    }
