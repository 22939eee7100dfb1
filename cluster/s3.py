"""Objects in a bucket of any S3-compatible server.

A storage knows its address and nothing else: every process finds endpoint and credentials for itself, and none travel.
"""

import hashlib
import random
import re
import secrets
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from functools import cache
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError, ReadTimeoutError

from cluster.s3_client import CUT_SHORT, client, code_of, is_busy, reason, status_of
from cluster.s3_headers import ENCRYPTION, checksum, encryption, kind
from cluster.s3_watch import spoilt
from cluster.stored import Fetched, StorageError, Stored, is_object

TRIES = 8
"""How often an object is asked for that arrives cut short or changed, and a contested creation is tried."""
WHOLE_BYTES = 1 << 26
"""Larger objects are sent in parts."""
PART_BYTES, PARTS_AT_ONCE = 1 << 24, 4
PROBE = ".conditional-put"
"""An empty object that exists, for asking the server not to replace it."""


class _SpoiltError(Exception):
    """An object did not arrive as it was sent."""


class S3Storage:
    """Objects below `s3://bucket/prefix`, published whole by a PUT, with a checksum that every GET is held against."""

    def __init__(self, uri: str) -> None:
        self.bucket, self.root = _parsed(uri)
        self.uri = f"s3://{self.bucket}/{self.root}".rstrip("/")
        encryption()  # refused now where it makes no sense

    def __reduce__(self) -> tuple[type["S3Storage"], tuple[str]]:
        """Travel as an address."""
        return S3Storage, (self.uri,)

    def check(self, *, write: str | None) -> None:
        """Raise within seconds where it cannot be listed or written below a prefix; a busy server is no reason."""
        with self._asked("listed", ""), _unless_busy():
            client(hasty=True).list_objects_v2(Bucket=self.bucket, Prefix=self._below(""), MaxKeys=1)
        if write is not None:
            with self._asked("written", write), _unless_busy(), suppress(ReadTimeoutError):  # it was just there
                _probe(client(hasty=True), self.bucket, self._path("/".join(filter(None, (write, PROBE)))))

    def read(self, key: str) -> bytes | None:
        """Return the object, or None where there is none."""
        found = self.fetch(key)
        return None if found is None else found.data

    def fetch(self, key: str, *, known: str = "") -> Fetched | None:
        """Return the object and its tag, without its bytes where it is the one whose tag is known; None for none."""
        with self._asked("read", key):
            for tried in range(1, TRIES):
                with suppress(_SpoiltError):
                    return self._get(key, known)
                spoilt(tried)
                _pause()
            return self._get(key, known)

    def url(self, key: str) -> str:
        """Where the object lies, with the server: what tells it from all others."""
        with self._asked("read", key):
            return f"{client().meta.endpoint_url}/{self.bucket}/{self._path(key)}"

    def write(self, key: str, data: bytes) -> None:
        """Publish the object at once, replacing what was there."""
        with self._asked("written", key):
            if len(data) <= WHOLE_BYTES:
                self._put(key, data, token=_new_token())
            else:
                self._put_in_parts(key, data, token=_new_token())

    def create(self, key: str, data: bytes) -> bool:
        """Publish the object unless there is one; say whether this call made it.

        An answer that is lost makes the client ask again, and meet its own object: the token tells whose it is.
        """
        token = _new_token()
        with self._asked("created", key):
            if not _has_conditional_put(self.bucket, self._path(PROBE)):
                raise StorageError(
                    f"{self.uri}: its server replaces objects that it is asked to keep (If-None-Match is ignored), "
                    "so runs cannot share work; use a server with conditional writes, or a folder"
                )
            for _ in range(TRIES):
                if self._put_if_absent(key, data, token=token):
                    return True
                holder = self._token(key)
                if holder is not None:
                    return holder == token
                _pause()  # whoever was there is gone again, or two came at the very same time
        return False

    def delete(self, key: str) -> None:
        """Remove the object if there is one."""
        with self._asked("deleted", key):
            client().delete_object(**self._address(key))

    def keys(self, prefix: str) -> Iterator[str]:
        """All keys below `prefix/`, sorted."""
        for found in self.objects(prefix):
            yield found.key

    def objects(self, prefix: str) -> Iterator[Stored]:
        """All objects below `prefix/`, sorted by key."""
        with self._asked("listed", prefix):
            pages = client().get_paginator("list_objects_v2").paginate(Bucket=self.bucket, Prefix=self._below(prefix))
            entries = [entry for page in pages for entry in page.get("Contents", ())]
        own = len(self._path("x")) - 1
        found = [Stored(entry["Key"][own:], entry["Size"], entry["LastModified"].timestamp()) for entry in entries]
        # Not every server sorts by bytes: to some `a/b` comes before `a-b`, for `a` is a folder.
        yield from sorted(one for one in found if is_object(one.key))

    def _path(self, key: str) -> str:
        """Where the object lies in the bucket."""
        return "/".join(filter(None, (self.root, key)))

    def _below(self, prefix: str) -> str:
        """What the paths of all objects below a prefix begin with."""
        return f"{self._path(prefix.rstrip('/'))}/".lstrip("/")

    def _get(self, key: str, known: str) -> Fetched | None:
        conditions = {"IfNoneMatch": known} if known else {}
        try:
            answer = client().get_object(**self._address(key), **conditions)
        except ClientError as error:
            if code_of(error) == "NoSuchKey":
                return None
            if status_of(error) == 304:
                return Fetched(known, None)
            raise
        try:
            data: bytes = answer["Body"].read()
        except CUT_SHORT as error:
            raise _SpoiltError("its answer breaks off") from error
        sent = answer["Metadata"].get("sha256")
        if sent is not None and sent != hashlib.sha256(data).hexdigest():  # what others put there has none
            raise _SpoiltError("its bytes differ from the SHA-256 that was written with it; delete it to make it again")
        return Fetched(answer.get("ETag", ""), data)

    def _put(self, key: str, data: bytes, *, token: str, **conditions: str) -> None:
        encrypted = encryption()
        answer = client().put_object(
            **self._address(key),
            Body=data,
            Metadata={"sha256": hashlib.sha256(data).hexdigest(), "token": token},
            ChecksumCRC32=checksum(data),
            **kind(key),
            **encrypted,
            **conditions,
        )
        if encrypted and answer.get("ServerSideEncryption") != encrypted["ServerSideEncryption"]:
            raise StorageError(f"{self.uri}/{key}: its server did not encrypt it as {ENCRYPTION} asks; use another")

    def _put_if_absent(self, key: str, data: bytes, *, token: str) -> bool:
        try:
            self._put(key, data, token=token, IfNoneMatch="*")
        except ClientError as error:
            if not _was_contested(error):
                raise
            return False
        return True

    def _put_in_parts(self, key: str, data: bytes, *, token: str) -> None:
        address, metadata = self._address(key), {"sha256": hashlib.sha256(data).hexdigest(), "token": token}
        begun = client().create_multipart_upload(**address, Metadata=metadata, **encryption())
        upload = address | {"UploadId": begun["UploadId"]}
        with ExitStack() as undo:
            undo.callback(_abort, upload)
            starts = range(0, len(data), PART_BYTES)
            with ThreadPoolExecutor(PARTS_AT_ONCE) as pool:
                parts = list(pool.map(lambda start: _send_part(upload, data, start), starts))
            try:
                client().complete_multipart_upload(**upload, MultipartUpload={"Parts": parts})
            except ClientError as error:
                # Where an answer was lost, the second request finds the upload finished.
                if code_of(error) != "NoSuchUpload" or self._token(key) != token:
                    raise
            undo.pop_all()

    def _token(self, key: str) -> str | None:
        """Who wrote an object, None where there is none."""
        try:
            return str(client().head_object(**self._address(key))["Metadata"].get("token", ""))
        except ClientError as error:
            if status_of(error) == 404:
                return None
            raise

    def _address(self, key: str) -> dict[str, str]:
        return {"Bucket": self.bucket, "Key": self._path(key)}

    @contextmanager
    def _asked(self, what: str, key: str) -> Iterator[None]:
        """Turn whatever fails into one line."""
        try:
            yield
        except (BotoCoreError, ClientError, _SpoiltError) as error:
            raise StorageError(f"s3://{self.bucket}/{self._path(key)} cannot be {what}: {reason(error)}") from error


def _parsed(uri: str) -> tuple[str, str]:
    """Bucket and prefix."""
    if "@" in uri:  # not repeated: it may hold a secret
        raise StorageError("storage: an s3:// address holds no credentials; they belong into the environment or ~/.aws")
    bucket, _, root = uri.removeprefix("s3://").partition("/")
    if not re.fullmatch(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]", bucket):
        raise StorageError(f"storage {uri!r}: {bucket!r} is not the name of a bucket; use s3://bucket/prefix")
    root = root.rstrip("/")
    if "?" in root or any(step in ("", ".", "..") for step in root.split("/") if root):
        raise StorageError(f"storage {uri!r}: {root!r} is not a prefix; use s3://bucket/prefix, and AWS_ENDPOINT_URL")
    return bucket, root


@contextmanager
def _unless_busy() -> Iterator[None]:
    """Let pass what later requests have the patience for."""
    try:
        yield
    except ClientError as error:
        if not is_busy(error) or code_of(error) == "500":  # what boto3 makes of a page for people
            raise


@cache
def _has_conditional_put(bucket: str, probe: str) -> bool:
    """Whether the server keeps an object when asked to; some ignore the condition, and replace it.

    There nobody can be told to be first: whoever reads back what was written finds it, until the next one writes.
    """
    for _ in range(2):  # the first may be the one that makes the probe
        try:
            made = _probe(client(), bucket, probe)
        except ClientError as error:
            if status_of(error) == 501:
                return False
            raise
        if not made:
            return True
    return False


def _probe(asked: Any, bucket: str, probe: str) -> bool:
    """Make an empty object unless it is there; say whether it was made."""
    try:
        asked.put_object(Bucket=bucket, Key=probe, Body=b"", IfNoneMatch="*", **encryption())
    except ClientError as error:
        if _was_contested(error):
            return False
        raise
    return True


def _was_contested(error: ClientError) -> bool:
    """Whether an object was there, or two requests for one key were on their way at once."""
    return status_of(error) in (409, 412)


def _send_part(upload: dict[str, str], data: bytes, start: int) -> dict[str, Any]:
    part, number = data[start : start + PART_BYTES], start // PART_BYTES + 1
    answer = client().upload_part(**upload, PartNumber=number, Body=part)
    return {"PartNumber": number, "ETag": answer["ETag"]}


def _abort(upload: dict[str, str]) -> None:
    with suppress(BotoCoreError, ClientError):  # what stops the upload may stop this too
        client(hasty=True).abort_multipart_upload(**upload)


def _new_token() -> str:
    return secrets.token_hex(16)


def _pause() -> None:
    time.sleep(random.random())  # noqa: S311 (no secret)
