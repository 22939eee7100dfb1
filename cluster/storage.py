"""A folder or a bucket behind one small interface; every object appears whole or not at all."""

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

from cluster.stored import StorageError, Stored, is_object

__all__ = ["FolderStorage", "Storage", "StorageError", "Stored", "checked_storage", "open_storage"]


class Storage(Protocol):
    """Objects by key, `/`-separated, below one address."""

    uri: str

    def check(self, *, write: str | None) -> None:
        """Raise soon where it cannot be listed, or nothing be written below a prefix; asked before work begins."""

    def read(self, key: str) -> bytes | None:
        """Return the object, or None where there is none."""

    def write(self, key: str, data: bytes) -> None:
        """Publish the object at once, replacing what was there."""

    def create(self, key: str, data: bytes) -> bool:
        """Publish the object unless there is one; say whether this call made it."""

    def delete(self, key: str) -> None:
        """Remove the object if there is one."""

    def keys(self, prefix: str) -> Iterator[str]:
        """All keys below `prefix/`, sorted."""

    def objects(self, prefix: str) -> Iterator[Stored]:
        """All objects below `prefix/`, sorted by key."""


def open_storage(uri: str) -> Storage:
    """Open the storage at a folder's path or at `s3://bucket/prefix`."""
    scheme, separator, _ = uri.partition("://")
    if not separator and not uri.startswith("s3:"):
        return FolderStorage(uri)
    if scheme == "file":
        return FolderStorage(uri.removeprefix("file://"))
    if uri.startswith("s3:"):
        from cluster.s3 import S3Storage  # takes a third of a second, and folders never need it

        return S3Storage(uri)
    raise StorageError(f"storage {uri!r}: the scheme {scheme!r} is unknown; use a folder's path or s3://bucket/prefix")


def checked_storage(uri: str, *, write: str | None) -> Storage:
    """Open a storage that is about to be used, and written to unless None: what is wrong shows within seconds."""
    storage = open_storage(uri)
    storage.check(write=write)
    return storage


class FolderStorage:
    """Objects as files. A temporary file beside the target is synced, then renamed into place."""

    def __init__(self, root: str) -> None:
        self.uri = str(Path(root).absolute())

    def check(self, *, write: str | None) -> None:
        """Raise where something else lies there, or nothing can be written; a missing folder is an empty one."""
        place, asked = self.path(write or ""), "read" if write is None else "written"
        there = next(folder for folder in (place, *place.parents) if folder.exists())
        if not there.is_dir() or not os.access(there, os.R_OK | os.X_OK | (0 if write is None else os.W_OK)):
            raise StorageError(f"storage {self.uri!r} cannot be {asked}: {there} is no folder that you may use so")

    def path(self, key: str) -> Path:
        """Where the object lies."""
        return Path(self.uri) / key

    def read(self, key: str) -> bytes | None:
        """Return the object, or None where there is none."""
        try:
            return self.path(key).read_bytes()
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
            return None
        except OSError as error:
            raise StorageError(f"storage {self.uri!r} cannot be read: {error}") from error

    def write(self, key: str, data: bytes) -> None:
        """Publish the object at once, replacing what was there."""
        self._temporary(key, data).replace(self.path(key))

    def create(self, key: str, data: bytes) -> bool:
        """Publish the object unless there is one; say whether this call made it."""
        temporary = self._temporary(key, data)
        try:
            os.link(temporary, self.path(key))
        except FileExistsError:
            return False
        finally:
            temporary.unlink()
        return True

    def delete(self, key: str) -> None:
        """Remove the object if there is one."""
        self.path(key).unlink(missing_ok=True)

    def keys(self, prefix: str) -> Iterator[str]:
        """All keys below `prefix/`, sorted; files still being written are not objects."""
        root = Path(self.uri)
        found = (path for path in (root / prefix).rglob("*") if path.is_file() and is_object(path.name))
        yield from sorted(path.relative_to(root).as_posix() for path in found)

    def objects(self, prefix: str) -> Iterator[Stored]:
        """All objects below `prefix/`, sorted by key; one that goes away meanwhile is none."""
        for key in self.keys(prefix):
            with contextlib.suppress(FileNotFoundError):
                found = self.path(key).stat()
                yield Stored(key, found.st_size, found.st_mtime)

    def _temporary(self, key: str, data: bytes) -> Path:
        folder = self.path(key).parent
        try:
            folder.mkdir(parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(dir=folder, prefix=".writing-")
            with os.fdopen(descriptor, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise StorageError(f"storage {self.uri!r} cannot be written: {error}") from error
        return Path(name)
