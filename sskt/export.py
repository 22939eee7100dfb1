"""A trained target as one safetensors file that says how to build the network again."""

import safetensors.torch

from sskt.errors import InputError
from sskt.networks import TappedNetwork, assemble
from sskt.networks.metadata import ExportedMetadata, exported_metadata, read_metadata
from sskt.networks.tapped import Blueprint
from sskt.networks.weights import load_into
from sskt.settings import TargetSettings

__all__ = ["export_bytes", "exported_metadata", "import_bytes"]


def export_bytes(network: TappedNetwork, *, settings: TargetSettings, classes: int) -> bytes:
    """Write the plain network, without anything that only training needs; equal networks give equal bytes."""
    metadata = ExportedMetadata(
        # A method may train another network than the target's settings say, such as a source with a new head.
        blueprint=network.blueprint or Blueprint(settings.architecture, settings.options),
        classes=classes,
        preprocessing=network.preprocess.values,
    )
    # Clones, for safetensors refuses tensors that share memory, as tied weights do.
    state = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in network.network.state_dict().items()}
    return safetensors.torch.save(state, metadata=metadata.to_header())


def import_bytes(data: bytes, *, architecture: str | None = None) -> TappedNetwork:
    """Build the network of `export_bytes` again, in eval mode.

    A network built by a function of your own needs its `package.module:function` as `architecture`, for a file does not
    get to choose what code runs.
    """
    metadata = read_metadata(data)
    if metadata is None:
        raise InputError("the bytes are not an exported network; they have to come from export_bytes")
    named = metadata.blueprint.architecture
    if ":" in named and named != architecture:
        raise InputError(f"architecture {named!r} of the exported network is code of your own; pass its name to run it")
    network = assemble(metadata.blueprint, classes=metadata.classes, preprocessing=metadata.preprocessing)
    load_into(network.network, safetensors.torch.load(data), label="weights of the exported network")
    return network.eval()
