"""Readers of image data sets; a new kind is one function and one line here."""

from collections.abc import Callable

from sskt.datasets.builtin import read_digit_pairs, read_digits, read_mnist5k
from sskt.datasets.clips import read_clips
from sskt.datasets.folder import read_folder
from sskt.datasets.records import SPLITS, UNLABELLED, RawDataset, Record, Split, existing_path, files_signature
from sskt.datasets.settings import DatasetSettings
from sskt.datasets.torchvision_sets import read_torchvision

__all__ = [
    "READERS",
    "SPLITS",
    "UNLABELLED",
    "DatasetSettings",
    "RawDataset",
    "Record",
    "Split",
    "existing_path",
    "files_signature",
    "read_clips",
    "read_digit_pairs",
    "read_digits",
    "read_folder",
    "read_mnist5k",
    "read_torchvision",
]

READERS: dict[str, Callable[[DatasetSettings], RawDataset]] = {
    "digits": read_digits,
    "digit_pairs": read_digit_pairs,
    "mnist5k": read_mnist5k,
    "torchvision": read_torchvision,
    "folder": read_folder,
    "clips": read_clips,
}
"""Kinds that plain PyTorch can read; `pipeline` adds Parquet."""
