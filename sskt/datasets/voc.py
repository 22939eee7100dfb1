"""The annotations of PASCAL VOC: one XML file per image, which names the objects in it."""

from pathlib import Path
from xml.etree import ElementTree

from sskt.errors import InputError

VOC_CLASSES = (
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow",
    "diningtable", "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip


def read_annotation(file: Path) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the classes that hold, and those of which there are difficult objects only: VOC scores neither way."""
    objects = [(_class(found, file), found.findtext("difficult", "0").strip() == "1") for found in _objects(file)]
    clear = {label for label, difficult in objects if not difficult}
    return tuple(sorted(clear)), tuple(sorted({label for label, _ in objects} - clear))


def _objects(file: Path) -> list[ElementTree.Element]:
    try:
        return ElementTree.parse(file).getroot().findall("object")  # noqa: S314 (a data set a person chose to trust)
    except (ElementTree.ParseError, OSError) as error:
        raise InputError(f"dataset.path: {str(file)!r} is not a readable annotation: {error}") from error


def _class(found: ElementTree.Element, file: Path) -> int:
    name = found.findtext("name", "").strip()
    if name not in VOC_CLASSES:
        raise InputError(f"dataset.path: {str(file)!r} names an object {name!r}, which is none of the 20 of PASCAL VOC")
    return VOC_CLASSES.index(name)
