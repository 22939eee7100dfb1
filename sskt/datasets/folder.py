"""Images in folders: `path/class/*.png`, or `path/{train,validation,test}/class/*.png`, and `path/unlabelled/*.png`."""

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import BinaryIO

from PIL import Image

from sskt.datasets.records import UNLABELLED, RawDataset, Record, Split, existing_path, files_signature
from sskt.datasets.settings import DatasetSettings
from sskt.errors import InputError

SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".avif"}
)
_FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF", "PPM", "AVIF")
"""Pillow goes by the content of a file: in others, such as EPS, it would have programs run."""
_SPLIT_FOLDERS: dict[str, Split] = {
    "train": "train",
    "val": "validation",
    "valid": "validation",
    "validation": "validation",
    "test": "test",
}
_UNLABELLED_FOLDERS = ("unlabelled", "unlabeled")
_LAYOUTS = "images lie in path/class/, or in path/{train,validation,test}/class/"


def read_folder(settings: DatasetSettings) -> RawDataset:
    """Read a folder of images; a class is named like its folder."""
    root = existing_path(settings.path or "")
    if not root.is_dir():
        raise InputError(f"dataset.path is {settings.path!r}, a file; kind 'folder' needs a folder")
    splits = _splits(root)
    pool = splits.get("train", root)
    classes = tuple(folder.name for folder in _class_folders(pool))
    if not classes:
        raise InputError(f"dataset.path: {str(pool)!r} holds no class folder; {_LAYOUTS}")
    records = list(_labelled(root, splits, classes))
    records += [record for folder in {root, pool} for record in _unlabelled(root, folder)]
    records.sort(key=lambda record: record.key)
    signature = files_signature(root, (root / record.key for record in records))
    return RawDataset(root.resolve().name, classes, records, signature)


def _splits(root: Path) -> dict[Split, Path]:
    """Folders of the data's own splits; empty where every folder is a class, which `train` may be as well."""
    train = root / "train"
    if not train.is_dir() or not any(_folders(train)):
        return {}
    found: dict[Split, Path] = {}
    for folder in _folders(root):
        split = _SPLIT_FOLDERS.get(folder.name)
        if split is None:
            continue
        if split in found:
            raise InputError(f"dataset.path: {found[split].name!r} and {folder.name!r} are both the {split} split")
        found[split] = folder
    return found


def _labelled(root: Path, splits: dict[Split, Path], classes: tuple[str, ...]) -> Iterator[Record]:
    for folder in _class_folders(splits.get("train", root)):
        yield from _images(root, folder, classes.index(folder.name), "train" if splits else None)
    for split, parent in splits.items():
        if split == "train":
            continue
        for folder in _folders(parent):
            if folder.name not in classes:
                raise InputError(f"dataset.path: class {folder.name!r} occurs only in {parent.name!r}, not in 'train'")
            yield from _images(root, folder, classes.index(folder.name), split)


def _unlabelled(root: Path, parent: Path) -> Iterator[Record]:
    for folder in _folders(parent):
        if folder.name in _UNLABELLED_FOLDERS:
            yield from _images(root, folder, UNLABELLED, "train")


def _class_folders(parent: Path) -> list[Path]:
    return [folder for folder in _folders(parent) if folder.name not in _UNLABELLED_FOLDERS]


def _folders(parent: Path) -> list[Path]:
    return sorted(entry for entry in parent.iterdir() if not entry.name.startswith(".") and entry.is_dir())


def _images(root: Path, folder: Path, label: int, split: Split | None) -> Iterator[Record]:
    files = [file for file in folder.iterdir() if file.suffix.lower() in SUFFIXES and not file.name.startswith(".")]
    if not files:
        raise InputError(f"dataset.path: {str(folder)!r} holds no image; {_LAYOUTS}")
    for file in files:
        yield Record(_key(root, file), label, split, partial(load_image, file))


def _key(root: Path, file: Path) -> str:
    key = file.relative_to(root).as_posix()
    try:
        key.encode()
    except UnicodeEncodeError as error:
        raise InputError(f"dataset.path: the file name {key!a} is not UTF-8; rename it") from error
    return key


def load_image(file: Path | BinaryIO) -> Image.Image:
    """Read an image whole; Pillow refuses one of more than 179 million pixels."""
    with Image.open(file, formats=_FORMATS) as image:
        image.load()
    return image
