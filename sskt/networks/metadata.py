"""What an exported file says of the network in it, in the header of its safetensors format."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sskt.errors import InputError
from sskt.networks.preprocess import Preprocessing
from sskt.networks.tapped import Blueprint

KEY = "sskt_network"
"""All of it is one entry: safetensors writes several in no fixed order, and equal networks should be equal files."""
FORMAT = 1


@dataclass(frozen=True)
class ExportedMetadata:
    """Everything that is needed to build the network again."""

    blueprint: Blueprint
    classes: int
    preprocessing: Preprocessing

    def to_header(self) -> dict[str, str]:
        """Write it as safetensors metadata."""
        values = asdict(self) | {"format": FORMAT, "preprocessing": self.preprocessing.plain()}
        return {KEY: json.dumps(values, sort_keys=True)}


def read_metadata(data: bytes) -> ExportedMetadata | None:
    """Read the header of a safetensors file; None where this project did not write it."""
    length = int.from_bytes(data[:8], "little")
    try:
        text = json.loads(data[8 : 8 + length]).get("__metadata__", {}).get(KEY)
    except (ValueError, AttributeError):
        return None
    if text is None:
        return None
    try:
        return _parsed(json.loads(text))
    except (KeyError, TypeError, AttributeError, json.JSONDecodeError) as error:
        raise InputError(
            f"weights have a damaged description of their network ({error!r}); export them again"
        ) from error


def exported_metadata(path: str) -> ExportedMetadata | None:
    """Read what the file at `path` says of its network; None where this project did not write it."""
    file = Path(path)
    if file.suffix.lower() != ".safetensors" or not file.is_file():
        return None
    with file.open("rb") as stream:
        prefix = stream.read(8)
        length = int.from_bytes(prefix, "little")
        # A length beyond the file means that it is no safetensors file, and must not decide how much is read.
        return read_metadata(prefix + stream.read(min(length, file.stat().st_size)))


def _parsed(values: dict[str, Any]) -> ExportedMetadata:
    if values.get("format") != FORMAT:
        raise InputError(f"weights are in format {values.get('format')!r}; this version reads format {FORMAT}")
    preprocessing = values["preprocessing"]
    return ExportedMetadata(
        blueprint=Blueprint(**values["blueprint"]),
        classes=values["classes"],
        preprocessing=Preprocessing(
            channels=preprocessing["channels"],
            size=preprocessing["size"],
            mean=tuple(preprocessing["mean"]),
            std=tuple(preprocessing["std"]),
            scale=preprocessing.get("scale"),
        ),
    )
