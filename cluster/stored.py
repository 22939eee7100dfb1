"""What folders and buckets have in common: what is known of an object, which names are objects, how storages fail."""

from typing import NamedTuple


class StorageError(Exception):
    """The storage cannot be used as asked; the message names the address."""


class Stored(NamedTuple):
    """What is known of an object without reading it."""

    key: str
    bytes: int
    written: float
    """When, in seconds since 1970."""


class Fetched(NamedTuple):
    """An object as it came from its storage."""

    tag: str
    """What changes with the object."""
    data: bytes | None
    """None where it was asked for unless it has that tag, and it has."""


def is_object(key: str) -> bool:
    """Whether a key names an object: a leading dot marks the storage's own, a trailing slash a folder."""
    name = key.rpartition("/")[2]
    return bool(name) and not name.startswith(".")
