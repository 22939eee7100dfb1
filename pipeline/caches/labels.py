"""Segments of label caches on storage: their shards, and reading them without ever trusting a byte.

caches/<id>/views-<first>-<stop>/shard-00000.parquet   one row per sample, its views adjacent, one fixed-size column
caches/<id>/views-<first>-<stop>/shard-00000.json      commit record, written after the shard was read back
caches/<id>/views-<first>-<stop>/manifest.json         derived from the records, written last: the segment is whole
"""

import hashlib
import json
import zlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.storage import Storage
from pipeline.canonical import canonical, plain, seal, unseal
from pipeline.columns import read_rows, write_columns
from pipeline.planning.specs import Segment
from sskt.errors import DamagedError

READERS = 4
"""Shards read at once: while the bytes of one are checked, those of others are on their way."""


@dataclass(frozen=True, kw_only=True)
class ShardRecord:
    """What is known of a finished shard."""

    shard: int
    rows: int
    bytes: int
    sha256: str
    crc32: int
    """What readers check: many times quicker than the other, and no less sure to find a flipped or missing byte."""
    views: tuple[str, ...]
    """A hash of what is stored of each view."""
    golden: dict[str, str]
    """Hashes of the pixels of some views, by `sample/view`; training starts only if it sees the same."""
    passes: int
    """Images that went through the source for it; where one pass made several outputs, all but one say 0."""
    seconds: float
    """Time the source took for them."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What is known of a finished segment."""

    id: str
    identity: dict[str, Any]
    shards: tuple[ShardRecord, ...]


def shard_key(segment: Segment, shard: int) -> str:
    """Key of a shard's data."""
    return f"{segment.prefix}/shard-{shard:05d}.parquet"


def record_key(segment: Segment, shard: int) -> str:
    """Key of a shard's commit record."""
    return f"{segment.prefix}/shard-{shard:05d}.json"


def manifest_key(segment: Segment) -> str:
    """Key of what makes a segment whole."""
    return f"{segment.prefix}/manifest.json"


@dataclass(frozen=True, kw_only=True)
class Made:
    """What a worker has to say of a shard. payload: uint8 [rows, views, bytes]; the rest as in its record."""

    payload: np.ndarray
    golden: dict[str, str]
    passes: int
    seconds: float


def commit_shard(storage: Storage, segment: Segment, *, shard: int, made: Made) -> ShardRecord:
    """Publish a shard, read it back, then record it."""
    payload = made.payload
    statement = canonical(_statement(segment, shard)).encode()
    data = write_columns({segment.labels.output: payload.reshape(len(payload), -1)}, statement=statement)
    storage.write(shard_key(segment, shard), data)
    record = ShardRecord(
        shard=shard,
        rows=len(payload),
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        crc32=zlib.crc32(data),
        views=tuple(view_hash(payload[:, view]) for view in range(payload.shape[1])),
        golden=made.golden,
        passes=made.passes,
        seconds=round(made.seconds, 4),
    )
    read_shard(storage, segment, record, thoroughly=True)
    storage.write(record_key(segment, shard), seal(record))
    return record


def stored_bytes(segment: Segment) -> int:
    """Bytes its shards will take, to a percent: Parquet spells numbers in as few bytes as they need."""
    one = write_columns(
        {segment.labels.output: np.zeros((1, segment.row_bytes), np.uint8)},
        statement=canonical(_statement(segment, 0)).encode(),
    )
    return segment.rows * segment.row_bytes + segment.shards * (len(one) - segment.row_bytes)


def view_hash(rows: np.ndarray) -> str:
    """Identity of what is stored of one view of a shard's samples."""
    return hashlib.sha256(np.ascontiguousarray(rows)).hexdigest()[:16]


def read_record(storage: Storage, segment: Segment, shard: int) -> ShardRecord | None:
    """Return a shard's record, or None where the shard has to be made: absent, or damaged and so not to be trusted."""
    data = storage.read(record_key(segment, shard))
    try:
        record = None if data is None else as_record(unseal(data))
    except (ValueError, TypeError, KeyError):
        return None
    return record if record is not None and record.shard == shard else None


def quarantine(storage: Storage, segment: Segment, shard: int) -> None:
    """Put a shard that cannot be trusted aside, where nothing reads it, and forget its record."""
    key = shard_key(segment, shard)
    data = storage.read(key)
    if data is not None:
        storage.write(f"quarantine/{key}", data)
        storage.delete(key)
    storage.delete(record_key(segment, shard))


def finish_segment(storage: Storage, segment: Segment, records: list[ShardRecord]) -> Manifest:
    """Write the manifest, once every shard has its record."""
    ordered = tuple(sorted(records, key=lambda record: record.shard))
    if [record.shard for record in ordered] != list(range(segment.shards)):
        raise DamagedError(f"cache {segment.id}: {len(ordered)} of {segment.shards} shards have a record; not whole")
    manifest = Manifest(id=segment.id, identity=segment.identity(), shards=ordered)
    storage.write(manifest_key(segment), seal(manifest))
    return manifest


def load_manifest(storage: Storage, segment: Segment) -> Manifest | None:
    """Return the manifest of a whole segment, or None where it is not whole yet."""
    data = storage.read(manifest_key(segment))
    if data is None:
        return None
    try:
        raw = unseal(data)
        manifest = Manifest(shards=tuple(as_record(record) for record in raw.pop("shards")), **raw)
    except (ValueError, TypeError, KeyError) as error:
        raise DamagedError(f"{manifest_key(segment)} is damaged ({error}); delete it and run `cache`") from error
    wanted = plain(segment.identity())
    differing = [name for name in wanted if manifest.identity.get(name) != wanted[name]]
    if differing:
        raise DamagedError(f"{manifest_key(segment)} differs from the experiment in {', '.join(differing)}")
    return manifest


def read_segment(storage: Storage, segment: Segment, manifest: Manifest) -> np.ndarray:
    """Read every shard, several at once. Returns uint8 [rows, views, bytes]."""
    rows = np.empty((segment.rows, len(segment.view_ids), segment.labels.view_bytes), np.uint8)

    def fill(record: ShardRecord) -> None:
        ids = segment.id_range(record.shard)
        rows[ids.start - segment.first : ids.stop - segment.first] = read_shard(storage, segment, record)

    with ThreadPoolExecutor(READERS) as pool:
        list(pool.map(fill, manifest.shards))
    return rows


def read_shard(storage: Storage, segment: Segment, record: ShardRecord, *, thoroughly: bool = False) -> np.ndarray:
    """Read a shard and check it against its record: uint8 [rows, views, bytes]."""
    where = f"cache {segment.id}, views {segment.first_view}..{segment.stop_view - 1}, shard {record.shard}"
    data = storage.read(shard_key(segment, record.shard))
    if data is None:
        raise DamagedError(f"{where}: the file is missing; run `cache` to make it again")
    if zlib.crc32(data) != record.crc32 or (thoroughly and hashlib.sha256(data).hexdigest() != record.sha256):
        raise DamagedError(f"{where}: its checksum differs from its record; run `cache` to make it again")
    table = pq.read_table(pa.BufferReader(data))
    stated = json.loads((table.schema.metadata or {}).get(b"sskt", b"{}"))
    expected = _statement(segment, record.shard)
    if stated != expected:
        differing = ", ".join(name for name in expected if stated.get(name) != expected[name])
        raise DamagedError(f"{where}: the file says it is another shard ({differing} differ)")
    rows = read_rows(table.column(segment.labels.output))
    if rows.shape != (len(segment.id_range(record.shard)), segment.row_bytes):
        raise DamagedError(f"{where}: it holds {list(rows.shape)} bytes; {segment.row_bytes} a sample are right")
    return rows.reshape(len(rows), len(segment.view_ids), -1)


def as_record(raw: dict[str, Any]) -> ShardRecord:
    """Return the record that was written as JSON."""
    return ShardRecord(**raw | {"views": tuple(raw["views"])})


def _statement(segment: Segment, shard: int) -> dict[str, Any]:
    """What a shard's file says of itself."""
    ids, views = segment.id_range(shard), [segment.first_view, segment.stop_view]
    return {"cache": segment.id, "shard": shard, "first_id": ids.start, "rows": len(ids), "views": views}
