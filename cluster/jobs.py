"""Ray's Jobs API: what runs on a cluster, asked and told through its dashboard."""

import logging
import os
import re
import tempfile
import time
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

PREFIX = "sskt-"
"""What the names of this project's jobs begin with."""
ADDRESS = "http://127.0.0.1:8265"
"""Where Ray's dashboard listens on the head, and `ray dashboard` and `kubectl port-forward` on other machines."""
FIRST_SECONDS, SECONDS = (3.0, 5.0), (3.0, 30.0)
"""To connect, and to answer: at the first contact, and later on, where a busy head may take its time."""
_TALKATIVE = ("dashboard.modules.dashboard_sdk", "dashboard.modules.job.sdk", "_private.runtime_env.packaging")


class JobsError(Exception):
    """What a person has to correct: a file, an address, a token, a name."""


class UnreachableError(Exception):
    """The cluster does not answer; it may later."""


class State(StrEnum):
    """How far a job is."""

    WAITING = "waiting"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def alive(self) -> bool:
        """Whether it has not ended."""
        return self in (State.WAITING, State.RUNNING)


_STATES = {
    "PENDING": State.WAITING,
    "RUNNING": State.RUNNING,
    "SUCCEEDED": State.SUCCEEDED,
    "FAILED": State.FAILED,
    "STOPPED": State.CANCELLED,
}


@dataclass(frozen=True, kw_only=True)
class Job:
    """What a cluster says of a job."""

    name: str
    verb: str
    experiment: str
    state: State
    started: float
    ended: float | None = None
    exit_code: int | None = None
    """None where it has not ended, or died without saying why."""
    message: str = ""
    """Why it waits or has failed, in one line."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """A command on an experiment file, which goes along; the machines have all else."""

    verb: str
    file: str
    """Name of the experiment file: reports are called after it."""
    text: bytes
    command: str
    """As a shell reads it."""
    name: str
    """The same for the same command on the same text."""


def usual_address() -> str:
    """The dashboard that the environment names, as Ray's own commands understand it."""
    named = (os.environ.get(name, "") for name in ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS"))
    return next((address for address in named if address.startswith(("http://", "https://"))), ADDRESS)


class Jobs:
    """The jobs of one cluster. Whatever is wrong becomes a JobsError, or an UnreachableError where it may pass."""

    def __init__(self, address: str) -> None:
        self.address = checked_address(address)
        try:
            with self._plainly():
                self._client = _connect(self.address)
        except UnreachableError as error:
            todo = "give the address of its dashboard by --address, or open the tunnel to it (docs/cluster.md)"
            raise JobsError(f"{error}; {todo}") from error
        self._client.seconds = SECONDS

    def all(self) -> list[Job]:
        """Jobs of this project, the oldest first."""
        with self._plainly():
            there = self._client.list_jobs()
        ours = [_job(details) for details in there if (details.submission_id or "").startswith(PREFIX)]
        return sorted(ours, key=lambda job: job.started)

    def get(self, name: str) -> Job | None:
        """What is known of a job; None where the cluster does not know it."""
        return next((job for job in self.all() if job.name == name), None)

    def send(self, name: str, order: Order) -> None:
        """Start a job, unless it is there already. Of this machine it gets the experiment file, and nothing else."""
        try:
            with self._plainly(), tempfile.TemporaryDirectory() as folder:
                Path(folder, order.file).write_bytes(order.text)
                self._client.submit_job(
                    submission_id=name,
                    entrypoint=order.command,
                    runtime_env={"working_dir": folder},
                    metadata={"verb": order.verb, "experiment": order.file},
                )
        except UnreachableError:
            if self.get(name) is None:  # else another was faster, or the answer alone was lost
                raise

    def stop(self, name: str) -> None:
        """Ask a job to end."""
        with self._plainly():
            self._client.stop_job(name)

    async def log(self, name: str) -> AsyncIterator[str]:
        """What a job prints, from its very beginning, in pieces, till it ends or the connection breaks."""
        import aiohttp

        try:
            async for text in self._client.tail_job_logs(name):
                yield text
        except (aiohttp.ClientError, RuntimeError, OSError) as error:
            raise UnreachableError(f"the log of {name} breaks off: {error}") from error

    @contextmanager
    def _plainly(self) -> Iterator[None]:
        """Say in one line what Ray and requests raise."""
        import requests
        from ray.exceptions import AuthenticationError

        try:
            yield
        except AuthenticationError as error:
            raise JobsError(_about_token(self.address, str(error))) from error
        except (requests.RequestException, ConnectionError) as error:
            raise UnreachableError(f"{self.address} does not answer as a Ray dashboard") from error
        except RuntimeError as error:
            status, why = _refusal(str(error))
            kind = JobsError if 400 <= status < 500 else UnreachableError
            raise kind(f"{self.address} answers: {why}") from error


def checked_address(address: str) -> str:
    """The address without a trailing slash, if it can be that of a dashboard."""
    try:
        parts = urlsplit(address)
        right = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        right = False
    if not right:
        raise JobsError(f"--address {address!r} is no dashboard's; write it as http://HOST:8265")
    return address.rstrip("/")


def _connect(address: str) -> Any:
    """Ray's own client; it alone knows how the token travels and how a folder is sent."""
    from ray.job_submission import JobSubmissionClient  # takes a second

    class Client(JobSubmissionClient):
        """One that does not wait for ever, as Ray's does."""

        seconds = FIRST_SECONDS

        def _do_request(self, *request: Any, **options: Any) -> Any:
            return super()._do_request(*request, timeout=self.seconds, **options)

    for name in _TALKATIVE:
        logging.getLogger(f"ray.{name}").setLevel(logging.ERROR)
    os.environ["RAY_API_SERVER_ADDRESS"] = address  # else RAY_ADDRESS, where it is set, overrides the argument
    try:
        return Client(address)
    except (KeyError, TypeError, ValueError) as error:
        raise ConnectionError(address) from error  # some other server, which answers something else


def _job(details: Any) -> Job:
    state, said = _STATES[details.status.value], details.metadata or {}
    return Job(
        name=details.submission_id,
        verb=said.get("verb", ""),
        experiment=said.get("experiment", ""),
        state=state,
        started=(details.start_time or 0) / 1000,
        ended=details.end_time / 1000 if details.end_time else None,
        exit_code=details.driver_exit_code,
        message=essence(details.message or "") if state in (State.WAITING, State.FAILED) else "",
    )


def essence(message: str) -> str:
    """The line that says what happened: the last that speaks of an error, else the last."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    return next((line for line in reversed(lines) if "error: " in line), lines[-1] if lines else "")


def _refusal(message: str) -> tuple[int, str]:
    """Status, or 0, and one line of what Ray's client says of an answer that is an error."""
    found = re.search(r"status code (\d+): (.*)", message, re.S)
    return (int(found[1]), essence(found[2].removesuffix("."))) if found else (0, essence(message))


def _about_token(address: str, error: str) -> str:
    """Whether a token is missing, unreadable or wrong, and which variable is meant."""
    name = "RAY_AUTH_TOKEN" if os.environ.get("RAY_AUTH_TOKEN") else "RAY_AUTH_TOKEN_PATH"
    if error.startswith("Authentication required"):
        return f"{address} asks for a token; set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH to the file that holds it"
    if error.startswith("Authentication failed"):
        return f"{address} refuses the token of {name}; take the one its head was started with"
    return f"no token can be read ({essence(error)}); set RAY_AUTH_TOKEN_PATH to the file that holds the cluster's"


def to_table(jobs: Sequence[Job], *, now: float | None = None) -> str:
    """A line for each job, below a heading."""
    rows = [("name", "verb", "experiment", "state", "started", "duration", "message")]
    for job in jobs:
        started = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(job.started))
        lasted = timedelta(seconds=int((job.ended or now or time.time()) - job.started))
        rows.append((job.name, job.verb, job.experiment, job.state, started, str(lasted), job.message))
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)
    return "\n".join(line.rstrip() for line in lines)
