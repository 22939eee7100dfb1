"""What a request that makes an object says of it, beside its bytes."""

import base64
import os
import re
import zlib
from pathlib import PurePosixPath

from cluster.stored import StorageError

ENCRYPTION = "SSKT_S3_ENCRYPTION"
"""The variable that says how objects are encrypted where the bucket's own rule is not enough."""
CONTENT_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".md": "text/markdown; charset=utf-8",
    ".csv": "text/csv; charset=utf-8",
    ".json": "application/json",
}


def encryption() -> dict[str, str]:
    """What a request that makes an object asks of the server; nothing where the bucket's own rule decides."""
    chosen = os.environ.get(ENCRYPTION, "")
    found = re.fullmatch(r"(AES256)|(aws:kms)(?:=([\w:/+=,.@-]+))?", chosen, re.ASCII)
    if chosen and found is None:
        raise StorageError(f"{ENCRYPTION} is {chosen!r}; it has to be AES256, aws:kms, or aws:kms=KEY")
    algorithm, key = (found[1] or found[2], found[3]) if found else (None, None)
    asked = {"ServerSideEncryption": algorithm, "SSEKMSKeyId": key}
    return {name: value for name, value in asked.items() if value}


def checksum(data: bytes) -> str:
    """What the server holds a body against as it comes. On plain HTTP the signature covers the body as well.

    Readers check a SHA-256; for the journey alone a quick sum is enough.
    """
    return base64.b64encode(zlib.crc32(data).to_bytes(4, "big")).decode()


def kind(key: str) -> dict[str, str]:
    """What a browser is told of an object that people open there."""
    kind = CONTENT_TYPES.get(PurePosixPath(key).suffix)
    return {"ContentType": kind} if kind else {}
