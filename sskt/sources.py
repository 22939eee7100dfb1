"""A source: a frozen pretrained network that is asked what it makes of images."""

from dataclasses import asdict

import torch
from torch import Tensor

from sskt.errors import unknown_name
from sskt.networks import TappedNetwork, build_source
from sskt.networks.weights import fingerprint
from sskt.settings import SourceSettings

OUTPUTS = ("logits", "embedding")


class Source:
    """A network that only answers: always in eval mode, never a gradient.

    Batch normalisation by the statistics of the batch, which the SSKT release ran its sources with, is not offered:
    what a source said of an image would depend on the images beside it, so no cache of it could be right.
    """

    def __init__(self, name: str, network: TappedNetwork) -> None:
        self.name = name
        self.network = network.eval().requires_grad_(requires_grad=False)
        self.passes = 0
        """Images that went through, the measure of what a cache saves."""

    @property
    def classes(self) -> int:
        """Size of its label space."""
        return self.network.classes

    @property
    def embedding_dim(self) -> int:
        """Width of its embedding."""
        return self.network.embedding_dim

    def identity(self) -> dict[str, object]:
        """Everything that its outputs depend on, in plain values; where its weights came from is no part of it."""
        values = asdict(self.network.preprocess.values)
        blueprint = self.network.blueprint
        return {
            "architecture": blueprint.architecture if blueprint else type(self.network.network).__name__,
            "options": dict(blueprint.options) if blueprint else {},
            "weights": fingerprint(self.network.network),
            "classes": self.classes,
            "preprocessing": values | {"mean": list(values["mean"]), "std": list(values["std"])},
        }

    def outputs(self, images: Tensor, wanted: tuple[str, ...]) -> dict[str, Tensor]:
        """Run on uint8 images [B, c, H, W]; return float32 logits [B, classes], embedding [B, embedding_dim]."""
        for output in wanted:
            if output not in OUTPUTS:
                raise unknown_name("output", output, OUTPUTS)
        with torch.inference_mode():
            features = self.network(images)
        self.passes += len(images)
        # Tensors made in inference mode may take no part in a graph; their clones may.
        return {output: getattr(features, output).to(torch.float32).clone() for output in wanted}

    def train(self, mode: bool = True) -> "Source":  # noqa: FBT001, FBT002 (nn.Module's own signature)
        """Do nothing, whatever is asked: a source stays in eval mode."""
        return self


def load_source(name: str, settings: SourceSettings) -> Source:
    """Build a source and load its weights."""
    return Source(name, build_source(settings, name=name))
