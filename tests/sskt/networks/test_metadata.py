"""What an exported file says of its network."""

import json
from dataclasses import replace

import pytest
import safetensors.torch
import torch

from sskt.errors import InputError
from sskt.networks.metadata import KEY, ExportedMetadata, exported_metadata, read_metadata
from sskt.networks.preprocess import Preprocessing
from sskt.networks.tapped import Blueprint

METADATA = ExportedMetadata(
    blueprint=Blueprint("small_cnn", {"width": 8}),
    classes=10,
    preprocessing=Preprocessing(channels=1, size=None, mean=(0.5,), std=(0.25,)),
)


def write(path, header):
    safetensors.torch.save_file({"a": torch.zeros(3)}, path, metadata=header)
    return str(path)


def test_what_is_written_is_read(tmp_path):
    path = write(tmp_path / "network.safetensors", METADATA.to_header())
    assert exported_metadata(path) == METADATA
    assert read_metadata((tmp_path / "network.safetensors").read_bytes()) == METADATA


def test_a_scale_travels_and_files_from_before_there_was_one_say_none(tmp_path):
    assert "scale" not in METADATA.to_header()[KEY]
    scaled = replace(METADATA, preprocessing=replace(METADATA.preprocessing, scale=7 / 3))
    assert exported_metadata(write(tmp_path / "scaled.safetensors", scaled.to_header())) == scaled


def test_files_of_others_say_nothing(tmp_path):
    assert exported_metadata(write(tmp_path / "plain.safetensors", None)) is None
    assert exported_metadata(write(tmp_path / "other.safetensors", {"format": "pt"})) is None
    torch.save({"a": torch.zeros(1)}, tmp_path / "weights.pt")
    assert exported_metadata(str(tmp_path / "weights.pt")) is None
    assert exported_metadata(str(tmp_path / "missing.safetensors")) is None


@pytest.mark.parametrize(
    "content", [b"", b"short", b"\xff" * 8 + b"{}", b"\x02" + b"\0" * 7 + b"[]", b"\x01" + b"\0" * 8]
)
def test_what_is_no_safetensors_file_says_nothing(tmp_path, content):
    (tmp_path / "odd.safetensors").write_bytes(content)
    assert exported_metadata(str(tmp_path / "odd.safetensors")) is None


def test_another_format_is_refused(tmp_path):
    header = {KEY: json.dumps(json.loads(METADATA.to_header()[KEY]) | {"format": 2})}
    with pytest.raises(InputError, match="weights are in format 2; this version reads format 1"):
        exported_metadata(write(tmp_path / "new.safetensors", header))


@pytest.mark.parametrize("text", ["{", '{"format": 1}', '{"format": 1, "preprocessing": 3}', "[]"])
def test_a_damaged_description_is_named(tmp_path, text):
    with pytest.raises(InputError, match="damaged description"):
        exported_metadata(write(tmp_path / "odd.safetensors", {KEY: text}))
