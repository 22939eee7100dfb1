"""A packed data set that is not in memory: its labels by themselves, and the images of one part at a time.

datasets/<pack id>/labels.parquet   derived from the parts when it is first wanted: labels are read without the images
"""

import zlib
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from cluster.storage import Storage
from pipeline.canonical import canonical
from pipeline.columns import read_rows, write_columns
from pipeline.packing.packed import IMAGE_FIELD, PackedDataset, check_part, part_bytes, part_table
from sskt.datasets import SPLITS
from sskt.errors import DamagedError

READERS = 4
"""Parts read at once for their labels."""


class PartReader:
    """Reads the images of parts. Bytes are checked against the manifest once, then by their sum, ten times as quick."""

    def __init__(self, packed: PackedDataset, storage: Storage) -> None:
        self.packed, self.storage = packed, storage
        self._edges = packed.part_edges
        self._seen: dict[int, tuple[int, int]] = {}

    def __call__(self, number: int) -> NDArray[np.uint8]:
        """Return uint8 [rows, C, H, W], not to be written to."""
        packed, part = self.packed, self.packed.parts[number]
        data = part_bytes(packed, part, self.storage)
        total = _sum(data)
        if self._seen.get(number) != total:
            check_part(packed, part, data)
            self._seen[number] = total
        table = part_table(packed, part, data, first_id=self._edges[number], columns=[IMAGE_FIELD])
        return read_rows(table.column(IMAGE_FIELD)).reshape(-1, packed.channels, packed.size, packed.size)


def _sum(data: bytes) -> tuple[int, int]:
    """Sum of the words of some bytes, and how many bytes there are: any one that is another shows."""
    words = np.frombuffer(data, "<u8", len(data) // 8)
    return int(words.sum()) + int.from_bytes(data[8 * len(words) :], "little"), len(data)


def read_labels(packed: PackedDataset, storage: Storage) -> NDArray[np.int64] | NDArray[np.int8]:
    """The labels of all samples, as in `PackedArrays`; the first time every part is read for them."""
    key = f"{packed.prefix}/labels.parquet"
    data = storage.read(key)
    if data is None:
        data = _derived(packed, storage)
        storage.write(key, data)
    try:
        table = pq.read_table(pa.BufferReader(data))
        rows = read_rows(table.column("label"))
    except (pa.ArrowException, OSError, KeyError) as error:
        raise DamagedError(f"{key} cannot be read ({error}); delete it") from error
    if (table.schema.metadata or {}).get(b"sskt") != _statement(packed, rows) or len(rows) != packed.rows:
        raise DamagedError(f"{key} is damaged, or of another data set; delete it")
    return rows.view(np.int8) if packed.multi_label else rows.view("<i4").reshape(-1).astype(np.int64)


def splits_of(packed: PackedDataset) -> NDArray[np.int8]:
    """The splits of all samples, int8 [N]: training images come first, then those for validation and for testing."""
    counts = (packed.pool, packed.validation, packed.test)
    return np.repeat(np.arange(len(SPLITS), dtype=np.int8), counts)


def _derived(packed: PackedDataset, storage: Storage) -> bytes:
    with ThreadPoolExecutor(READERS) as pool:
        labels = np.concatenate(list(pool.map(partial(_labels_of_part, packed, storage), range(len(packed.parts)))))
    return write_columns({"label": labels}, statement=_statement(packed, labels))


def _labels_of_part(packed: PackedDataset, storage: Storage, number: int) -> NDArray[np.int32] | NDArray[np.uint8]:
    part = packed.parts[number]
    data = part_bytes(packed, part, storage)
    check_part(packed, part, data)
    column = part_table(packed, part, data, first_id=packed.part_edges[number], columns=["label"]).column("label")
    return read_rows(column) if packed.multi_label else column.to_numpy().astype("<i4").reshape(-1, 1)


def _statement(packed: PackedDataset, labels: NDArray[np.int32] | NDArray[np.uint8]) -> bytes:
    """What the file of labels says of itself."""
    checksum = zlib.crc32(np.ascontiguousarray(labels))
    return canonical({"labels of": packed.pack_id, "fingerprint": packed.fingerprint, "crc32": checksum}).encode()
