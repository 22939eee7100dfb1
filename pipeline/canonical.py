"""One spelling of every value, and the hash of it: the base of all ids and keys."""

import hashlib
import json
import zlib
from dataclasses import asdict, is_dataclass
from typing import Any


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces; dataclasses count as their fields."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, default=_fields, allow_nan=False
    )


def plain(value: Any) -> Any:
    """The value as it comes back from storage: dataclasses as mappings, tuples as lists."""
    return json.loads(canonical(value))


def digest(value: Any) -> str:
    """Short hash of a value's canonical spelling."""
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:16]


def seal(value: Any) -> bytes:
    """The value's canonical spelling on one line, its checksum on the next: a file that tells when it is damaged."""
    body = canonical(value).encode()
    return body + f"\n{zlib.crc32(body):08x}\n".encode()


def unseal(data: bytes) -> Any:
    """Return what was sealed; raise ValueError for anything else."""
    body, newline, check = data.partition(b"\n")
    if not newline or check != f"{zlib.crc32(body):08x}\n".encode():
        raise ValueError("its checksum is wrong")
    return json.loads(body)


def _fields(value: Any) -> Any:
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    raise TypeError(f"{type(value).__name__} has no canonical spelling")
