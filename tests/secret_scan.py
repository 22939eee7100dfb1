"""Finds secrets in whatever was left behind, in all the forms in which programs write text down."""

import base64
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cached_property
from pathlib import Path
from urllib.parse import quote, quote_plus


class Scanner:
    """Looks for secrets, each known by a name that may be shown."""

    def __init__(self, secrets: Mapping[str, str]) -> None:
        self.secrets = secrets

    @cached_property
    def _patterns(self) -> dict[str, re.Pattern[bytes]]:
        return {
            f"{name} as {form}": re.compile(re.escape(written), re.IGNORECASE if form == "hex" else 0)
            for name, secret in self.secrets.items()
            for form, written in forms(secret)
        }

    def find(self, data: bytes) -> list[str]:
        """Which secrets stand there, and how they are written."""
        return [said for said, pattern in self._patterns.items() if pattern.search(data)]

    def scan(self, folders: Iterable[Path], *, without: Iterable[Path] = ()) -> tuple[list[str], int]:
        """What was found below some folders, in names and contents, and how many files were read."""
        found, read, left_out = [], 0, set(without)
        for path in (path for folder in folders for path in folder.rglob("*")):
            found += [f"{said}, in the name of a file in {path.parent}" for said in self.find(os.fsencode(path.name))]
            if path.is_file() and not path.is_symlink() and path not in left_out:
                found += [f"{said}, in {path}" for said in self.find(path.read_bytes())]
                read += 1
        return found, read


def forms(secret: str) -> Iterator[tuple[str, bytes]]:
    """How a secret may be written."""
    data = secret.encode()
    yield "bytes", data
    yield "hex", data.hex().encode()
    for order in ("le", "be"):
        yield f"utf-16-{order}", secret.encode(f"utf-16-{order}")
    yield "JSON", json.dumps(secret)[1:-1].encode()
    yield "JSON with slashes escaped", json.dumps(secret)[1:-1].replace("/", "\\/").encode()
    for number, form in enumerate((quote(secret, safe=""), quote(secret), quote_plus(secret))):
        yield f"URL, {number}", form.encode()
        yield f"URL, {number}, lower case", re.sub("%..", lambda match: match[0].lower(), form).encode()
    for before in range(3):
        yield f"base64, {before} bytes into a group", _base64(data, before)
        yield f"base64 of URLs, {before} bytes into a group", _base64(data, before).translate(_OF_URLS)


_OF_URLS = bytes.maketrans(b"+/", b"-_")


def _base64(data: bytes, before: int) -> bytes:
    """The digits that depend on the data alone, wherever it begins in a group of three."""
    digits = base64.b64encode(bytes(before) + data)
    return digits[-(-8 * before // 6) : 8 * (before + len(data)) // 6]
