"""Two that want the same at the same time, on a bucket: work is done once, and nobody waits for a winner there is not.

Most rounds are those of two processes without Ray (`tests/racing.py`), the last is one of two whole commands.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cluster.storage import open_storage
from pipeline.caches.claims import LEASE
from pipeline.planning.experiment import load_experiment
from pipeline.stages import Stages
from tests.conftest import write_experiment
from tests.object_store import often, proxy_of, use
from tests.pipeline.sweeps.test_sweep import content, table
from tests.processes import ROOT, kill, start

ROUNDS, STEPS, TRIALS = 20, 12, 4
PASSES = 324
"""108 pictures to train on, 3 views."""
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture
def experiment(tmp_path, pictures, source_file) -> Path:
    """Four trials that keep diaries."""
    (tmp_path / "diaries").mkdir()
    file = write_experiment(tmp_path, pictures=pictures, source_file=source_file)
    target = f"architecture: 'tests.fragile:diligent', options: {{diaries: {tmp_path}/diaries, nap: 0}}"
    file.write_text(file.read_text().replace("architecture: small_cnn, options: {width: 4}", target))
    return file


@pytest.fixture
def proxied(object_store, bucket_uri, monkeypatch):
    with proxy_of(object_store.port) as proxy:
        use(proxy.endpoint, monkeypatch)
        yield proxy


@contextmanager
def racers(experiment: Path) -> Iterator[list[subprocess.Popen[str]]]:
    """Two processes that are ready to start."""
    command = [sys.executable, "-m", "tests.racing", str(experiment)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    both = [subprocess.Popen(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, **pipes) for _ in range(2)]
    try:
        assert [one.stdout.readline() for one in both] == ["ready\n"] * 2
        yield both
    finally:
        kill([one.pid for one in both])
        for one in both:
            one.communicate()


def race(both: list[subprocess.Popen[str]], uri: str) -> list[dict]:
    """Let both do everything on a storage; return what each says of it."""
    for one in both:
        one.stdin.write(f"{uri}\n")
        one.stdin.flush()
    return [json.loads(one.stdout.readline()) for one in both]


def check_diaries(experiment: Path, trials: int) -> set[str]:
    """Every trial was trained once, from its first step to its last, by one process; returns the processes."""
    trained = []
    for diary in (experiment.parent / "diaries").iterdir():
        lines = [line.split() for line in diary.read_text().splitlines()]
        assert [int(step) for _, step in lines] == list(range(1, STEPS + 1))
        trained.append({process for process, _ in lines})
        diary.unlink()
    assert len(trained) == trials
    assert all(len(processes) == 1 for processes in trained)
    return set.union(*trained)


@pytest.mark.parametrize("lost", [0.0, 0.2], ids=["all answers arrive", "answers are lost"])
def test_two_processes_that_race_for_everything_share_it(experiment, proxied, bucket_uri, lost):
    proxied.rule = often(lost, "lost", concerned=lambda method, path: method == "PUT")
    contents, shared = set(), 0
    with racers(experiment) as both:
        for number in range(ROUNDS // 2):
            began = time.monotonic()
            said = race(both, f"{bucket_uri}/{number}")
            # Who is told wrongly that another has a claim waits until it counts as dead.
            assert time.monotonic() - began < LEASE
            assert [one["failures"] for one in said] == [{}, {}]
            assert sum(one["passes"] for one in said) == PASSES
            contents |= {one["content"] for one in said}
            shared += len(check_diaries(experiment, TRIALS)) == 2
            left = list(open_storage(f"{bucket_uri}/{number}").keys(""))
            assert not [key for key in left if key.startswith(("claims", "checkpoints")) or key.endswith(".claim")]
            assert sum(key.startswith("results/") for key in left) == TRIALS
    assert len(contents) == 1
    assert shared > ROUNDS // 4, "one process did everything"
    assert any(wrong for *_, wrong in proxied.requests) == bool(lost)


def test_two_whole_commands_at_once_share_everything(experiment, bucket_uri):
    both = [start("sweep", str(experiment), "--set", f"storage={bucket_uri}") for _ in range(2)]
    said = [one.communicate(timeout=600)[0] for one in both]
    assert [one.returncode for one in both] == [0, 0], said
    assert content(said[0]) == content(said[1])
    assert table(said[0]) == table(said[1])
    check_diaries(experiment, TRIALS)
    stages = Stages(load_experiment(str(experiment), changes=[f"storage={bucket_uri}"]), lambda line: None)
    made = stages.cache(stages.pack())["wise"].caches["logits"]
    assert made.passes == PASSES
