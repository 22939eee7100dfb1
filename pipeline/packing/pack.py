"""Pack a data set once: decode it, give every sample its id and split, and store it as Parquet."""

import hashlib
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cluster.storage import Storage
from pipeline.canonical import canonical, digest
from pipeline.packing.growth import Kept, find_kept
from pipeline.packing.packed import (
    IMAGE_FIELD,
    VERSION,
    PackedDataset,
    PackedPart,
    PoolBlock,
    load_manifest,
    part_schema,
    prefix,
    save_manifest,
)
from pipeline.packing.parquet_images import read_parquet_images
from pipeline.packing.spill import Progress, Spill, decode_all
from sskt.datasets import READERS, SPLITS, UNLABELLED, DatasetSettings, RawDataset, Record, Split
from sskt.datasets.records import label_table
from sskt.datasets.splits import Identity, assign_splits, identify, order_key

ALL_READERS: dict[str, Callable[[DatasetSettings], RawDataset]] = {**READERS, "parquet": read_parquet_images}

ROW_GROUP = 1024
PART_ROWS = 8192
_PART_BYTES = 1 << 24  # a part is read as a whole, also by those who want a few of its rows


@dataclass(frozen=True)
class _Arranged:
    """The decoded samples in packed order."""

    images: NDArray[np.uint8]
    """[N, C, H, W] in the order they were read, on disk."""
    order: NDArray[np.int64]
    """Row of `images` by sample id."""
    keys: list[str]
    labels: NDArray[np.int32] | NDArray[np.int8]
    """int32 [N], or int8 [N, classes] of a multi-label set, as in PackedArrays."""
    splits: NDArray[np.int8]
    own_splits: list[int | None]
    """As the raw data names them."""
    identities: list[Identity]
    kept: Kept


def pack(settings: DatasetSettings, storage: Storage, *, progress: Progress | None = None) -> PackedDataset:
    """Return the packed data set; images are decoded only the first time.

    Where an earlier one of the same settings is found whole in it, its images keep their splits and its pool its ids.
    """
    return pack_raw(ALL_READERS[settings.kind](settings), settings, storage, progress=progress)


def pack_raw(
    raw: RawDataset, settings: DatasetSettings, storage: Storage, *, progress: Progress | None = None
) -> PackedDataset:
    """Pack what a reader found, unless that has been done; `progress` gets (images done, images in all)."""
    pack_id = _pack_id(raw, settings)
    stored = load_manifest(storage, pack_id)
    if stored is not None:
        return stored
    with tempfile.TemporaryFile() as file:
        spill = Spill(file, settings)
        unreadable = decode_all(raw, settings, spill, progress)
        arranged = _arrange(spill, raw, settings, storage)
        packed = _store(arranged, raw, settings, storage, unreadable=unreadable)
    save_manifest(packed, storage)
    return packed


def _pack_id(raw: RawDataset, settings: DatasetSettings) -> str:
    return digest({"version": VERSION, "settings": settings, "signature": raw.signature})


def _arrange(spill: Spill, raw: RawDataset, settings: DatasetSettings, storage: Storage) -> _Arranged:
    images, records = spill.images(), spill.records
    identities = [identify(image, record.key) for image, record in zip(images, records, strict=True)]
    kept = find_kept(records, identities, shape=images.shape[1:], settings=settings, storage=storage)
    places = [order_key(identity.sample, settings.seed) for identity in identities]
    splits = assign_splits(records, places, classes=raw.classes, settings=settings, kept=kept.splits)
    behind = len(records)  # of all that are kept
    order = sorted(range(len(records)), key=lambda row: (splits[row], kept.ids.get(row, behind), places[row]))
    return _Arranged(
        images=images,
        order=np.array(order, np.int64),
        keys=[records[row].key for row in order],
        labels=_labels([records[row] for row in order], raw),
        splits=splits[order],
        own_splits=[_code(records[row].split) for row in order],
        identities=[identities[row] for row in order],
        kept=kept,
    )


def _code(split: Split | None) -> int | None:
    return None if split is None else SPLITS.index(split)


def _labels(records: Sequence[Record], raw: RawDataset) -> NDArray[np.int32] | NDArray[np.int8]:
    if raw.multi_label:
        return label_table(records, classes=len(raw.classes))
    return np.array([record.label for record in records], np.int32)


def _store(
    arranged: _Arranged, raw: RawDataset, settings: DatasetSettings, storage: Storage, *, unreadable: tuple[str, ...]
) -> PackedDataset:
    pack_id = _pack_id(raw, settings)
    parts, histogram = _write_parts(arranged, storage, prefix(pack_id))
    mean, std = _mean_and_std(histogram)
    counts = {split: int((arranged.splits == code).sum()) for code, split in enumerate(SPLITS)}
    training = arranged.labels[: counts["train"]]
    return PackedDataset(
        pack_id=pack_id,
        name=raw.name,
        classes=raw.classes,
        multi_label=raw.multi_label,
        rows=len(arranged.order),
        pool=counts["train"],
        unlabelled=int((training.reshape(len(training), -1) == UNLABELLED).all(axis=1).sum()),
        labelled=_labelled(training, raw),
        validation=counts["validation"],
        test=counts["test"],
        channels=arranged.images.shape[1],
        size=arranged.images.shape[2],
        mean=mean,
        std=std,
        fingerprint=_fingerprint(arranged, raw.classes),
        blocks=_blocks(arranged, counts["train"]),
        not_grown=arranged.kept.not_grown,
        parts=parts,
        unreadable=unreadable,
        settings=asdict(settings),
        signature=raw.signature,
    )


def _labelled(labels: NDArray[np.int32] | NDArray[np.int8], raw: RawDataset) -> tuple[int, ...]:
    if raw.multi_label:
        return tuple((labels == 1).sum(axis=0).tolist())
    return tuple(np.bincount(labels[labels != UNLABELLED], minlength=len(raw.classes)).tolist())


def _write_parts(
    arranged: _Arranged, storage: Storage, folder: str
) -> tuple[tuple[PackedPart, ...], NDArray[np.int64]]:
    """Write all parts; return them, and how often each value occurs in each channel of the pool."""
    parts: list[PackedPart] = []
    histogram = np.zeros((arranged.images.shape[1], 256), np.int64)
    step = part_rows(arranged.images[0].size)
    for start in range(0, len(arranged.order), step):
        rows = slice(start, start + step)
        images = arranged.images[arranged.order[rows]]
        for channel, counts in enumerate(histogram):
            counts += np.bincount(images[arranged.splits[rows] == 0, channel].reshape(-1), minlength=256)
        data = _part_bytes(arranged, rows, images)
        part = PackedPart(
            name=f"part-{len(parts):05d}.parquet", rows=len(images), sha256=hashlib.sha256(data).hexdigest()
        )
        storage.write(f"{folder}/{part.name}", data)
        parts.append(part)
    return tuple(parts), histogram


def part_rows(image_bytes: int) -> int:
    """Rows of a part: bounded in number and in bytes."""
    return min(max(_PART_BYTES // image_bytes, 1), PART_ROWS)


def _part_bytes(arranged: _Arranged, rows: slice, images: NDArray[np.uint8]) -> bytes:
    ids = np.arange(rows.start, rows.start + len(images))
    labels = arranged.labels[rows]
    columns = {
        "id": ids,
        "key": arranged.keys[rows],
        "label": labels if labels.ndim == 1 else _fixed_bytes(labels),
        "split": arranged.splits[rows],
        "own_split": pa.array(arranged.own_splits[rows], pa.int8()),
        IMAGE_FIELD: _fixed_bytes(images),
    }
    label_classes = None if labels.ndim == 1 else labels.shape[1]
    table = pa.table(columns, part_schema(pixels=images[0].size, label_classes=label_classes))
    sink = pa.BufferOutputStream()
    pq.write_table(
        table, sink, row_group_size=ROW_GROUP, compression="zstd", use_dictionary=False, write_statistics=False
    )
    return bytes(sink.getvalue())


def _fixed_bytes(rows: NDArray[np.uint8] | NDArray[np.int8]) -> pa.FixedSizeBinaryArray:
    """One value for each row of [n, ...], without a copy where they are adjacent."""
    buffer = pa.py_buffer(np.ascontiguousarray(rows))
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(rows[0].size), len(rows), [None, buffer])


def _mean_and_std(histogram: NDArray[np.int64]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Exact integer sums, so that they do not depend on how the images were grouped."""
    means, deviations = [], []
    for counts in histogram.tolist():
        number = sum(counts)
        total = sum(value * count for value, count in enumerate(counts))
        squares = sum(value * value * count for value, count in enumerate(counts))
        deviation = (number * squares - total * total) ** 0.5 / number / 255
        means.append(round(total / number / 255, 6))
        deviations.append(round(deviation, 6) or 1.0)  # 1 keeps a constant channel finite where it is divided by this
    return tuple(means), tuple(deviations)


def _fingerprint(arranged: _Arranged, classes: tuple[str, ...]) -> str:
    _, channels, size, _ = arranged.images.shape
    content = hashlib.sha256(canonical({"classes": classes, "size": size, "channels": channels}).encode())
    labels, splits = arranged.labels, arranged.splits
    if labels.ndim == 1:
        labels = labels.astype("<i4")
    for identity, label, split in zip(arranged.identities, labels, splits, strict=True):
        content.update(identity.sample + label.tobytes() + split.tobytes())
    return content.hexdigest()


def _blocks(arranged: _Arranged, pool: int) -> tuple[PoolBlock, ...]:
    """The blocks that are kept, and one of the training images behind them, if there are any."""
    _, channels, size, _ = arranged.images.shape
    content = hashlib.sha256(canonical({"size": size, "channels": channels}).encode())
    blocks: list[PoolBlock] = []
    start = 0
    for stop in sorted({*arranged.kept.stops, pool}):
        content.update(b"".join(identity.picture for identity in arranged.identities[start:stop]))
        blocks.append(PoolBlock(stop=stop, fingerprint=content.hexdigest()))
        start = stop
    return tuple(blocks)
