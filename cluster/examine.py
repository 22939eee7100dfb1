"""Gathers what the doctor judges: one Ray task on every node, which says what it finds there."""

import contextlib
import os
import platform
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cluster.doctor import PACKAGES, ClusterFacts, Credentials, NodeFacts, StorageFacts, clock_off
from cluster.resources import node_resources
from cluster.session import is_local, start_session
from cluster.storage import Storage, StorageError, open_storage

PATIENCE = 180.0
"""Seconds for all nodes together: importing torch on a cold disk takes most of them."""
CONNECT_SECONDS = 3.0
PROBE_BYTES = 1 << 23
GPU_PROGRAM = """
import torch
count = torch.cuda.device_count()
for at in range(count):
    ones = torch.ones(512, 512, device=f"cuda:{at}")
    assert (ones @ ones).sum().item() == 512.0**3, f"device {at} multiplies wrongly"
print(count)
"""
"""For a process of its own: `cluster` never imports torch, and a broken driver may take its process along."""


class JoinError(Exception):
    """The cluster cannot be joined."""


@dataclass(frozen=True, kw_only=True)
class Questions:
    """What a node is asked beyond what it says of itself."""

    gpus: int
    offers: str
    object_store_bytes: int
    neighbours: Sequence[str]
    """host:port of what other nodes listen on."""
    storage: str
    """Its address, nothing to leave it alone."""
    place: str
    """Where in the storage to work; another's object lies at `place`/shared."""


def gather(*, storage: str = "", expected: int | None = None) -> ClusterFacts:
    """Join the cluster, or start one of this machine alone, and ask every node."""
    join()
    import ray
    from ray._private.worker import get_dashboard_url

    place = f"doctor/{secrets.token_hex(8)}"
    shared = open_storage(storage) if storage else None
    with contextlib.ExitStack() as afterwards:
        if shared is not None:
            with contextlib.suppress(StorageError):  # the nodes will say so, each for itself
                shared.check(write="doctor")
                shared.write(f"{place}/shared", b"the same everywhere")
                afterwards.callback(shared.delete, f"{place}/shared")
        said = ask([node for node in ray.nodes() if node["Alive"]], storage=storage, place=place)
    return ClusterFacts(
        nodes=[facts for facts in said.values() if isinstance(facts, NodeFacts)],
        silent={name: why for name, why in said.items() if isinstance(why, str)},
        expected=expected,
        dashboard=get_dashboard_url() or "",
        storage=storage,
    )


def join() -> None:
    """Start the session; raise JoinError where there is no cluster, instead of waiting for one as Ray does."""
    address = os.environ.get("RAY_ADDRESS", "")
    where = f"the cluster at RAY_ADDRESS={address}"
    if ":" in address and not answers(address.removeprefix("ray://")):
        raise JoinError(f"{where} does not answer")
    from ray.exceptions import RayError

    try:
        start_session()
    except (RayError, ConnectionError, RuntimeError, ValueError) as error:
        raise JoinError(f"{'a session of this machine' if is_local() else where}: {_first_line(error)}") from error


def ask(nodes: Sequence[Mapping[str, Any]], *, storage: str, place: str) -> dict[str, NodeFacts | str]:
    """What each node says, or why it says nothing, by name."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    asked, clocks = dict[str, Any](), dict[str, Callable[[], Any]]()
    for number, node in enumerate(nodes):
        name, gpus = node["NodeName"], int(node["Resources"].get("GPU", 0))
        name = f"{name} ({number})" if name in asked else name  # several on one machine, in tests
        questions = Questions(
            gpus=gpus,
            offers=str(node_resources(node)),
            object_store_bytes=int(node["Resources"].get("object_store_memory", 0)),
            neighbours=[address for other in nodes if other is not node for address in _listening(other)],
            storage=storage,
            place=f"{place}/{number}",
        )
        here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        options = {"num_cpus": 0, "max_retries": 0, "scheduling_strategy": here}
        asked[name] = ray.remote(say).options(**options, num_gpus=gpus).remote(name, questions)
        clocks[name] = ray.remote(read_clock).options(**options).remote
    ready, _ = ray.wait(list(asked.values()), num_returns=len(asked), timeout=PATIENCE)
    late = f"no answer within {PATIENCE:g} s: is it busy?"
    return {name: heard(told, clocks[name]) if told in ready else late for name, told in asked.items()}


def heard(told: Any, ask_clock: Callable[[], Any]) -> NodeFacts | str:
    """What a node said, and its clock, asked for now that it has a process ready; or why nothing came."""
    import ray
    from ray.exceptions import RayError

    try:
        facts: NodeFacts = ray.get(told)
        sent = time.time()
        clock = ray.get(ask_clock(), timeout=PATIENCE)
        return replace(facts, clock_off=clock_off(sent, clock, time.time()))
    except RayError as error:
        return _first_line(error)


def read_clock() -> float:
    """The time on the node that runs this."""
    return time.time()


def say(name: str, questions: Questions) -> NodeFacts:
    """What the node that runs this says of itself."""
    from ray._raylet import AuthenticationMode, get_authentication_mode

    disk = shutil.disk_usage(os.environ.get("RAY_TMPDIR", tempfile.gettempdir()))
    return NodeFacts(
        name=name,
        python=platform.python_version(),
        packages=versions(),
        gpus=questions.gpus,
        offers=questions.offers,
        gpu_problem=gpu_problem(questions.gpus) if questions.gpus else "",
        object_store_bytes=questions.object_store_bytes,
        shared_memory_bytes=shutil.disk_usage("/dev/shm").total if Path("/dev/shm").is_dir() else None,  # noqa: S108
        disk_bytes=disk.total,
        disk_free_bytes=disk.free,
        token=get_authentication_mode() == AuthenticationMode.TOKEN,
        unreachable=[address for address in questions.neighbours if not answers(address)],
        storage=probe(open_storage(questions.storage), questions.place) if questions.storage else None,
        credentials=_credentials() if questions.storage.startswith("s3:") else None,
    )


def versions() -> dict[str, str]:
    """Versions of the packages that are installed here."""
    found = {}
    for package in PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[package] = metadata.version(package)
    return found


def gpu_problem(wanted: int) -> str:
    """Multiply matrices on every device in a process of its own; what went wrong, or nothing."""
    command = [sys.executable, "-c", GPU_PROGRAM]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE / 2, check=False)  # noqa: S603
    except subprocess.TimeoutExpired:
        return f"torch did not finish within {PATIENCE / 2:g} s"
    if done.returncode:
        return f"torch fails ({(done.stderr.strip().splitlines() or ['killed'])[-1]})"
    usable = int(done.stdout.split()[-1])
    return "" if usable >= wanted else f"torch sees {usable} of {wanted}"


def answers(address: str) -> bool:
    """Whether somebody listens at host:port."""
    where = urlsplit(f"//{address}")
    try:
        socket.create_connection((where.hostname, where.port), timeout=CONNECT_SECONDS).close()
    except (OSError, ValueError):
        return False
    return True


def probe(storage: Storage, place: str) -> StorageFacts:
    """Do once what runs do all the time; say what went wrong, or how fast it was."""
    data, key = secrets.token_bytes(PROBE_BYTES), f"{place}/bytes"
    try:
        storage.check(write="doctor")
        problem = _misbehaviour(storage, place)
        begun = time.time()
        storage.write(key, data)
        written = time.time()
        there = next((found.written for found in storage.objects(place) if found.key == key), None)
        reading = time.time()
        whole = storage.read(key) == data
        read = time.time()
        storage.delete(key)
    except StorageError as error:
        return StorageFacts(problem=str(error))
    if problem or there is None or not whole:
        return StorageFacts(problem=problem or "what was written is not read back, or not listed")
    return StorageFacts(
        write_rate=PROBE_BYTES / max(written - begun, 1e-9),
        read_rate=PROBE_BYTES / max(read - reading, 1e-9),
        clock_off=clock_off(begun - 1, there, written),  # buckets know whole seconds
    )


def _misbehaviour(storage: Storage, place: str) -> str:
    """What the storage does otherwise than it should."""
    key, folder = f"{place}/once", place.rpartition("/")[0]
    created = storage.create(key, b"first"), storage.create(key, b"second")
    kept, shared = storage.read(key), storage.read(f"{folder}/shared")
    storage.delete(key)
    if created != (True, False) or kept != b"first":
        return "an object that was there is created again, so two runs would do the same work"
    if storage.read(key) is not None:
        return "what was deleted is still there"
    return "" if shared is not None else "what the driver wrote is not there: is it a folder of that machine alone?"


def _credentials() -> Credentials | None:
    from cluster.s3_client import credentials  # takes a third of a second, and folders need none

    if (found := credentials()) is None:
        return None
    found_by, ending = found
    return Credentials(found_by=found_by, expire_in=None if ending is None else ending - time.time())


def _listening(node: Mapping[str, Any]) -> list[str]:
    """What other nodes connect to."""
    ports = node["NodeManagerPort"], node["ObjectManagerPort"]
    return [f"{node['NodeManagerAddress']}:{port}" for port in ports]


def _first_line(error: BaseException) -> str:
    """The last cause of an error, in one line."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1].strip() if "Traceback" in str(error) or "ray::" in lines[0] else lines[0]
