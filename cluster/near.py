"""Copies of objects on a node's own disk, so that what lies on a far storage comes to a node once.

Whether a copy still is the object is asked of the storage at every read, which costs an answer without a body: what is
read is what the storage holds at that moment, whoever replaced or deleted it.
"""

import errno
import hashlib
import logging
import os
import shutil
import stat
import tempfile
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Protocol, runtime_checkable

from filelock import FileLock

from cluster.logs import as_json, event
from cluster.storage import Storage
from cluster.stored import Fetched, Stored

FOLDER = "SSKT_NODE_CACHE"
"""The variable that names a folder of the node's disk; else it is that for temporary files."""
KEPT = ".parquet"
"""What is kept: images, labels and graphs never change and are read by many. All else is small, or changes."""
LOCKS = 256
LOCK_SECONDS = 60.0
"""How long is waited for another process that fetches the object, before it is read without a copy."""
LEAST_FREE = 10
"""A tenth of the disk stays free: Ray, which may work on the same, stops where less than a twentieth is."""


@runtime_checkable
class FarStorage(Storage, Protocol):
    """A storage beyond the network, which knows an object that it has handed out before."""

    def fetch(self, key: str, *, known: str = "") -> Fetched | None:
        """Return the object and its tag, without its bytes where it is the one whose tag is known; None for none."""

    def url(self, key: str) -> str:
        """Where the object lies, with the server: what tells it from all others."""


def nearby(storage: Storage, gigabytes: float) -> Storage:
    """The same storage, read by way of copies of so many GB in all; a folder needs none."""
    if gigabytes > 0 and isinstance(storage, FarStorage):
        return NearStorage(storage, round(gigabytes * 1e9))
    return storage


@dataclass(frozen=True)
class NearStorage:
    """A far storage whose largest objects are fetched once a node, whatever the number of processes that read them."""

    far: FarStorage
    most_bytes: int

    @property
    def uri(self) -> str:
        """Its address, which is that of the far storage."""
        return self.far.uri

    def check(self, *, write: str | None) -> None:
        """Raise soon where it cannot be used."""
        self.far.check(write=write)

    def read(self, key: str) -> bytes | None:
        """Return the object, or None where there is none; without a copy where the disk does not do its part."""
        if key.endswith(KEPT):
            with _told():
                return self._read(key)
        return self.far.read(key)

    def write(self, key: str, data: bytes) -> None:
        """Publish the object at once, replacing what was there."""
        self.far.write(key, data)

    def create(self, key: str, data: bytes) -> bool:
        """Publish the object unless there is one; say whether this call made it."""
        return self.far.create(key, data)

    def delete(self, key: str) -> None:
        """Remove the object if there is one."""
        self.far.delete(key)

    def keys(self, prefix: str) -> Iterator[str]:
        """All keys below `prefix/`, sorted."""
        return self.far.keys(prefix)

    def objects(self, prefix: str) -> Iterator[Stored]:
        """All objects below `prefix/`, sorted by key."""
        return self.far.objects(prefix)

    def _read(self, key: str) -> bytes | None:
        """Fetch the object unless it is here; whoever wants the same meanwhile waits, then finds it."""
        folder, name = own_folder(), hashlib.sha256(self.far.url(key).encode()).hexdigest()
        place = folder / name
        # The kernel takes a lock from a process that dies. The files stay, few as they are: one that is unlinked while
        # others wait for it would be two locks.
        with FileLock(folder / "locks" / str(int(name, 16) % LOCKS), timeout=LOCK_SECONDS, mode=0o600):
            copy = _copy(place)
            found = self.far.fetch(key, known=copy.tag if copy else "")
            if copy and found and found.data is None:
                return copy.data
            place.unlink(missing_ok=True)
            if found is None or found.data is None:
                return None
            with _told():
                _keep(place, found.tag.encode(), found.data, most=self.most_bytes)
            return found.data


def own_folder() -> Path:
    """Where the copies of this user lie on this node; nobody else may put any there, or read them."""
    parent = Path(os.environ.get(FOLDER) or tempfile.gettempdir())
    parent.mkdir(parents=True, exist_ok=True)
    folder = parent / f"sskt-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise PermissionError(errno.EPERM, "it is not a folder of your own that nobody else may enter")
    (folder / "locks").mkdir(exist_ok=True)
    return folder


def _copy(place: Path) -> Fetched | None:
    """Return a copy, which is the one used last from now on; a damaged one is none."""
    try:
        file = place.open("rb")
    except FileNotFoundError:
        return None
    with file:
        _use(file.fileno())
        checksum, tag, data = file.readline().strip(), file.readline().strip(), file.read()
    return Fetched(tag.decode(), data) if checksum == _checksum(tag, data) else None


def _keep(place: Path, tag: bytes, data: bytes, *, most: int) -> None:
    """Write a copy under another name, then rename it. What a killed process left grows old and goes, as all does."""
    head = b"%s\n%s\n" % (_checksum(tag, data), tag)
    _make_room(place.parent, len(head) + len(data), most=most)
    part = place.with_suffix(".part")
    try:
        with part.open("wb") as file:
            file.writelines((head, data))
            file.flush()
            _use(file.fileno())
        part.replace(place)
    except OSError:
        part.unlink(missing_ok=True)
        raise


def _make_room(folder: Path, wanted: int, *, most: int) -> None:
    """Remove what was used least recently until so many bytes fit. Who reads a removed file still has it."""
    files = []
    for entry in os.scandir(folder):
        with suppress(FileNotFoundError):  # another process makes room too
            if entry.is_file(follow_symlinks=False):
                files.append((entry.stat().st_mtime_ns, entry.stat().st_size, entry.path))
    held, disk = sum(size for _, size, _ in files), shutil.disk_usage(folder)
    room = min(most, held + disk.free - disk.total // LEAST_FREE)
    if wanted > room:
        raise OSError(errno.ENOSPC, "an object has no room in resources.node_cache_gb, or on the disk")
    for _, size, path in sorted(files):
        if held + wanted <= room:
            return
        Path(path).unlink(missing_ok=True)
        held -= size


def _use(descriptor: int) -> None:
    """Note that a file is used now, to the nanosecond: the clock of the file system has steps of milliseconds."""
    os.utime(descriptor, ns=(time.time_ns(),) * 2)


def _checksum(tag: bytes, data: bytes) -> bytes:
    return b"%08x" % zlib.crc32(data, zlib.crc32(tag))


@contextmanager
def _told() -> Iterator[None]:
    """Go on where the disk does not do its part, and say so."""
    try:
        yield
    except OSError as error:  # a lock that is not to be had is one too
        _say(error.strerror or type(error).__name__)


@cache
def _say(reason: str) -> None:
    """Say once for each process what keeps it from having copies."""
    where = os.environ.get(FOLDER) or tempfile.gettempdir()
    if as_json():
        event("node_cache_unused", level=logging.WARNING, folder=where, reason=reason)
    else:
        logging.getLogger(__name__).warning("node cache below %s: %s; goes on without it (%s)", where, reason, FOLDER)
