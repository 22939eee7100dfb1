"""A source: a frozen pretrained network that is asked what it makes of images."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from sskt.compiling import lay_channels_last
from sskt.errors import InputError, unknown_name
from sskt.maps import MapShape, attention_map, coarse_features
from sskt.networks import Features, ImageFormat, TappedNetwork, build_source
from sskt.networks.weights import fingerprint
from sskt.settings import SourceSettings

OUTPUTS = ("logits", "embedding", "attention", "features")
MAPS = {"attention", "features"}
"""Those that come from the taps."""
USUAL_BATCH = {"cpu": 32, "cuda": 256}
"""Views that a source had best see at once, by the kind of its device; docs/cache.md has what others take."""


class Source:
    """A network that only answers: always in eval mode, never a gradient.

    With `batch_norm` "batch" its normalisation, and nothing else, goes by the statistics of each batch, as in the SSKT
    release. What it says of an image then depends on the images beside it, so no cache of it could be right; the
    network itself still never changes.
    """

    def __init__(self, name: str, network: TappedNetwork, *, batch_norm: Literal["eval", "batch"] = "eval") -> None:
        self.name = name
        self.network = network.eval().requires_grad_(requires_grad=False)
        self.batch_norm = batch_norm
        if batch_norm == "batch" and not _batch_norms(network):
            raise InputError(
                f"sources.{name}.batch_norm is 'batch', but {type(network.network).__name__} has no batch "
                "normalisation; it has to be 'eval'"
            )
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
        blueprint = self.network.blueprint
        return {
            "architecture": blueprint.architecture if blueprint else type(self.network.network).__name__,
            "options": dict(blueprint.options) if blueprint else {},
            "weights": fingerprint(self.network.network),
            "classes": self.classes,
            "preprocessing": self.network.preprocess.values.plain(),
            # Said of those alone that it makes different.
            **({"batch_norm": "batch"} if self.batch_norm == "batch" else {}),
            **({"precision": str(self.network.computes_in)} if self.network.computes_in else {}),
        }

    def outputs(self, images: Tensor, wanted: tuple[str, ...]) -> dict[str, Tensor]:
        """Run on uint8 images [B, c, H, W]; return float32 [B, W] each, W as `widths` says.

        logits and embedding are the network's; attention and features join what `sskt.maps` keeps of every tap.
        """
        for output in wanted:
            if output not in OUTPUTS:
                raise unknown_name("output", output, OUTPUTS)
        statistics = _batch_statistics(self.network) if self.batch_norm == "batch" else nullcontext()
        with torch.inference_mode(), statistics:
            features = self.network(images, with_taps=not MAPS.isdisjoint(wanted))
        self.passes += len(images)
        # Tensors made in inference mode may take no part in a graph; their clones may.
        return {output: _output(features, output).to(torch.float32).clone() for output in wanted}

    def map_shapes(self, image: ImageFormat) -> tuple[MapShape, ...]:
        """Return the shape of each tap for such images."""
        return self.network.tap_shapes(image.size, image.channels)

    def widths(self, maps: Sequence[MapShape]) -> dict[str, int]:
        """Values per view of each output, given the shapes of the taps."""
        return {
            "logits": self.classes,
            "embedding": self.embedding_dim,
            "attention": sum(shape.cells for shape in maps),
            "features": sum(shape.channels * shape.coarse.cells for shape in maps),
        }

    @contextmanager
    def exact(self) -> Iterator[None]:
        """Meanwhile it computes in the precision of its weights."""
        computes_in, self.network.computes_in = self.network.computes_in, None
        try:
            yield
        finally:
            self.network.computes_in = computes_in

    def place(self, device: torch.device | str) -> "Source":
        """Have it on a device, laid out as its convolutions are quickest there."""
        lay_channels_last(self.network.to(device))
        return self

    def train(self, mode: bool = True) -> "Source":  # noqa: FBT001, FBT002 (nn.Module's own signature)
        """Do nothing, whatever is asked: a source stays in eval mode."""
        return self


def _output(features: Features, output: str) -> Tensor:
    """One output [B, W] of what a network makes of a batch."""
    if output == "logits":
        return features.logits
    if output == "embedding":
        return features.embedding
    keep = attention_map if output == "attention" else coarse_features
    return torch.cat([keep(tap.float()) for tap in features.taps], dim=1)


@contextmanager
def _batch_statistics(network: nn.Module) -> Iterator[None]:
    """Have a network in eval mode normalise by the statistics of each batch, and keep none of them."""
    norms = _batch_norms(network)
    tracking = [norm.track_running_stats for norm in norms]
    for norm in norms:
        norm.training, norm.track_running_stats = True, False
    try:
        yield
    finally:
        for norm, tracks in zip(norms, tracking, strict=True):
            norm.training, norm.track_running_stats = False, tracks


def _batch_norms(network: nn.Module) -> list[_BatchNorm]:
    return [module for module in network.modules() if isinstance(module, _BatchNorm)]


def load_source(name: str, settings: SourceSettings) -> Source:
    """Build a source and load its weights."""
    return Source(name, build_source(settings, name=name), batch_norm=settings.batch_norm)
