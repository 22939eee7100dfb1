"""Data sets of torchvision, from files that lie on this machine already; nothing is downloaded."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from sskt.datasets.records import UNLABELLED, Label, RawDataset, Record, Split, files_signature
from sskt.datasets.settings import DatasetSettings
from sskt.datasets.voc import VOC_CLASSES, read_annotation
from sskt.errors import InputError, unknown_name

Arguments = dict[str, str | bool]


@dataclass(frozen=True)
class TorchvisionSet:
    """How one class of torchvision.datasets is asked for its splits."""

    files: str
    """Pattern of its files below the root; they identify the data."""
    splits: dict[Split | None, Arguments]
    """None is a set without splits, which the packer makes."""
    unlabelled: Arguments | None = None
    objects: tuple[str, ...] = ()
    """Classes of the objects that its annotations name; the set is then multi-label."""
    of: str = ""
    """The class of torchvision.datasets, where it has another name."""
    by_hand: str = ""
    """What a person has to fetch, and from where, because torchvision cannot."""


_FLAG: dict[Split | None, Arguments] = {"train": {"train": True}, "test": {"train": False}}
_TWO: dict[Split | None, Arguments] = {"train": {"split": "train"}, "test": {"split": "test"}}
_THREE: dict[Split | None, Arguments] = {**_TWO, "validation": {"split": "val"}}
_VALID: dict[Split | None, Arguments] = {**_TWO, "validation": {"split": "valid"}}
_TRAINVAL: dict[Split | None, Arguments] = {"train": {"split": "trainval"}, "test": {"split": "test"}}
# What this set calls `val` is what is published as its test score.
_VAL_IS_TEST: dict[Split | None, Arguments] = {"train": {"split": "train"}, "test": {"split": "val"}}
# The one year whose test annotations are public.
_VOC2007: dict[Split | None, Arguments] = {
    "train": {"year": "2007", "image_set": "trainval"},
    "test": {"year": "2007", "image_set": "test"},
}
_PLACES365: dict[Split | None, Arguments] = {
    "train": {"split": "train-standard", "small": True},
    "test": {"split": "val", "small": True},
}
_ILSVRC2012 = (
    "ILSVRC2012_devkit_t12.tar.gz, ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar "
    "from https://image-net.org/download-images (which asks for an account)"
)
_WHOLE: dict[Split | None, Arguments] = {None: {}}

SETS: dict[str, TorchvisionSet] = {
    "CIFAR10": TorchvisionSet("cifar-10-batches-py/*", _FLAG),
    "CIFAR100": TorchvisionSet("cifar-100-python/*", _FLAG),
    "Caltech101": TorchvisionSet("caltech101/101_ObjectCategories/*/*", _WHOLE),
    "Caltech256": TorchvisionSet("caltech256/256_ObjectCategories/*/*", _WHOLE),
    "Country211": TorchvisionSet("country211/*/*/*", _VALID),
    "DTD": TorchvisionSet("dtd/**/*", _THREE),
    "EuroSAT": TorchvisionSet("eurosat/2750/*/*", _WHOLE),
    "FGVCAircraft": TorchvisionSet("fgvc-aircraft-2013b/**/*", _THREE),
    "FashionMNIST": TorchvisionSet("FashionMNIST/raw/*", _FLAG),
    "Flowers102": TorchvisionSet("flowers-102/**/*", _THREE),
    "Food101": TorchvisionSet("food-101/**/*", _TWO),
    "GTSRB": TorchvisionSet("gtsrb/**/*", _TWO),
    "ImageNet": TorchvisionSet("*/*/*.JPEG", _VAL_IS_TEST, by_hand=_ILSVRC2012),
    "Imagenette": TorchvisionSet("imagenette2/*/*/*", _VAL_IS_TEST),
    "KMNIST": TorchvisionSet("KMNIST/raw/*", _FLAG),
    "MNIST": TorchvisionSet("MNIST/raw/*", _FLAG),
    "OxfordIIITPet": TorchvisionSet("oxford-iiit-pet/**/*", _TRAINVAL),
    # 1.8 million images: the lists of them identify the data.
    "Places365": TorchvisionSet("*places365*.txt", _PLACES365),
    "RenderedSST2": TorchvisionSet("rendered-sst2/*/*/*", _THREE),
    "SEMEION": TorchvisionSet("semeion.data", _WHOLE),
    "STL10": TorchvisionSet("stl10_binary/*", _TWO, {"split": "unlabeled"}),
    # Its 100,000 unlabelled images would be labelled by every source too, and many a table is made without them.
    "STL10-labelled": TorchvisionSet("stl10_binary/*", _TWO, of="STL10"),
    "SUN397": TorchvisionSet("SUN397/**/*", _WHOLE),
    "SVHN": TorchvisionSet("*_32x32.mat", _TWO),
    "USPS": TorchvisionSet("usps*.bz2", _FLAG),
    "VOCDetection": TorchvisionSet("VOCdevkit/VOC2007/**/*", _VOC2007, objects=VOC_CLASSES),
}
"""The sets for classification that torchvision can fetch, and the objects of PASCAL VOC 2007; another is one line."""


def read_torchvision(settings: DatasetSettings) -> RawDataset:
    """Read one of `SETS` from the root folder `settings.path`."""
    name, root = settings.name or "", Path(settings.path or "").expanduser()
    if name not in SETS:
        raise unknown_name("dataset.name", name, SETS)
    entry = SETS[name]
    opened = {split: _open(name, root, arguments) for split, arguments in entry.splits.items()}
    classes = entry.objects or _classes(opened)
    records = [record for split, dataset in opened.items() for record in _records(dataset, split, root)]
    if entry.unlabelled is not None:
        records += _unlabelled(_open(name, root, entry.unlabelled))
    files = files_signature(root, (file for file in root.glob(entry.files) if file.is_file()))
    signature = f"torchvision {version('torchvision')} {name} {files}"
    return RawDataset(entry.of or name, classes, records, signature, multi_label=bool(entry.objects))


def _open(name: str, root: Path, arguments: Arguments) -> Any:
    from torchvision import datasets  # heavy, and only this reader needs it

    if not root.is_dir():  # some classes would make the folder
        raise _missing(name, root, arguments, "no such folder")
    download = {} if SETS[name].by_hand else {"download": False}
    try:
        opened = getattr(datasets, SETS[name].of or name)(str(root), **download, **arguments)
    except (RuntimeError, OSError) as error:
        raise _missing(name, root, arguments, str(error)) from error
    for file in (_files(opened) or [])[:1]:  # some classes look at their lists only
        if not file.is_file():
            raise _missing(name, root, arguments, f"no file {file}")
    return opened


def _missing(name: str, root: Path, arguments: Arguments, reason: str) -> InputError:
    kind, by_hand = SETS[name].of or name, SETS[name].by_hand
    shown = "".join(f", {key}={value!r}" for key, value in arguments.items())
    command = f"from torchvision.datasets import {kind}; {kind}({str(root)!r}{shown}, download=True)"
    short = " ".join(reason.split(". You ")[0].split())
    how = f"put there {by_hand}" if by_hand else f'put it there once with: python -c "{command}"'
    return InputError(
        f"dataset.path is {str(root)!r}, where torchvision finds no {kind} ({short}); "
        f"nothing is downloaded by itself, {how}"
    )


def _classes(opened: dict[Split | None, Any]) -> tuple[str, ...]:
    """Names that torchvision knows, or the numbers of the labels."""
    named = [_names(dataset) for dataset in opened.values()]
    if any(names != named[0] for names in named):
        raise InputError("dataset.path: the splits have different classes; the files are incomplete")
    if named[0]:
        return named[0]
    labels = [label for dataset in opened.values() for label in _labels(dataset)]
    return tuple(str(label) for label in range(1 + max(labels, default=-1)))


def _names(dataset: Any) -> tuple[str, ...]:
    said = getattr(dataset, "classes", None) or getattr(dataset, "categories", None) or ()
    # Imagenette has several names for a class; the first is the usual one, but two of ImageNet are called `crane`.
    names = tuple(name if isinstance(name, str) else str(name[0]) for name in said)
    return names if len(set(names)) == len(names) else tuple(getattr(dataset, "wnids", names))


def _labels(dataset: Any) -> list[int]:
    for attribute in ("targets", "labels", "_labels", "y"):
        if hasattr(dataset, attribute):
            return [int(label) for label in np.asarray(getattr(dataset, attribute))]
    return [int(label) for _, label in dataset._samples]


def _files(dataset: Any) -> list[Path] | None:
    """Files of the samples, where each has one: a better name than an index, which may depend on the machine."""
    for attribute in ("_image_files", "_images", "images"):
        if hasattr(dataset, attribute):
            return [Path(file) for file in getattr(dataset, attribute)]
    for attribute in ("samples", "_samples", "imgs"):
        if hasattr(dataset, attribute):
            return [Path(file) for file, _ in getattr(dataset, attribute)]
    return None


def _records(dataset: Any, split: Split | None, root: Path) -> Iterator[Record]:
    files, prefix = _files(dataset), f"{split}/" if split else ""
    for index, (label, ignored) in enumerate(_known(dataset)):
        key = f"{prefix}{index}" if files is None else files[index].relative_to(root).as_posix()
        yield Record(key, label, split, partial(_load, dataset, index), ignored)


def _known(dataset: Any) -> Iterator[tuple[Label, tuple[int, ...]]]:
    """The label of every sample, and the classes that nobody can tell."""
    if hasattr(dataset, "annotations"):
        yield from (read_annotation(Path(file)) for file in dataset.annotations)
    else:
        yield from ((label, ()) for label in _labels(dataset))


def _unlabelled(dataset: Any) -> Iterator[Record]:
    for index in range(len(dataset)):
        yield Record(f"unlabelled/{index}", UNLABELLED, "train", partial(_load, dataset, index))


def _load(dataset: Any, index: int) -> Image.Image:
    image: Image.Image = dataset[index][0]
    return image
