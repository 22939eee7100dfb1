"""A trained target as a program that runs without this project: torch.export and ONNX."""

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.export import Dim, ExportedProgram

from sskt.errors import InputError
from sskt.networks import TappedNetwork

TOLERANCE = 1e-4
"""What the logits of a program may differ by, as a part of their largest value where that is above 1."""

INPUT, OUTPUT = "images", "logits"


class Deployed(nn.Module):
    """Preprocessing and network in one: uint8 images [B, c, S, S] to logits [B, classes]."""

    def __init__(self, network: TappedNetwork) -> None:
        super().__init__()
        self.preprocess = network.preprocess
        self.network = network.network

    def forward(self, images: Tensor) -> Tensor:
        """Return logits [B, classes]."""
        logits: Tensor = self.network(self.preprocess(images))
        return logits


def to_program(network: TappedNetwork, *, channels: int, size: int) -> ExportedProgram:
    """Trace the network on images [B, channels, size, size] of any B."""
    deployed = Deployed(network).eval()
    # Two images: of a single one the tracer would conclude that there is never another number.
    example = torch.zeros(2, channels, size, size, dtype=torch.uint8)
    with _quiet():
        return torch.export.export(deployed, (example,), dynamic_shapes={INPUT: {0: Dim("batch")}}, strict=False)


def program_bytes(program: ExportedProgram) -> bytes:
    """What `torch.export.load` reads."""
    buffer = io.BytesIO()
    torch.export.save(program, buffer)
    return buffer.getvalue()


def onnx_bytes(program: ExportedProgram) -> bytes:
    """The same as an ONNX model."""
    try:
        with _quiet():
            model = torch.onnx.export(program, dynamo=True, verbose=False, input_names=[INPUT], output_names=[OUTPUT])
    except ImportError as error:
        raise InputError(f"ONNX needs the packages onnx and onnxscript ({error}); install sskt[onnx]") from error
    assert model is not None  # noqa: S101 (only without dynamo)
    serialised: bytes = model.model_proto.SerializeToString()
    return serialised


def sample_images(count: int, *, channels: int, size: int) -> Tensor:
    """Images that a program is tried on, uint8 [count, channels, size, size]."""
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, (count, channels, size, size), dtype=torch.uint8, generator=generator)


def largest_difference(program: Tensor, network: Tensor) -> float:
    """How far two sets of logits are apart, as a part of the largest one where that is above 1."""
    return ((program - network).abs().max() / network.abs().max().clamp(min=1)).item()


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporter reports its own doings, to the root of all logging too."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(disabled)
