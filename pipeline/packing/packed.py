"""A packed data set: what its manifest says, and its arrays."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from pydantic import ConfigDict, TypeAdapter, ValidationError, with_config

from cluster.storage import Storage
from pipeline.canonical import canonical
from sskt.datasets import SPLITS, Split
from sskt.errors import DamagedError
from sskt.networks import ImageFormat

VERSION: Literal[3] = 3

IMAGE_FIELD = "image"


@dataclass(frozen=True, kw_only=True)
class PackedPart:
    """One Parquet file of a packed data set."""

    name: str
    rows: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class PoolBlock:
    """Training images that were packed at once: ids from the end of the block before to `stop`."""

    stop: int
    fingerprint: str
    """Identity of the images 0..stop-1, their shape and pixels in this order; sources see nothing else of them."""


@with_config(ConfigDict(extra="forbid"))
@dataclass(frozen=True, kw_only=True)
class PackedDataset:
    """Everything a manifest says. Rows: the training images (the pool), then validation, then test."""

    version: Literal[3] = VERSION
    pack_id: str
    name: str
    classes: tuple[str, ...]
    multi_label: bool
    """Whether several classes may hold for one image, or none."""
    rows: int
    pool: int
    """Training images, with and without labels: ids 0..pool-1."""
    unlabelled: int
    """Training images of which no label is known."""
    labelled: tuple[int, ...]
    """Training images that a class holds for, by class."""
    validation: int
    test: int
    channels: int
    size: int
    mean: tuple[float, ...]
    """Per channel over the pool, for pixels scaled to 0..1."""
    std: tuple[float, ...]
    fingerprint: str
    """Identity of the content: the same wherever, and from whatever files, the same images were packed."""
    blocks: tuple[PoolBlock, ...]
    """The pool as it grew; the last one ends at `pool`."""
    not_grown: str | None
    """Why an earlier packed data set of the same settings was not extended; None if one was, or if there is none."""
    parts: tuple[PackedPart, ...]
    unreadable: tuple[str, ...]
    """Keys of the images left out."""
    settings: Mapping[str, Any]
    signature: str
    """Identity of the raw data this was packed from."""

    @property
    def prefix(self) -> str:
        """Key below which it is stored."""
        return prefix(self.pack_id)

    @property
    def part_edges(self) -> tuple[int, ...]:
        """The ids at which its parts begin, and where the last one ends."""
        return (0, *accumulate(part.rows for part in self.parts))

    @property
    def edges(self) -> tuple[int, ...]:
        """Where the blocks of the pool begin, and where the last one ends."""
        return (0, *(block.stop for block in self.blocks))


@dataclass(frozen=True)
class PackedArrays:
    """A packed data set in memory; the row is the sample id."""

    images: NDArray[np.uint8]
    """[N, C, H, W]"""
    labels: NDArray[np.int64] | NDArray[np.int8]
    """int64 [N], -1 is unlabelled; of a multi-label set int8 [N, classes]: 1 holds, 0 does not, -1 is unknown."""
    splits: NDArray[np.int8]
    """[N]; 0 train, 1 validation, 2 test."""


@dataclass(frozen=True)
class PackedSample:
    """One row of a part, as far as growing asks for it."""

    key: str
    split: Split
    own_split: Split | None
    """What the raw data said."""
    pixels: NDArray[np.uint8]
    """[C, H, W]"""


_MANIFEST = TypeAdapter(PackedDataset)


def part_schema(*, pixels: int, label_classes: int | None) -> pa.Schema:
    """Columns of a part; `label_classes` is None where an image has one label, `pixels` is C*H*W.

    `own_split` is the split that the raw data names, null where it leaves that to packing.
    """
    label = pa.int32() if label_classes is None else pa.binary(label_classes)
    columns = {"id": pa.int64(), "key": pa.string(), "label": label, "split": pa.int8(), "own_split": pa.int8()}
    return pa.schema({**columns, IMAGE_FIELD: pa.binary(pixels)})


def prefix(pack_id: str) -> str:
    """Key below which the data set of that id is stored."""
    return f"datasets/{pack_id}"


def save_manifest(packed: PackedDataset, storage: Storage) -> None:
    """Write what makes the data set exist; its parts are there already."""
    storage.write(f"{packed.prefix}/manifest.json", canonical(packed).encode())


def load_manifest(storage: Storage, pack_id: str) -> PackedDataset | None:
    """Return what is packed under that id, or None."""
    key = f"{prefix(pack_id)}/manifest.json"
    data = storage.read(key)
    if data is None:
        return None
    try:
        packed = _MANIFEST.validate_json(data)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(step) for step in first["loc"]) or "the whole"
        raise DamagedError(f"{key}: {field}: {first['msg']}; delete it to pack again") from error
    if packed.pack_id != pack_id:
        raise DamagedError(f"{key}: pack_id is {packed.pack_id!r}; it belongs elsewhere, delete it to pack again")
    return packed


def image_format(packed: PackedDataset) -> ImageFormat:
    """Tell a network what its images look like."""
    return ImageFormat(channels=packed.channels, size=packed.size, mean=packed.mean, std=packed.std)


def read_packed(packed: PackedDataset, storage: Storage) -> PackedArrays:
    """Read all parts, verified, into memory."""
    images = np.empty((packed.rows, packed.channels, packed.size, packed.size), np.uint8)
    labels, splits = _empty_labels(packed), np.empty(packed.rows, np.int8)
    start = 0
    for part in packed.parts:
        table = _read_part(packed, part, storage, first_id=start)
        rows = slice(start, start + part.rows)
        copy_rows(table.column(IMAGE_FIELD), images[rows])
        splits[rows] = table.column("split").to_numpy()
        if packed.multi_label:
            copy_rows(table.column("label"), labels[rows].view(np.uint8))
        else:
            labels[rows] = table.column("label").to_numpy()
        start = rows.stop
    if start != packed.rows:
        raise DamagedError(
            f"{packed.prefix}/manifest.json: rows is {packed.rows}, but its parts hold {start}; delete it to pack again"
        )
    return PackedArrays(images, labels, splits)


def read_images(packed: PackedDataset, storage: Storage, ids: range) -> NDArray[np.uint8]:
    """Read the images of adjacent samples, uint8 [len(ids), C, H, W], and no part that holds none of them."""
    images = np.empty((len(ids), packed.channels, packed.size, packed.size), np.uint8)
    start = 0
    for part in packed.parts:
        first, last = max(ids.start, start), min(ids.stop, start + part.rows)
        if first < last:
            table = _read_part(packed, part, storage, first_id=start)
            column = table.column(IMAGE_FIELD).slice(first - start, last - first)
            copy_rows(column, images[first - ids.start : last - ids.start])
        start += part.rows
    return images


def read_samples(packed: PackedDataset, storage: Storage) -> Iterator[PackedSample]:
    """Yield all samples in order; one part is in memory at a time."""
    start = 0
    for part in packed.parts:
        table = _read_part(packed, part, storage, first_id=start)
        images = np.empty((part.rows, packed.channels, packed.size, packed.size), np.uint8)
        copy_rows(table.column(IMAGE_FIELD), images)
        columns = (table.column(name).to_pylist() for name in ("key", "split", "own_split"))
        for key, split, own, pixels in zip(*columns, images, strict=True):
            yield PackedSample(key, SPLITS[split], None if own is None else SPLITS[own], pixels)
        start += part.rows


def _read_part(packed: PackedDataset, part: PackedPart, storage: Storage, *, first_id: int) -> pa.Table:
    data = part_bytes(packed, part, storage)
    check_part(packed, part, data)
    return part_table(packed, part, data, first_id=first_id)


def part_bytes(packed: PackedDataset, part: PackedPart, storage: Storage) -> bytes:
    """Read a part, as it is."""
    key = f"{packed.prefix}/{part.name}"
    data = storage.read(key)
    if data is None:
        raise _damaged(packed, f"{key} is missing")
    return data


def check_part(packed: PackedDataset, part: PackedPart, data: bytes) -> None:
    """Raise DamagedError unless a part is what the manifest says."""
    digest, key = hashlib.sha256(data).hexdigest(), f"{packed.prefix}/{part.name}"
    if digest != part.sha256:
        raise _damaged(packed, f"{key}: sha256 of its {len(data)} bytes is {digest[:16]}, not {part.sha256[:16]}")


def part_table(
    packed: PackedDataset, part: PackedPart, data: bytes, *, first_id: int, columns: Sequence[str] | None = None
) -> pa.Table:
    """All columns of a part, or some of them, each of the type and with the ids that it has to have."""
    key = f"{packed.prefix}/{part.name}"
    # Whoever reads some columns reads several parts at once.
    wanted = (
        {"columns": None, "use_threads": True}
        if columns is None
        else {"columns": ["id", *columns], "use_threads": False}
    )
    table = pq.read_table(pa.BufferReader(data), **wanted)
    label_classes = len(packed.classes) if packed.multi_label else None
    for field in part_schema(pixels=packed.channels * packed.size**2, label_classes=label_classes):
        if columns is not None and field.name not in ("id", *columns):
            continue
        if field.name not in table.column_names or table.schema.field(field.name).type != field.type:
            raise _damaged(packed, f"{key}: {field.name} is not a column of type {field.type}")
    if table.num_rows != part.rows:
        raise _damaged(packed, f"{key}: rows is {table.num_rows}, not {part.rows}")
    if not np.array_equal(table.column("id").to_numpy(), np.arange(first_id, first_id + part.rows)):
        raise _damaged(packed, f"{key}: id is not {first_id}..{first_id + part.rows - 1} in order")
    return table


def _damaged(packed: PackedDataset, what: str) -> DamagedError:
    return DamagedError(f"{what}; delete {packed.prefix}/manifest.json to pack again")


def _empty_labels(packed: PackedDataset) -> NDArray[np.int64] | NDArray[np.int8]:
    if packed.multi_label:
        return np.empty((packed.rows, len(packed.classes)), np.int8)
    return np.empty(packed.rows, np.int64)


def copy_rows(column: pa.ChunkedArray, rows: NDArray[np.uint8]) -> None:
    """Copy a FixedSizeBinary column into contiguous [n, ...], whole buffers at a time."""
    flat = rows.reshape(-1)
    start = 0
    for chunk in column.chunks:
        width = chunk.type.byte_width
        begin, count = chunk.offset * width, len(chunk) * width
        flat[start : start + count] = np.frombuffer(chunk.buffers()[1], np.uint8)[begin : begin + count]
        start += count
