"""The verbs about jobs as a person calls them, on real heads that ask for a token."""

import json
import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest
import requests

from tests.processes import ROOT, descendants, kill

# Stands for the pipeline: says what it was asked and where it is, waits for a file, and ends as it is told.
TINY = """
import os, pathlib, sys, time, yaml
print("asked", sys.argv[1:], flush=True)
told = yaml.safe_load(pathlib.Path(sys.argv[4]).read_text())
print("here", sorted(os.listdir()), os.environ["RAY_ADDRESS"], "AWS_SECRET_ACCESS_KEY" in os.environ, flush=True)
run = told.get("runs") and len(os.listdir(told["runs"]))
if run is not None:
    pathlib.Path(told["runs"], str(run)).touch()
    print("run", run, flush=True)
for number in range(told.get("lines", 0)):
    print("line", number, flush=True)
while told.get("gate") and not os.path.exists(told["gate"]):
    time.sleep(0.05)
print(told.get("last", "error: nothing"), flush=True)
sys.exit(told.get("code", 0))
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


class Head:
    """A head with dashboard and token, where `python` is what the test says; it can be killed and started again."""

    def __init__(self, folder: Path, *, python: str) -> None:
        self.folder = folder
        (folder / "bin").mkdir()
        (folder / "bin" / "python").write_text(f'#!/bin/sh\nexec {python} "$@"\n')
        (folder / "bin" / "python").chmod(0o755)
        (folder / "token").write_text(secrets.token_hex(32))
        (folder / "wrong").write_text(secrets.token_hex(32))
        self.port, self.dashboard, self.agent, self.client = (free_port() for _ in range(4))
        self.address = f"http://127.0.0.1:{self.dashboard}"

    def environment(self, **changes: str) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(self.folder / "token")}
        return kept | token | {"RAY_USAGE_STATS_ENABLED": "0", "OMP_NUM_THREADS": "1"} | changes

    def start(self) -> None:
        command = [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", "--num-cpus=2"]
        command += [f"--port={self.port}", f"--dashboard-port={self.dashboard}", "--object-store-memory=100000000"]
        command += [f"--dashboard-agent-listen-port={self.agent}", f"--ray-client-server-port={self.client}"]
        path = f"{self.folder / 'bin'}:{os.environ['PATH']}"
        # Images have the project installed.
        environment = self.environment(RAY_TMPDIR=str(self.folder), PATH=path, PYTHONPATH=str(ROOT))
        with (self.folder / "log").open("w") as log:
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        wait_for(self.answers, why=lambda: (self.folder / "log").read_text())

    def answers(self) -> bool:
        headers = {"Authorization": f"Bearer {(self.folder / 'token').read_text()}"}
        try:
            return requests.get(f"{self.address}/api/jobs/", headers=headers, timeout=5).ok
        except requests.RequestException:
            return False

    def kill(self) -> None:
        kill([self.process.pid, *descendants(self.process.pid)])
        self.process.wait()

    def call(self, *arguments: str, **changes: str) -> subprocess.Popen[str]:
        """Start `python -m cluster`, whose lines can be read as they come."""
        command = [sys.executable, "-m", "cluster", *arguments, "--address", self.address]
        if "--" in arguments:
            at = command.index("--")
            command = [*command[:at], *command[-2:], *command[at:-2]]
        pipe = subprocess.PIPE
        environment = self.environment(**changes)
        return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=pipe, stderr=pipe, text=True)

    def finish(self, *arguments: str, **changes: str) -> tuple[int, str, str]:
        """Exit code, output and errors of `python -m cluster`."""
        process = self.call(*arguments, **changes)
        said, wrong = process.communicate(timeout=120)
        return process.returncode, said, wrong


def wait_for(reached: Callable[[], bool], *, why: Callable[[], str], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < deadline, why()
        time.sleep(0.05)


def make_head(python: str) -> Iterator[Head]:
    """A short path, for Ray's sockets have at most 107 letters."""
    with ExitStack() as afterwards:
        folder = Path(tempfile.mkdtemp(prefix="head"))
        afterwards.callback(shutil.rmtree, folder, ignore_errors=True)
        head = Head(folder, python=python)
        head.start()
        afterwards.callback(head.kill)
        yield head


@pytest.fixture(scope="module")
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Head]:
    tiny = tmp_path_factory.mktemp("tiny") / "tiny.py"
    tiny.write_text(TINY)
    yield from make_head(f"{sys.executable} {tiny}")


def experiment(folder: Path, **told: object) -> str:
    file = folder / "My experiment.yaml"
    file.write_text(json.dumps({"storage": "s3://bucket/prefix"} | told))
    return str(file)


def test_a_job_runs_beside_its_file_alone_and_its_log_comes_back_whole(head, tmp_path):
    (tmp_path / "other.txt").write_text("stays here")
    file = experiment(tmp_path, lines=2500)
    secret = {"AWS_SECRET_ACCESS_KEY": "theirs", "RAY_ADDRESS": "10.1.2.3:6379"}
    code, said, wrong = head.finish("submit", file, "--verb", "cache", "--", "--set", "seeds=[0, 1]", **secret)
    assert code == 0, wrong
    lines = said.splitlines()
    at = lines.index("asked ['-m', 'pipeline', 'cache', './My experiment.yaml', '--set', 'seeds=[0, 1]']")
    assert re.fullmatch(rf"here \['My experiment.yaml'\] [\d.]+:{head.port} False", lines[at + 1])
    assert lines[at + 2 :] == [f"line {number}" for number in range(2500)] + ["error: nothing"]
    assert re.fullmatch(r"sskt-cache-my-experiment-\w{10}: sent to " + head.address + "\n", wrong)


def test_bad_input_of_the_job_is_bad_input_here(head, tmp_path):
    file = experiment(tmp_path, code=2, last="error: mine.yaml: seeds are []")
    code, said, wrong = head.finish("submit", file)
    assert code == 2
    assert said.splitlines()[-1] == "error: mine.yaml: seeds are []"
    assert wrong.splitlines()[-1].endswith("ended with exit code 2: error: mine.yaml: seeds are []")


def test_tokens_that_are_wrong_or_missing_are_told_soon(head, tmp_path):
    began = time.monotonic()
    file = experiment(tmp_path)
    code, _, wrong = head.finish("submit", file, RAY_AUTH_TOKEN_PATH=str(head.folder / "wrong"))
    assert (code, wrong.count("\n")) == (2, 1)
    assert f"{head.address} refuses the token of RAY_AUTH_TOKEN_PATH" in wrong
    code, _, wrong = head.finish("status", RAY_AUTH_MODE="disabled")
    assert (code, wrong.count("\n")) == (2, 1)
    assert f"{head.address} asks for a token; set RAY_AUTH_MODE=token" in wrong
    code, _, wrong = head.finish("status", RAY_AUTH_TOKEN_PATH=str(head.folder / "none"))
    assert (code, wrong.count("\n")) == (2, 1)
    assert "no token can be read" in wrong
    assert time.monotonic() - began < 30


@pytest.mark.slow
def test_a_job_is_followed_by_many_left_alone_and_cancelled(head, tmp_path):
    """Detach, submit again, status, Ctrl-C, follow, cancel: what all of them say of one job."""
    gate = tmp_path / "gate"
    file = experiment(tmp_path, gate=str(gate), lines=3)
    code, name, wrong = head.finish("submit", file, "--detach")
    assert code == 0, wrong
    name = name.strip()
    impatient = head.call("submit", file)
    assert impatient.stderr.readline() == f"{name}: runs already on {head.address}\n"
    while impatient.stdout.readline() != "line 2\n":
        assert impatient.poll() is None
    impatient.send_signal(signal.SIGINT)
    _, wrong = impatient.communicate(timeout=30)
    assert impatient.returncode == 130
    assert f"{name}: no longer followed" in wrong
    assert f"python -m cluster cancel {name} --address {head.address}" in wrong
    [job] = [job for job in json.loads(head.finish("status", "--json")[1]) if job["name"] == name]
    assert (job["state"], job["verb"], job["experiment"]) == ("running", "sweep", "My experiment.yaml")
    follower = head.call("follow", name)
    while follower.stdout.readline() != "line 2\n":
        assert follower.poll() is None
    code, _, wrong = head.finish("cancel", name)
    assert (code, wrong.startswith(f"{name}: cancelled; ")) == (0, True)
    follower.communicate(timeout=30)
    assert follower.returncode == 130
    gate.touch()
    code, _, wrong = head.finish("submit", file)
    assert code == 0
    assert f"{name}-2: sent to" in wrong
    assert "cancelled" in head.finish("status", name)[1].splitlines()[1]


def test_a_job_that_is_not_there_is_bad_input(head):
    code, _, wrong = head.finish("cancel", "sskt-none")
    assert code == 2
    assert f"{head.address} knows no job 'sskt-none'" in wrong


@pytest.mark.slow
def test_a_job_whose_head_dies_is_sent_again_to_the_next(tmp_path):
    """The second head has the first one's address and token, and knows nothing."""
    tiny, gate, runs = tmp_path / "tiny.py", tmp_path / "gate", tmp_path / "runs"
    tiny.write_text(TINY)
    runs.mkdir()
    with ExitStack() as afterwards:
        heads = make_head(f"{sys.executable} {tiny}")
        head = next(heads)
        afterwards.callback(heads.close)
        process = head.call("submit", experiment(tmp_path, gate=str(gate), runs=str(runs), lines=5))
        afterwards.callback(process.kill)
        said = ""
        while not said.endswith("line 4\n"):
            assert process.poll() is None
            said += process.stdout.readline()
        head.kill()
        time.sleep(3)
        gate.touch()
        head.start()
        rest, wrong = process.communicate(timeout=120)
    assert process.returncode == 0, wrong
    assert {path.name for path in runs.iterdir()} == {"0", "1"}
    told = [line for line in (said + rest).splitlines() if line.split()[0] in ("run", "line", "error:")]
    lines = [f"line {number}" for number in range(5)]
    assert told == ["run 0", *lines, "run 1", *lines, "error: nothing"]
    assert "lost (the cluster knows nothing of it); sending it again, number 2 of 3" in wrong


@pytest.mark.slow
def test_the_real_pipeline_packs_on_a_cluster_and_refuses_what_is_wrong(experiment_file):
    with ExitStack() as afterwards:
        heads = make_head(sys.executable)
        head = next(heads)
        afterwards.callback(heads.close)
        code, said, wrong = head.finish("submit", str(experiment_file), "--verb", "pack")
        assert code == 0, said + wrong
        assert "pack    " in said
        assert list((experiment_file.parent / "store" / "datasets").iterdir())
        further = ["--verb", "pack", "--", "--set", "training.epoch=3"]
        code, _, wrong = head.finish("submit", str(experiment_file), *further)
        assert code == 2
        assert "error: ./small.yaml: field 'training.epoch' is unknown" in wrong
