"""Label caches on a node's own disk, mapped into memory by all processes of the node that train from them.

<folder of the node's copies>/labels/<content>   the payload of one cache as it is, uint8 [rows, views, bytes]
"""

import contextlib
import fcntl
import os
import time
from pathlib import Path

import numpy as np
from filelock import FileLock

from cluster.near import FOLDER, own_folder
from cluster.storage import Storage
from pipeline.caches.labels import read_shard
from pipeline.caches.segments import WholeCache
from pipeline.canonical import digest
from sskt.errors import SsktError

UNUSED_SECONDS = 3600
"""How long a copy stays that nobody uses: trials of a sweep take turns with their caches."""


def map_cache(storage: Storage, cache: WholeCache) -> np.ndarray:
    """Return what `read_cache` does, of which the kernel keeps in memory what is used: verified when it is copied here.

    Whoever comes first makes the copy, and the others wait for it. Who makes another one removes those that lie unused.
    """
    try:
        folder = own_folder() / "labels"
        folder.mkdir(exist_ok=True)
        place = folder / digest([cache.spec.id, cache.spec.view_count, cache.content])
        with FileLock(folder.parent / "locks" / "labels", mode=0o600):
            if not place.exists():
                _make(place, storage, cache)
            return _map(place, _shape(cache))
    except OSError as error:
        raise SsktError(
            f"cache {cache.spec.id}: its {np.prod(_shape(cache)) / 1e9:.3g} GB of labels cannot be kept on this node: "
            f"{error.strerror or error}; {FOLDER} names the folder"
        ) from error


def _shape(cache: WholeCache) -> tuple[int, int, int]:
    labels = cache.spec.labels
    return cache.spec.rows, len(labels.numbers) * cache.spec.view_count, labels.view_bytes


def _make(place: Path, storage: Storage, cache: WholeCache) -> None:
    """Write the payload under another name, a shard at a time, then rename it."""
    _remove_unused(place.parent)
    part, (rows, views, size) = place.with_suffix(".part"), _shape(cache)
    numbers, count = len(cache.spec.labels.numbers), cache.spec.view_count
    with part.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, rows * views * size)  # a full disk says so here; a mapping would be killed
    payload = np.memmap(part, np.uint8, "r+", shape=(rows, numbers, count, size))
    for segment, manifest in cache.parts:
        kept = slice(segment.first_view, min(segment.stop_view, count))
        for record in manifest.shards:
            ids = segment.id_range(record.shard)
            stored = read_shard(storage, segment, record).reshape(len(ids), numbers, -1, size)
            payload[ids.start : ids.stop, :, kept] = stored[:, :, : kept.stop - kept.start]
    payload.flush()
    part.replace(place)


def _map(place: Path, shape: tuple[int, int, int]) -> np.ndarray:
    """Map a copy. Its lock lasts as long as the mapping, which has a descriptor of its own of the same open file."""
    os.utime(place)
    with place.open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        return np.memmap(file, np.uint8, "r", shape=shape)


def _remove_unused(folder: Path) -> None:
    """Remove what nobody maps and nobody has for a while, also what a killed process left unfinished."""
    for path in folder.iterdir():
        if time.time() - path.stat().st_mtime > UNUSED_SECONDS:
            with path.open("rb") as file, contextlib.suppress(BlockingIOError):
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
