"""Weights in files: read without running any code in them, put into networks, and told apart."""

import hashlib
import json
import pickle
import re
import struct
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from sskt.errors import InputError

SUFFIXES = (".safetensors", ".pt", ".pth", ".tar", ".bin")
_DAMAGED = (RuntimeError, EOFError, ValueError, TypeError, AttributeError, LookupError, struct.error)
"""What torch raises for files that are no torch files, depending on where it notices."""
_OPTIONAL = "num_batches_tracked"
"""A counter that files from before it lack, and that no output depends on."""


def load_state_dict(path: str) -> dict[str, Tensor]:
    """Read tensors by name, out of a training checkpoint too, and without the prefix that DataParallel puts there."""
    file = Path(path)
    if file.suffix.lower() not in SUFFIXES:
        raise InputError(f"weights {path!r} end in {file.suffix!r}; they have to be a file in {', '.join(SUFFIXES)}")
    if not file.is_file():
        raise InputError(f"weights {path!r} are not there; give the path of a file in {', '.join(SUFFIXES)}")
    state = _read_safetensors(path) if file.suffix.lower() == ".safetensors" else _unwrapped(_read_pickle(path))
    if not _is_state_dict(state):
        raise InputError(
            f"weights {path!r} hold something else; they have to be a state dict, tensors by name, "
            "alone or under 'state_dict' or 'model'"
        )
    return {name.removeprefix("module."): tensor.detach() for name, tensor in state.items()}


def _read_safetensors(path: str) -> dict[str, Tensor]:
    try:
        return safetensors.torch.load_file(path)
    except safetensors.SafetensorError as error:
        raise InputError(f"weights {path!r} are not a safetensors file ({error}); get the file again") from error


def _read_pickle(path: str) -> Any:
    """Read tensors and plain values, and nothing else."""
    try:
        return _load_text_of_any_age(path)
    except pickle.UnpicklingError as error:
        # Torch's own text advises to run the code in the file; all that helps is the name of what is no tensor.
        other = re.search(r"GLOBAL (\S+)", str(error))
        if other is not None:
            raise InputError(
                f"weights {path!r} hold {other[1]} beside tensors, and reading that would run code from the file; "
                "save the state dict alone: torch.save(network.state_dict(), path)"
            ) from error
        raise _not_written_by_torch(path) from error
    except _DAMAGED as error:
        raise _not_written_by_torch(path) from error


def _not_written_by_torch(path: str) -> InputError:
    return InputError(f"weights {path!r} are not a file that torch.save wrote, or a damaged one; get the file again")


def _load_text_of_any_age(path: str) -> Any:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except UnicodeDecodeError:
        # Strings that Python 2 wrote, as in the files of Places365; the warning says that this has no effect, it has.
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="pickle_load_args only works")
            return torch.load(path, map_location="cpu", weights_only=True, encoding="latin1")


def _unwrapped(content: Any) -> Any:
    """Take the state dict out of what training scripts save around it."""
    for key in ("state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            return content[key]
    return content


def _is_state_dict(content: Any) -> bool:
    return (
        isinstance(content, Mapping)
        and len(content) > 0
        and all(isinstance(name, str) and isinstance(value, Tensor) for name, value in content.items())
    )


def load_into(network: nn.Module, state: Mapping[str, Tensor], *, label: str, keep: str | None = None) -> None:
    """Put weights into a network, all of them and none too many; the part named `keep` stays as it is."""
    own = {name: tensor for name, tensor in network.state_dict().items() if not _is_under(name, keep)}
    given = {name: tensor for name, tensor in state.items() if not _is_under(name, keep)}
    missing = [name for name in own if name not in given and not name.endswith(_OPTIONAL)]
    unexpected = [name for name in given if name not in own]
    if missing or unexpected:
        parts = [f"lack {_first(missing)}"] * bool(missing) + [f"hold unknown {_first(unexpected)}"] * bool(unexpected)
        raise InputError(f"{label} do not fit the architecture: they {' and '.join(parts)}")
    for name, tensor in given.items():
        if tensor.shape != own[name].shape:
            raise InputError(
                f"{label} do not fit: {name!r} has the shape {list(tensor.shape)} in them "
                f"and {list(own[name].shape)} in the network; check architecture, classes and options"
            )
    # Names and shapes fit those of today, so no module has to translate from a version of its own past.
    state_dict = network.state_dict()
    state_dict.update(given)
    network.load_state_dict(state_dict)


def _is_under(name: str, part: str | None) -> bool:
    return part is not None and name.startswith(f"{part}.")


def _first(names: list[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(map(repr, names[:3])) + more


def fingerprint(network: nn.Module) -> str:
    """Hash all weights and buffers by name: a renamed file is the same network, one changed weight another."""
    digest = hashlib.sha256()
    for name, tensor in sorted(network.state_dict().items()):
        values = tensor.detach().cpu().contiguous()
        digest.update(json.dumps([name, str(values.dtype), list(values.shape)]).encode())
        digest.update(values.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
