"""Who is making which shard now: claims on storage, so that several runs that want the same cache build it once.

caches/<id>/views-<first>-<stop>/shard-00000.claim     while the shard is being made; rewritten every few seconds

A claim that no longer changes is dead. Each observer measures that by a clock of its own: clocks of different machines
are never compared. It removes the dead claim, and whoever creates the next one has the shard. Where two observers do so
at once, or a builder wakes up after it was given up, work may be done twice, which is harmless: a builder whose claim
is no longer its own publishes nothing, and should two publish all the same, they publish the same bytes. A training
whose claim is no longer its own ends with the state that it then saves.
"""

import os
import secrets
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from cluster.metrics import count
from cluster.storage import Storage, StorageError
from pipeline.canonical import seal, unseal
from pipeline.planning.specs import Segment
from sskt.errors import SsktError

BEAT = 5.0
"""Seconds from one sign of life to the next: one small object for each shard that is being made."""
LEASE = 30.0
"""Seconds without one after which a builder counts as dead; several beats, for machines and storages stall."""


class TakenOverError(SsktError):
    """What was done under a claim is another's by now."""


def claim_key(segment: Segment, shard: int) -> str:
    """Key of the claim on a shard."""
    return f"{segment.prefix}/shard-{shard:05d}.claim"


@dataclass(kw_only=True)
class Claim:
    """A claim that was ours when it was made; others may have given it up since."""

    storage: Storage
    key: str
    builder: str = field(default_factory=lambda: secrets.token_hex(8))
    errand: str = ""
    """What is started anew, always for the same errand, where it died."""
    beats: int = 0
    lost: bool = False
    """Whether others were seen to have given it up."""
    seen: float = 0.0
    """When it was last known to be ours."""

    def take(self) -> bool:
        """Create it; say whether the shard was free."""
        self.seen = time.monotonic()
        return self.storage.create(self.key, self._content())

    def held(self) -> bool:
        """Whether it is still ours."""
        asked = time.monotonic()
        ours = _read(self.storage.read(self.key)).get("builder") == self.builder
        if ours:
            self.seen = asked
        elif not self.lost:
            self.lost = True
            count("sskt_claims_lost")
        return ours

    def insist(self) -> None:
        """Raise where others have it by now; ask the storage only where beats have failed, or come late."""
        late = time.monotonic() - self.seen > 2 * BEAT
        if self.lost or (late and not self.held()):
            raise TakenOverError(f"{self.key} was given up while it was out of reach, and others go on with it")

    def beat(self) -> None:
        """Give a sign of life; what was taken over stays as it is."""
        if self.held():
            self.beats += 1
            self.storage.write(self.key, self._content())

    def release(self) -> None:
        """Give it up; what was taken over stays as it is."""
        if self.held():
            self.storage.delete(self.key)

    def _content(self) -> bytes:
        said = {"builder": self.builder, "errand": self.errand, "beat": self.beats, "place": place()}
        return seal(said | {"pid": os.getpid()})


@contextmanager
def claimed(storage: Storage, keys: Iterable[str], *, errand: str = "") -> Iterator[dict[str, Claim]]:
    """Hold what is free of some claims until the block ends.

    Everybody takes them in the same order and stops at the first that is another's, so that of two who want the same
    outputs one gets them all and makes them in one pass.
    """
    claims: dict[str, Claim] = {}
    ended = threading.Event()
    beating = threading.Thread(target=_keep_beating, args=(claims, ended), daemon=True)
    try:
        for key in sorted(keys):
            claim = Claim(storage=storage, key=key, errand=errand)
            if not claim.take():
                break
            claims[key] = claim
        beating.start()
        yield claims
    finally:
        ended.set()
        if beating.is_alive():
            beating.join()  # a last beat after the release would leave a claim that nobody holds
        for claim in claims.values():
            claim.release()


def _keep_beating(claims: dict[str, Claim], ended: threading.Event) -> None:
    while not ended.wait(BEAT):
        for claim in claims.values():
            with suppress(OSError, StorageError):  # what cannot be written now may be written with the next beat
                claim.beat()


class Watch:
    """Tells living claims from dead ones, by whether they change while it looks.

    One for the errand of who looks is dead: nobody is sent a second time before the first was given up.
    """

    def __init__(self, storage: Storage, *, errand: str = "", clock: Callable[[], float] = time.monotonic) -> None:
        self._storage, self._errand, self._clock = storage, errand, clock
        self._seen: dict[str, tuple[bytes, float]] = {}

    def lives(self, key: str) -> bool:
        """Whether somebody is at work under a claim; one whose builder died is removed."""
        asked = self._clock()
        content, now = self._storage.read(key), self._clock()
        if content is None:
            return False
        before, since = self._seen.get(key, (content, now))
        # A storage that made us wait for the answer may have kept its builder from beating.
        since = since if content == before and now - asked < BEAT else now
        self._seen[key] = content, since
        ours = self._errand != "" and _read(content).get("errand") == self._errand
        if now - since < LEASE and not ours and not _died_here(content):
            return True
        if self._storage.read(key) == content:  # nobody has taken it over meanwhile
            self._storage.delete(key)
        return False


def _read(content: bytes | None) -> dict[str, Any]:
    """What a claim says; nothing where there is none, or none that can be read."""
    try:
        return {} if content is None else dict(unseal(content))
    except ValueError:
        return {}


def _died_here(content: bytes) -> bool:
    """Whether the builder was a process of this very machine and is no more: then there is nothing to wait for."""
    said = _read(content)
    if not place() or said.get("place") != place():
        return False
    try:
        state = Path(f"/proc/{said['pid']}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return True
    return state in "ZX"  # killed, and not yet buried by its parent


@cache
def place() -> str:
    """Where process ids mean the same: this machine since its start, this container. Nothing where that is unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{os.uname().nodename} {boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""
