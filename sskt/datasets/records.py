"""What every reader hands over: samples that are decoded only when asked for."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sskt.errors import InputError

Split = Literal["train", "validation", "test"]

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
"""A split's place here is its code in the packed data."""

UNLABELLED = -1

Label = int | tuple[int, ...]


@dataclass(frozen=True)
class Record:
    """One sample, not read yet."""

    key: str
    """Stable name within its data set: a relative path, or an index."""
    label: Label
    """Index into the class names, UNLABELLED where unlabelled; in a multi-label set the indices that hold, none too."""
    split: Split | None
    """None leaves it to the packer."""
    load: Callable[[], Image.Image | tuple[Image.Image, ...]]
    """An image, or the frames of a clip, which are packed one behind the other as more channels."""
    ignored: tuple[int, ...] = ()
    """Classes of a multi-label set that nobody can tell; one that holds as well, holds."""

    @property
    def holds(self) -> tuple[int, ...]:
        """The classes that hold, for either kind of label."""
        if isinstance(self.label, tuple):
            return self.label
        return () if self.label == UNLABELLED else (self.label,)


@dataclass(frozen=True)
class RawDataset:
    """A data set as it lies on disk."""

    name: str
    classes: tuple[str, ...]
    records: Sequence[Record]
    signature: str
    """Identity of the raw data that is cheap to compute: no image is decoded for it."""
    multi_label: bool = False
    """Whether several classes may hold for one image, or none."""


def label_table(records: Sequence[Record], *, classes: int) -> NDArray[np.int8]:
    """Labels of a multi-label set, int8 [N, classes]: 1 holds, 0 does not, -1 is unknown."""
    table = np.zeros((len(records), classes), np.int8)
    for row, record in zip(table, records, strict=True):
        row[list(record.ignored)] = UNLABELLED
        row[list(record.holds)] = 1
        if record.label == UNLABELLED:
            row[:] = UNLABELLED
    return table


def files_signature(root: Path, files: Iterable[Path]) -> str:
    """Hash names relative to `root`, sizes and modification times: enough to notice that files have changed."""
    digest = hashlib.sha256()
    for name, file in sorted((file.relative_to(root).as_posix(), file) for file in files):
        status = file.stat()
        line = f"{name}\0{status.st_size}\0{status.st_mtime_ns}\0"
        digest.update(line.encode(errors="surrogateescape"))  # a name that is not UTF-8 still has bytes
    return digest.hexdigest()


def existing_path(path: str, field: str = "dataset.path") -> Path:
    """Return the path a person named, or say that there is nothing."""
    found = Path(path).expanduser()
    if not found.exists():
        raise InputError(f"{field} is {path!r}; there is no such file or folder")
    return found
