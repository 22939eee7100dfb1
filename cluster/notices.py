"""Notices that a node is about to go: told to Ray by a process beside each worker, heard by the processes that train.

Whoever takes a node back tells Ray so by draining it: `python -m cluster notices` where the cloud gives notice, `ray
start --block` where it gets SIGTERM, `ray drain-node` by hand. Ray then starts nothing more there, and ends its node as
soon as nothing runs on it any more.
"""

import json
import os
import threading
import time
from collections.abc import Callable
from datetime import datetime
from functools import cache
from http import HTTPStatus
from typing import TypeVar
from urllib.error import HTTPError
from urllib.request import ProxyHandler, Request, build_opener

ASK_SECONDS = 2.0
"""How often Ray is asked whether the node of a process is draining; each time takes it about a millisecond."""
POLL_SECONDS = 5.0
"""How often the cloud is asked; Amazon gives notice two minutes before."""
ANSWER_SECONDS = 2.0
DRAIN_SECONDS = 10.0

T = TypeVar("T")
Say = Callable[[str], None]


class NoticeError(Exception):
    """Notices cannot be had, or cannot be told to Ray."""


class Notice:
    """Whether the node of this process is about to go. A thread asks, so that looking costs nothing."""

    def __init__(self, ask: Callable[[], float | None], *, every: float = ASK_SECONDS) -> None:
        self.until = 0.0
        """When the node goes, in Unix time; 0 where that is not known."""
        self._ask, self._every, self._given = ask, every, threading.Event()
        threading.Thread(target=self._watch, daemon=True).start()

    def given(self) -> bool:
        """Whether there is one; it is never taken back."""
        return self._given.is_set()

    def _watch(self) -> None:
        while (until := self._ask()) is None:
            time.sleep(self._every)
        self.until = until
        self._given.set()

    def __str__(self) -> str:
        """E.g. `10.0.0.12, which goes in 118 s`."""
        from ray.util import get_node_ip_address  # only inside a session

        return f"{get_node_ip_address()}, which goes" + (f" in {self.until - time.time():.0f} s" if self.until else "")


@cache
def notice() -> Notice:
    """What this process, a worker of Ray, is told."""
    import ray  # only inside a session

    here = ray.get_runtime_context().get_node_id()
    return Notice(lambda: draining().get(here))


def draining() -> dict[str, float]:
    """The nodes that are about to go: until when each, in Unix time, 0 where that is not known."""
    from ray._private.state import state  # only inside a session

    return {node: milliseconds / 1000 for node, milliseconds in state.get_draining_nodes().items()}


def drain(address: str, *, until: float, why: str) -> str:
    """Tell Ray that its node at an address, nothing for this machine's, goes at a Unix time, 0 where that is not known.

    Returns what was told, in a line.
    """
    from ray._private.services import canonicalize_bootstrap_address_or_die, get_node_ip_address
    from ray._raylet import GcsClient
    from ray.core.generated.autoscaler_pb2 import DRAIN_NODE_REASON_PREEMPTION
    from ray.core.generated.gcs_pb2 import GcsNodeInfo
    from ray.exceptions import RayError

    try:
        head = canonicalize_bootstrap_address_or_die(None)
        client, here = GcsClient(address=head), address or get_node_ip_address(head)
        known = client.get_all_node_info(timeout=DRAIN_SECONDS).values()
        alive = [node for node in known if node.state == GcsNodeInfo.ALIVE]
        nodes = [node.node_id.hex() for node in alive if node.node_manager_address == here]
        answers = [
            client.drain_node(node, DRAIN_NODE_REASON_PREEMPTION, why, int(until * 1000), timeout=DRAIN_SECONDS)
            for node in nodes
        ]
    except (RayError, OSError, ValueError) as error:
        raise NoticeError(f"Ray cannot be told ({str(error).strip().splitlines()[0]})") from error
    refused = [message for accepted, message in answers if not accepted]
    if refused or not answers:
        raise NoticeError(f"Ray at {head} has no node at {here}" if not answers else f"Ray refuses ({refused[0]})")
    return f"{why}: the Ray of {head} starts nothing more at {here}, and what trains there leaves"


class Metadata:
    """What Amazon tells a machine of itself, by version 2 of its service: every question carries a token."""

    def __init__(self, endpoint: str = "") -> None:
        named = endpoint or os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT", "")
        self.endpoint = (named or "http://169.254.169.254").rstrip("/")
        self._opener = build_opener(ProxyHandler({}))  # the address means this very machine
        self._token = ""

    def reclaimed(self) -> float | None:
        """When this machine is taken back, in Unix time; None while nobody wants it."""
        try:
            self._token = self._token or self._new_token()
            found = json.loads(self._get("/latest/meta-data/spot/instance-action", self._token))
            return datetime.fromisoformat(found["time"]).timestamp()
        except HTTPError as error:
            if error.code == HTTPStatus.NOT_FOUND:
                return None
            self._token = ""  # it has expired, or the machine was put to sleep meanwhile
            raise NoticeError(f"{self.endpoint} answers {error.code}") from error
        except OSError as error:
            raise NoticeError(f"{self.endpoint} does not answer ({error})") from error
        except (ValueError, KeyError, TypeError) as error:
            raise NoticeError(f"{self.endpoint} answers what is no notice ({error!r})") from error

    def _new_token(self) -> str:
        lives = {"X-aws-ec2-metadata-token-ttl-seconds": "21600"}
        return self._answer(Request(f"{self.endpoint}/latest/api/token", method="PUT", headers=lives))  # noqa: S310

    def _get(self, path: str, token: str) -> str:
        return self._answer(Request(self.endpoint + path, headers={"X-aws-ec2-metadata-token": token}))  # noqa: S310

    def _answer(self, request: Request) -> str:
        with self._opener.open(request, timeout=ANSWER_SECONDS) as answer:
            return str(answer.read().decode())


def attend(
    reclaimed: Callable[[], float | None], tell: Callable[[float], T], *, ending: threading.Event, say: Say
) -> T:
    """Wait until this machine is taken back, or `ending` is set, and tell Ray; what does not work is tried again.

    Once `ending` is set Ray is told a last time, and a NoticeError says where that did not work.
    """
    until = _insist(lambda: 0.0 if ending.is_set() else reclaimed(), last=lambda: False, ending=ending, say=say)
    return _insist(lambda: tell(until), last=ending.is_set, ending=ending, say=say)


def _insist(ask: Callable[[], T | None], *, last: Callable[[], bool], ending: threading.Event, say: Say) -> T:
    """Ask until there is an answer, or that was the last time. What troubles it is said once."""
    trouble = ""
    while True:
        final = last()
        try:
            if (answer := ask()) is not None:
                return answer
            trouble = ""
        except NoticeError as error:
            if final:
                raise
            if str(error) != trouble:
                say(f"{error}; tried again every {POLL_SECONDS:g} s")
            trouble = str(error)
        ending.wait(POLL_SECONDS)
