"""Machines of our own for the tests: Linux namespaces on one switch, each with its own address, processes and memory.

A machine is a shell that sleeps and buries what dies: the first of its PID namespace, so that with it everything ends
that was started there, and with the tests the machine, whatever ends them. Nothing leaves the network 10.77.0.0/24,
which is in no other namespace. The files of this machine are theirs too, but for /dev/shm and /tmp/ray.
"""

import ctypes
import os
import re
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import pytest

from tests.processes import ROOT, descendants, kill

OWN = "/tmp/ray"  # noqa: S108
"""The folder that each machine has for itself."""
PROGRAMS = ("ip", "mount", "nsenter", "setpriv", "unshare")
# What a machine does when it is switched on; its arguments are its folder, its name, and where it sees that folder.
POWER_ON = """
hostname "$2" && mount -t tmpfs -o size=512m tmpfs /dev/shm && mount --bind "$1" "$3" && ip link set lo up \
&& echo ready && while sleep 1; do :; done
"""

HEAD, PORT = 1, 6379
HEALTH = dict(re.findall(r"(RAY_health_check_\w+)=(\w+)", (ROOT / "cluster" / "Dockerfile").read_text()))
"""How soon our own definitions give a machine up."""
COUNT = """
import ray, time
ray.init(logging_level="ERROR", log_to_driver=False)
while True:
    print(sum(node["Alive"] for node in ray.nodes()), flush=True)
    time.sleep(0.5)
"""


class Hosts:
    """Some machines, numbered from 0, until the block ends."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder, self.count = folder, count
        self._machines: dict[int, subprocess.Popen[str]] = {}
        self._switch: subprocess.Popen[str] | None = None
        self._started: list[subprocess.Popen[str]] = []

    def __enter__(self) -> "Hosts":
        try:
            self.up()
        except BaseException:
            self.down()
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.down()

    def up(self) -> None:
        """Make the switch, and switch all machines on."""
        self._switch = _asleep("unshare", "--net", "sh", "-c", "echo ready && exec sleep infinity")
        self._ask_switch("link", "add", "bridge", "type", "bridge")
        self._ask_switch("link", "set", "bridge", "up")
        for host in range(self.count):
            self.power_on(host)

    def power_on(self, host: int) -> None:
        """Switch a machine on, with nothing running on it."""
        home = self.home(host)
        home.mkdir(parents=True, exist_ok=True)
        Path(OWN).mkdir(exist_ok=True)
        spaces = ("--net", "--uts", "--ipc", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc")
        machine = _asleep("unshare", *spaces, "sh", "-c", POWER_ON, "sh", str(home), f"host{host}", OWN)
        self._machines[host] = machine
        inside = self._init(host)
        port = ("link", "add", f"port{host}", "type", "veth", "peer", "name", "eth0", "netns", str(inside))
        self._ask_switch(*port)
        self._ask_switch("link", "set", f"port{host}", "master", "bridge", "up")
        enter = ("nsenter", "--target", str(inside), "--net", "ip")
        _run(*enter, "address", "add", f"{self.address(host)}/24", "dev", "eth0")
        _run(*enter, "link", "set", "eth0", "up")

    def address(self, host: int) -> str:
        """The only one it has beside 127.0.0.1."""
        return f"10.77.0.{10 + host}"

    def home(self, host: int) -> Path:
        """What it sees as /tmp/ray and as its home."""
        return self.folder / f"host{host}"

    def exec(
        self, host: int, *command: str, environment: Mapping[str, str], log: Path | None = None
    ) -> subprocess.Popen[str]:
        """Start a command on a machine, its output in a file or to be read from it."""
        spaces = ("--net", "--uts", "--ipc", "--mount", "--pid", f"--wd={ROOT}")
        programs = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
        basic = {"PATH": programs, "HOME": str(self.home(host)), "TMPDIR": OWN, "LANG": "C.UTF-8"}
        with (log or Path(os.devnull)).open("a") as file:
            started = subprocess.Popen(
                ["nsenter", "--target", str(self._init(host)), *spaces, *command],
                stdout=file if log else subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env=basic | environment,
            )
        self._started.append(started)
        return started

    def cut(self, host: int) -> None:
        """Pull its plug out of the switch; all goes on that runs on it, and nobody hears of it."""
        self._ask_switch("link", "set", f"port{host}", "down")

    def heal(self, host: int) -> None:
        """Put it back."""
        self._ask_switch("link", "set", f"port{host}", "up")

    def kill(self, host: int) -> None:
        """Switch it off, as a power failure does."""
        self._ask_switch("link", "delete", f"port{host}")  # the kernel takes its time to remove it with its machine
        machine = self._machines.pop(host)
        kill([machine.pid, *descendants(machine.pid)])
        machine.communicate()

    def down(self) -> None:
        """Switch everything off; it takes its namespaces along."""
        for host in list(self._machines):
            self.kill(host)
        if self._switch is not None:
            kill([self._switch.pid])
            self._switch.communicate()
            self._switch = None
        for process in self._started:
            process.wait(30)
            if process.stdout is not None:
                process.stdout.close()

    @contextmanager
    def network(self, host: int) -> Iterator[None]:
        """Put this thread, and what it starts, on the network as that machine; nothing else of it is shared."""
        with Path("/proc/thread-self/ns/net").open() as here, Path(f"/proc/{self._init(host)}/ns/net").open() as there:
            _set_network(there.fileno())
            try:
                yield
            finally:
                _set_network(here.fileno())

    def _init(self, host: int) -> int:
        """The first process of a machine, as this one sees it."""
        return descendants(self._machines[host].pid)[0]

    def _ask_switch(self, *arguments: str) -> None:
        assert self._switch is not None
        _run("nsenter", "--target", str(self._switch.pid), "--net", "ip", *arguments)


class Lab:
    """Machines with Ray, and what they are told in the environment."""

    def __init__(self, hosts: Hosts, store: dict[str, str]) -> None:
        self.hosts, self.rays = hosts, dict[int, subprocess.Popen[str]]()
        token = hosts.folder / "token"
        token.touch(mode=0o600)
        token.write_text(secrets.token_hex(32))
        self.environment = {
            **store,
            **HEALTH,
            "OMP_NUM_THREADS": "1",
            "RAY_ADDRESS": f"{hosts.address(HEAD)}:{PORT}",
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(token),
            "RAY_USAGE_STATS_ENABLED": "0",
        }

    def start_anew(self, *hosts: int) -> None:
        """Switch machines off and on, and start Ray on them."""
        for host in hosts:
            self.hosts.kill(host)
            self.hosts.power_on(host)
        for host in hosts:
            self.start_ray(host)

    def start_ray(self, host: int, *, without: str = "nothing") -> None:
        """Start Ray on a machine as a person does, and wait until it runs."""
        head = ("--head", "--port", str(PORT), "--num-cpus", "0", "--include-dashboard", "false")
        role = head if host == HEAD else ("--address", self.environment["RAY_ADDRESS"], "--num-cpus", "1")
        place = ("--node-ip-address", self.hosts.address(host), "--object-store-memory", "100000000", "--block")
        told = {name: value for name, value in self.environment.items() if without not in name}
        log = self.hosts.folder / f"ray-{host}-{secrets.token_hex(4)}"
        self.rays[host] = self.hosts.exec(host, "ray", "start", *role, *place, environment=told, log=log)
        until(lambda: "Ray runtime started" in log.read_text(), f"Ray on {host}", seconds=90, alive=self.rays[host])
        if host == HEAD:
            self.counted = self.hosts.folder / f"machines-{secrets.token_hex(4)}"
            self.hosts.exec(HEAD, "python", "-c", COUNT, environment=told, log=self.counted)

    def drive(self, *command: str) -> subprocess.Popen[str]:
        """Start a command on the head."""
        return self.hosts.exec(HEAD, "python", "-m", *command, environment=self.environment)

    def finish(self, *command: str) -> tuple[int, str]:
        """Run a command on the head to its end: exit code and everything it printed."""
        driver = self.drive(*command)
        said, _ = driver.communicate(timeout=600)
        return driver.returncode, said

    def lose(self, host: int) -> None:
        """Cut a machine off until Ray has given it up."""
        until(lambda: self.machines() == 3, "three machines", seconds=60)
        self.hosts.cut(host)
        until(lambda: self.machines() == 2, "the loss of a machine", seconds=120)

    def machines(self) -> int:
        """How many Ray counts."""
        lines = self.counted.read_text().split()
        return int(lines[-1]) if lines else 0

    def let_return(self, host: int, **changes: str) -> None:
        """Let a machine that was given up come back: its old Ray ends when it hears of that."""
        self.hosts.heal(host)
        self.wait_for_end(host)
        self.start_ray(host, **changes)

    def wait_for_end(self, host: int) -> None:
        """Wait until `ray start --block` ends by itself."""
        until(lambda: self.rays[host].poll() is not None, "the end of Ray", seconds=120)

    def shoot_raylet(self, host: int) -> None:
        """Kill the process by which a machine belongs to Ray."""
        started = descendants(self.rays[host].pid)
        kill([pid for pid in started if Path(f"/proc/{pid}/comm").read_text().strip() == "raylet"])
        self.wait_for_end(host)


@contextmanager
def hosts_of(folder: Path, count: int) -> Iterator[Hosts]:
    """Machines until the block ends; a test is skipped where there can be none."""
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if os.geteuid() or missing:
        pytest.skip(f"network namespaces need root and {', '.join(missing or PROGRAMS)}")
    refused = subprocess.run(["unshare", "--net", "--mount", "true"], capture_output=True, text=True, check=False)
    if refused.returncode:
        pytest.skip(f"this machine refuses namespaces: {refused.stderr.strip()}")
    with Hosts(folder, count) as hosts:
        yield hosts


def until(
    reached: Callable[[], object], what: str, *, seconds: float, alive: subprocess.Popen[str] | None = None
) -> None:
    """Wait for something; a command that ends before fails."""
    deadline = time.monotonic() + seconds
    while not reached():
        if alive is not None and alive.poll() is not None:
            raise AssertionError(f"{what} did not happen: {alive.stdout.read() if alive.stdout else alive.args}")
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds:g} s"
        time.sleep(0.1)


def _asleep(*command: str) -> subprocess.Popen[str]:
    """Start what says that it is ready and sleeps; it ends with this thread."""
    process = subprocess.Popen(["setpriv", "--pdeathsig", "KILL", *command], stdout=subprocess.PIPE, text=True)
    if process.stdout is None or process.stdout.readline() != "ready\n":
        kill([process.pid, *descendants(process.pid)])
        raise RuntimeError(f"{' '.join(command)} does not start")
    return process


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)


def _set_network(space: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.setns(space, 0):
        raise OSError(ctypes.get_errno(), "setns")
