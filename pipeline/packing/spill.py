"""Decoded images wait on disk, because their packed order is known only when all have been seen."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import IO

import numpy as np
from numpy.typing import NDArray

from sskt.datasets import DatasetSettings, RawDataset, Record
from sskt.datasets.pixels import Unreadable, decode
from sskt.errors import InputError

Progress = Callable[[int, int], None]

_BATCH = 256


class Spill:
    """The images in a file, in the order they were added."""

    def __init__(self, file: IO[bytes], settings: DatasetSettings) -> None:
        self.records: list[Record] = []
        self._file = file
        self._stored = settings.stored_channels
        self._side = 0
        self._colour = False

    def add(self, record: Record, pixels: NDArray[np.uint8]) -> None:
        """Append uint8 [C, H, W]; grey is kept as colour while colour may still come."""
        _, height, width = pixels.shape
        if height != width:
            raise _size_error(f"image {record.key!r} is {width}x{height}, not square", min(height, width))
        if self.records and width != self._side:
            first = f"image {self.records[0].key!r} is {self._side}x{self._side}"
            raise _size_error(f"{first} and {record.key!r} is {width}x{height}", min(self._side, width))
        self._side = width
        self._colour |= len(pixels) > 1
        self._file.write(np.broadcast_to(pixels, (self._stored, width, width)).tobytes())
        self.records.append(record)

    def images(self) -> NDArray[np.uint8]:
        """Return all of them as [N, C, H, W], with one channel if none has colour."""
        self._file.flush()
        shape = (len(self.records), self._stored, self._side, self._side)
        stored = np.memmap(self._file, np.uint8, mode="r", shape=shape)
        return stored if self._colour else stored[:, :1]


def decode_all(raw: RawDataset, settings: DatasetSettings, spill: Spill, progress: Progress | None) -> tuple[str, ...]:
    """Decode every record into `spill` and return the keys of the unreadable ones, sorted."""
    unreadable: list[Unreadable] = []
    with ThreadPoolExecutor() as pool:
        for start in range(0, len(raw.records), _BATCH):
            batch = raw.records[start : start + _BATCH]
            results = pool.map(lambda record: decode(record, settings.channels, settings.image_size), batch)
            for record, result in zip(batch, results, strict=True):
                if isinstance(result, Unreadable):
                    unreadable.append(result)
                else:
                    spill.add(record, result)
            if progress is not None:
                progress(start + len(batch), len(raw.records))
    _check_unreadable(unreadable, settings.max_unreadable)
    if not spill.records:
        raise InputError(f"dataset: {raw.name!r} holds no readable image")
    return tuple(sorted(sample.key for sample in unreadable))


def _size_error(what: str, size: int) -> InputError:
    return InputError(f"dataset.image_size is not set, but {what}; set it, for example to {size}")


def _check_unreadable(unreadable: Sequence[Unreadable], most: int) -> None:
    if len(unreadable) > most:
        shown = "; ".join(f"{sample.key!r} ({sample.reason})" for sample in unreadable[:3])
        more = "; ..." if len(unreadable) > 3 else ""
        raise InputError(
            f"dataset.max_unreadable is {most}, but {len(unreadable)} image(s) cannot be read: {shown}{more}; "
            f"repair or remove them, or set it to {len(unreadable)} to leave them out"
        )
