"""Label caches on storage: their identity, their shards, and reading them without ever trusting a byte.

caches/<id>/shard-00000.parquet   one row per sample, its M views adjacent, one fixed-size binary column per output
caches/<id>/shard-00000.json      commit record, written after the shard was read back
caches/<id>/manifest.json         derived from the records, written last: the cache is whole
"""

import hashlib
import json
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from cluster.storage import Storage
from pipeline.canonical import canonical, digest
from pipeline.columns import read_rows, write_columns
from sskt.encodings import get_encoding
from sskt.errors import DamagedError
from sskt.views import TURN

FORMAT = 1
SMALLEST_SHARD, LARGEST_SHARD, USUAL_SHARDS = 64, 16384, 16


@dataclass(frozen=True, kw_only=True)
class CacheSpec:
    """One output of one source for the views of one dataset. Any difference is another cache."""

    source: dict[str, Any]
    dataset: str
    views: dict[str, Any]
    view_count: int
    rows: int
    """Samples labelled: the pool, ids 0..rows-1."""
    output: str
    turned: bool
    """Whether it holds the turned views instead of the upright ones."""
    width: int
    """Values per view."""
    encoding: str
    numerics: dict[str, Any]

    @cached_property
    def id(self) -> str:
        """The name of the cache, which no other content can have."""
        return digest(self.identity())

    @property
    def name(self) -> str:
        """What it is called among the caches of its source."""
        return cache_name(self.output, turned=self.turned)

    @cached_property
    def view_ids(self) -> tuple[int, ...]:
        """The views it holds of every sample, in their order."""
        quarters = (1, 2, 3) if self.turned else (0,)
        return tuple(number * TURN + view for number in quarters for view in range(self.view_count))

    @property
    def prefix(self) -> str:
        """Where its objects lie."""
        return f"caches/{self.id}"

    def identity(self) -> dict[str, Any]:
        """All that changes a stored byte."""
        return {"format": FORMAT} | asdict(self)

    @property
    def shard_rows(self) -> int:
        """Samples per shard; fixed by the dataset, so that shards do not depend on the number of workers."""
        return min(max(-(-self.rows // USUAL_SHARDS), SMALLEST_SHARD), LARGEST_SHARD)

    @property
    def shards(self) -> int:
        """How many shards the cache has."""
        return -(-self.rows // self.shard_rows)

    def id_range(self, shard: int) -> range:
        """The sample ids a shard owns."""
        return range(shard * self.shard_rows, min((shard + 1) * self.shard_rows, self.rows))

    @property
    def row_bytes(self) -> int:
        """Stored bytes for all views of one sample."""
        return len(self.view_ids) * get_encoding(self.encoding).row_bytes(self.width)


def cache_name(output: str, *, turned: bool) -> str:
    """What a cache is called among those of its source."""
    return f"turned {output}" if turned else output


@dataclass(frozen=True, kw_only=True)
class ShardRecord:
    """What is known of a finished shard."""

    shard: int
    rows: int
    bytes: int
    sha256: str
    passes: int
    """Images that went through the source for it; where one pass made several outputs, all but one say 0."""
    seconds: float
    """Time the source took for them."""


@dataclass(frozen=True, kw_only=True)
class CacheManifest:
    """What is known of a finished cache."""

    id: str
    identity: dict[str, Any]
    shards: tuple[ShardRecord, ...]
    content: str
    """Hash over the shards' hashes: however often and by whomever this cache is made, it is the same."""

    @property
    def passes(self) -> int:
        """Images that went through the source."""
        return sum(record.passes for record in self.shards)

    @property
    def bytes(self) -> int:
        """Bytes on storage."""
        return sum(record.bytes for record in self.shards)

    @property
    def seconds(self) -> float:
        """Time the source took."""
        return sum(record.seconds for record in self.shards)


def shard_key(spec: CacheSpec, shard: int) -> str:
    """Key of a shard's data."""
    return f"{spec.prefix}/shard-{shard:05d}.parquet"


def record_key(spec: CacheSpec, shard: int) -> str:
    """Key of a shard's commit record."""
    return f"{spec.prefix}/shard-{shard:05d}.json"


def commit_shard(
    storage: Storage, spec: CacheSpec, *, shard: int, payload: np.ndarray, passes: int, seconds: float
) -> ShardRecord:
    """Publish a shard, read it back, then record it. payload: uint8 [rows, M * bytes]."""
    data = write_columns({spec.output: payload}, statement=canonical(_statement(spec, shard)).encode())
    storage.write(shard_key(spec, shard), data)
    record = ShardRecord(
        shard=shard,
        rows=len(payload),
        bytes=len(data),
        sha256=hashlib.sha256(data).hexdigest(),
        passes=passes,
        seconds=round(seconds, 4),
    )
    read_shard(storage, spec, record)
    storage.write(record_key(spec, shard), canonical(record).encode())
    return record


def read_record(storage: Storage, spec: CacheSpec, shard: int) -> ShardRecord | None:
    """Return a shard's record, or None where the shard has to be made: absent, or damaged and so not to be trusted."""
    data = storage.read(record_key(spec, shard))
    try:
        return None if data is None else ShardRecord(**json.loads(data))
    except (ValueError, TypeError):
        return None


def finish_cache(storage: Storage, spec: CacheSpec, records: list[ShardRecord]) -> CacheManifest:
    """Write the manifest, once every shard has its record."""
    ordered = tuple(sorted(records, key=lambda record: record.shard))
    if [record.shard for record in ordered] != list(range(spec.shards)):
        raise DamagedError(f"cache {spec.id}: {len(ordered)} of {spec.shards} shards have a record; it is not whole")
    content = digest([record.sha256 for record in ordered])
    manifest = CacheManifest(id=spec.id, identity=spec.identity(), shards=ordered, content=content)
    storage.write(f"{spec.prefix}/manifest.json", canonical(manifest).encode())
    return manifest


def load_manifest(storage: Storage, spec: CacheSpec) -> CacheManifest | None:
    """Return the manifest of a whole cache, or None where it is not whole yet."""
    data = storage.read(f"{spec.prefix}/manifest.json")
    if data is None:
        return None
    try:
        raw = json.loads(data)
        shards = tuple(ShardRecord(**record) for record in raw.pop("shards"))
        manifest = CacheManifest(shards=shards, **raw)
    except (ValueError, TypeError, KeyError) as error:
        raise DamagedError(f"cache {spec.id}: manifest.json is damaged ({error}); delete it and run `cache`") from error
    wanted = json.loads(canonical(spec.identity()))
    differing = [name for name in wanted if manifest.identity.get(name) != wanted[name]]
    if differing:
        raise DamagedError(f"cache {spec.id}: manifest.json differs from the experiment in {', '.join(differing)}")
    return manifest


def read_cache(storage: Storage, spec: CacheSpec, manifest: CacheManifest) -> np.ndarray:
    """Read and verify every shard. Returns uint8 [rows, M, bytes]."""
    parts = [read_shard(storage, spec, record) for record in manifest.shards]
    return np.concatenate(parts).reshape(spec.rows, len(spec.view_ids), -1)


def read_shard(storage: Storage, spec: CacheSpec, record: ShardRecord) -> np.ndarray:
    """Read a shard and check it against its record: uint8 [rows, M * bytes]."""
    where = f"cache {spec.id}, shard {record.shard}"
    data = storage.read(shard_key(spec, record.shard))
    if data is None:
        raise DamagedError(f"{where}: the file is missing; run `cache` to make it again")
    if hashlib.sha256(data).hexdigest() != record.sha256:
        raise DamagedError(f"{where}: sha256 differs from its record; run `cache` to make it again")
    table = pq.read_table(pa.BufferReader(data))
    stated = json.loads((table.schema.metadata or {}).get(b"sskt", b"{}"))
    expected = _statement(spec, record.shard)
    if stated != expected:
        differing = ", ".join(name for name in expected if stated.get(name) != expected[name])
        raise DamagedError(f"{where}: the file says it is another shard ({differing} differ)")
    rows = read_rows(table.column(spec.output))
    if rows.shape != (record.rows, spec.row_bytes):
        raise DamagedError(f"{where}: its shape is {list(rows.shape)}, not {[record.rows, spec.row_bytes]}")
    return rows


def _statement(spec: CacheSpec, shard: int) -> dict[str, Any]:
    """What a shard's file says of itself."""
    ids = spec.id_range(shard)
    return {"cache": spec.id, "shard": shard, "first_id": ids.start, "rows": len(ids), "views": spec.view_count}
