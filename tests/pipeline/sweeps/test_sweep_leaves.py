"""Sweeps on clusters of which a node is drained: its trials go on elsewhere from the very step they were at."""

import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from cluster.notices import ASK_SECONDS
from tests.conftest import write_experiment
from tests.metadata import metadata
from tests.pipeline.sweeps.test_sweep import objects
from tests.pipeline.sweeps.test_sweep_survives import outcomes, sweeping, wait_until
from tests.processes import ROOT, descendants, finish, kill

EPOCHS, STEPS, NAP = 2, 60, 0.15  # an epoch takes longer than a notice to be heard
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

# Nodes have addresses of their own, as machines do. It ends with its input.
NODES = """
import json, sys
from ray.cluster_utils import Cluster
small = dict(num_cpus=1, object_store_memory=100 * 2**20)
cluster = Cluster(initialize_head=True, head_node_args=small | dict(num_cpus=0, include_dashboard=False))
nodes = [cluster.add_node(**small, node_ip_address=f"127.0.0.{2 + at}") for at in range(int(sys.argv[1]))]
raylets = {node.node_ip_address: node.all_processes["raylet"][0].process.pid for node in nodes}
print(json.dumps({"address": cluster.address, "raylets": raylets}), flush=True)
sys.stdin.read()
cluster.shutdown()
"""


@contextmanager
def nodes(workers: int, environment: dict[str, str]) -> Iterator[dict]:
    """A head without CPUs and workers of one each: where it is, and the pids of the workers' raylets by address."""
    command, pipes = [sys.executable, "-c", NODES, str(workers)], {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    process = subprocess.Popen(command, cwd=ROOT, env=os.environ | environment, text=True, **pipes)
    try:
        yield json.loads(process.stdout.readline())
    finally:
        started = descendants(process.pid)
        process.stdin.close()
        try:
            process.wait(60)
        finally:
            kill([process.pid, *started])
            process.stdout.close()


@pytest.fixture
def cluster(monkeypatch):
    """Starts a cluster that commands join; returns the pids of its workers' raylets by their addresses."""
    with tempfile.TemporaryDirectory(prefix="sskt-") as short, ExitStack() as stack:  # sockets have to have short names
        (Path(short) / "ray").mkdir()
        (Path(short) / "token").write_text("0" * 64)
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": f"{short}/token", "RAY_TMPDIR": f"{short}/ray"}

        def start(workers: int) -> dict[str, int]:
            told = stack.enter_context(nodes(workers, token))
            for name, value in (token | {"RAY_ADDRESS": told["address"]}).items():
                monkeypatch.setenv(name, value)
            return told["raylets"]

        yield start


@pytest.fixture
def written(tmp_path, pictures, source_file):
    """Writes an experiment whose trials keep diaries, in a folder of its own."""

    def write(name: str, *, methods: str, nap: float, seeds: Sequence[int] = (0,), resources: str = "{}") -> Path:
        folder = tmp_path / name
        (folder / "diaries").mkdir(parents=True)
        file = write_experiment(folder, pictures=pictures, source_file=source_file)
        target = f"architecture: 'tests.fragile:diligent', options: {{diaries: {folder}/diaries, nap: {nap}}}"
        text = file.read_text().replace("architecture: small_cnn, options: {width: 4}", target)
        text = text.replace("epochs: 3, steps_per_epoch: 4", f"epochs: {EPOCHS}, steps_per_epoch: {STEPS}")
        head, _, _ = text.partition("methods:")
        file.write_text(f"{head}methods: {methods}\nseeds: {list(seeds)}\nresources: {resources}\n")
        return file

    return write


def diaries(file: Path) -> dict[str, list[tuple[int, int]]]:
    """By training: which process did which step, as they came."""
    return {
        diary.name: [(int(line.partition("@")[0]), int(line.split()[1])) for line in diary.read_text().splitlines()]
        for diary in file.parent.glob("diaries/*")
    }


def mine(diary: list[tuple[int, int]], raylet: int) -> int:
    """How many steps of a training the processes of a node that is there did."""
    return sum(pid in descendants(raylet) for pid, _ in diary)


@contextmanager
def noticing(address: str, endpoint: str) -> Iterator[subprocess.Popen]:
    """The command that runs beside a worker."""
    process = subprocess.Popen(
        [sys.executable, "-m", "cluster", "notices", "--node-ip-address", address],
        cwd=ROOT,
        env=os.environ | {"AWS_EC2_METADATA_SERVICE_ENDPOINT": endpoint},
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def test_a_spot_machine_that_is_taken_back_hands_its_trial_on_at_a_step(written, cluster):
    trials = {"methods": "[{method: scratch}, {method: sskt, sources: [wise], learn_from: all}]", "seeds": [0, 1]}
    calm = written("calm", nap=0, **trials)
    code, said = finish("sweep", str(calm), "--set", "resources.runner=plain")
    assert code == 0, said
    file, raylets = written("taken", nap=NAP, **trials), cluster(2)
    address, raylet = next(iter(raylets.items()))
    with metadata() as service, noticing(address, service.endpoint) as notices, sweeping(file) as driver:
        wait_until(lambda: any(mine(diary, raylet) >= 5 for diary in diaries(file).values()), process=driver)
        name, before = next((name, diary) for name, diary in diaries(file).items() if mine(diary, raylet))
        there = {pid for pid, _ in before}
        service.reclaim(120)
        told = notices.communicate(timeout=120)[1]
        steps = len(diaries(file)[name])
        said, _ = driver.communicate(timeout=900)
    assert re.search(rf"taken back in \d+ s: the Ray of \S+ starts nothing more at {address}", told)
    assert (notices.returncode, driver.returncode) == (0, 0), said
    left = sum(pid in there for pid, _ in diaries(file)[name])
    assert 5 < left < STEPS, "in mid-epoch"
    assert left - steps <= 2 * ASK_SECONDS / NAP, "it went on for long"
    assert {one for one, diary in diaries(file).items() if there & {pid for pid, _ in diary}} == {name}
    assert all([step for _, step in diary] == list(range(1, EPOCHS * STEPS + 1)) for diary in diaries(file).values())
    where = rf"leaves {re.escape(address)}, which goes in \d+ s, after 0 epochs and {left} of {STEPS} steps"
    assert len(re.findall(rf"sweep   .*, seed [01], {where}; it goes on elsewhere", said)) == 1
    assert "Traceback" not in said
    assert outcomes(file) == outcomes(calm)
    assert objects(file.parent, "store/checkpoints/*/*") == objects(file.parent, "store/claims/*") == []


def test_a_trial_of_two_workers_leaves_a_node_with_both_of_them(written, cluster):
    raylets = cluster(3)
    train = {"methods": "[{method: scratch}]", "resources": "{runner: train, workers: 2}"}
    calm, file = written("calm", nap=0, **train), written("drained", nap=NAP, **train)
    code, said = finish("sweep", str(calm))
    assert code == 0, said
    with sweeping(file) as driver:

        def at_work() -> list[str]:
            done = [diary for diary in diaries(file).values() if len(diary) >= 10]
            return [address for address, raylet in raylets.items() if any(mine(diary, raylet) for diary in done)]

        wait_until(lambda: len(at_work()) == 2, process=driver)
        with metadata() as service, noticing(at_work()[1], service.endpoint) as notices:
            service.reclaim(120)
            assert notices.wait(120) == 0
        said, _ = driver.communicate(timeout=900)
    assert driver.returncode == 0, said
    (epochs, step) = re.search(rf"leaves a node that goes, after (\d) epochs and (\d+) of {STEPS} steps", said).groups()
    left = int(epochs) * STEPS + int(step)
    diary = max(diaries(file).values(), key=len)  # the second process knows whose it is after its first step only
    writers = {step: sorted(pid for pid, at in diary if at == step) for step in range(2, EPOCHS * STEPS + 1)}
    assert all(len(pids) == len(set(pids)) == 2 for pids in writers.values()), "a step was trained twice, or by one"
    changes = [step for step, other in itertools.pairwise(writers) if writers[step] != writers[other]]
    assert changes == [left]
    assert outcomes(file) == outcomes(calm)
    assert objects(file.parent, "store/checkpoints/*/*") == objects(file.parent, "store/claims/*") == []
