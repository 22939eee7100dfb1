"""Real processes for the tests: run a command, kill it and everything it started."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).parent.parent


def start(*arguments: str) -> subprocess.Popen[str]:
    """Start `python -m pipeline` with its own output."""
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )


def finish(*arguments: str) -> tuple[int, str]:
    """Run `python -m pipeline` to its end: exit code and everything it printed."""
    process = start(*arguments)
    said, _ = process.communicate(timeout=900)
    return process.returncode, said


def descendants(pid: int) -> list[int]:
    """All living processes that a process has started, by way of others too."""
    parents: dict[int, int] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except OSError:
                continue
            parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
    found, frontier = [], [pid]
    while frontier:
        frontier = [child for child, parent in parents.items() if parent in frontier]
        found += frontier
    return found


def kill_when(process: subprocess.Popen[str], reached: Callable[[], bool], *, seconds: float = 120) -> None:
    """SIGKILL a process and all it started, as soon as something has happened."""
    deadline = time.monotonic() + seconds
    while not reached():
        assert process.poll() is None, f"ended before it could be killed:\n{process.stdout.read()}"
        assert time.monotonic() < deadline, "what was waited for did not happen"
        time.sleep(0.02)
    kill([process.pid, *descendants(process.pid)])
    process.wait()
    process.stdout.close()


def kill(pids: list[int]) -> None:
    """SIGKILL processes; those that are gone already do not matter."""
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
