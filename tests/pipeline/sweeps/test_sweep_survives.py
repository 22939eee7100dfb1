"""Sweeps under which processes and machines are shot, that run twice at once, hang, or find no memory: none is lost.

Trials keep a diary of their steps (`tests/fragile.py`), so that it is known what was trained, and what twice.
"""

import itertools
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file

from cluster.storage import Storage
from pipeline.canonical import unseal
from pipeline.care.housekeeping import BUSY_SECONDS
from pipeline.planning.experiment import load_experiment
from pipeline.planning.plan import Plan
from pipeline.stages import Stages
from pipeline.sweeps.sweep import make_demand, sweep
from pipeline.trials.results import read_results
from pipeline.trials.runners import run_plain
from pipeline.trials.trials import gather_materials
from tests.conftest import write_experiment
from tests.pipeline.sweeps.test_sweep import objects, table
from tests.processes import ROOT, descendants, finish, kill, start

EPOCHS, STEPS = 20, 4
KILLS = 20
pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]


@pytest.fixture
def written(tmp_path, pictures, source_file):
    """Writes an experiment whose trials keep diaries, in a folder of its own."""

    def write(name: str, *, seeds: int, nap: float) -> Path:
        folder = tmp_path / name
        (folder / "diaries").mkdir(parents=True)
        file = write_experiment(folder, pictures=pictures, source_file=source_file)
        target = f"architecture: 'tests.fragile:diligent', options: {{diaries: {folder}/diaries, nap: {nap}}}"
        text = file.read_text().replace("architecture: small_cnn, options: {width: 4}", target)
        text = text.replace("epochs: 3", f"epochs: {EPOCHS}").replace("seeds: [0, 1]", f"seeds: {list(range(seeds))}")
        file.write_text(text)
        return file

    return write


@pytest.fixture
def undisturbed(written):
    """What trials come to, and the table, if nothing happens to them."""

    def run(seeds: int) -> tuple[dict[tuple[str, int], object], str]:
        file = written("undisturbed", seeds=seeds, nap=0)
        code, said = finish("sweep", str(file), "--set", "resources.runner=plain")
        assert code == 0, said
        assert list(diaries(file).values()) == [0] * 2 * seeds
        return outcomes(file), table(said)

    return run


def results(file: Path) -> list[dict]:
    return [json.loads(path.read_text()) for path in objects(file.parent, "store/results/*.json")]


def outcomes(file: Path) -> dict[tuple[str, int], object]:
    """What each trial came to, by label and seed; nothing that depends on where and when it was trained."""
    return {(result["label"], result["spec"]["trial"]["seed"]): figures(result) for result in results(file)}


def figures(result: dict) -> dict[str, object]:
    return {name: result[name] for name in ("history", "test", "validation", "best_epoch", "label_rows", "seeds")}


def writers(file: Path) -> set[int]:
    """The processes that have trained anything, in this run or before."""
    return {int(line.partition("@")[0]) for diary in file.parent.glob("diaries/*") for line in diary.open()}


def diaries(file: Path) -> dict[str, int]:
    """How often each training changed processes. All have to be trained to their end, and to go on where they were.

    Where that is: at the beginning of the epoch that was interrupted, or had not been saved.
    """
    changes: dict[str, int] = {}
    for diary in sorted(file.parent.glob("diaries/*")):
        lines = [(who, int(step)) for who, step in map(str.split, diary.read_text().splitlines())]
        steps, changes[diary.name] = [step for _, step in lines], 0
        assert (steps[0], steps[-1], set(steps)) == (1, EPOCHS * STEPS, set(range(1, EPOCHS * STEPS + 1)))
        for (one, last), (other, first) in itertools.pairwise(lines):
            assert first % STEPS == 1 if one != other else first == last + 1
            assert 0 <= last + 1 - first <= STEPS, "more than an epoch was repeated"
            changes[diary.name] += one != other
    return changes


def check_end(file: Path, expected: dict[tuple[str, int], object]) -> int:
    """Look at a sweep that came to its end; return how often its trainings changed processes."""
    assert outcomes(file) == expected
    changes, trained = diaries(file), set()
    for path in objects(file.parent, "store/results/*.json"):
        network = file.parent / "store" / "networks" / f"{path.stem}.safetensors"
        diary = file.parent / "diaries" / str(int(load_file(network)["born"]))
        assert diary.stat().st_mtime_ns < path.stat().st_mtime_ns, "trained on after its result"
        trained.add(diary.name)
    assert trained == set(changes), "a training that came to nothing"
    return sum(changes.values())


def check_left_over(file: Path) -> None:
    """What a kill right after a result leaves behind is of trials that have one, and `gc` removes it in time."""
    store = file.parent / "store"
    done = {path.stem for path in objects(store, "results/*.json")}
    assert {path.parent.name for path in objects(store, "checkpoints/*/*")} <= done
    assert {path.stem for path in objects(store, "claims/*")} <= done
    for claim in objects(store, "claims/*"):
        os.utime(claim, (time.time() - 2 * BUSY_SECONDS,) * 2)
    code, said = finish("gc", str(store), str(file), "--yes")
    assert code == 0, said
    assert objects(store, "checkpoints/*/*") == objects(store, "claims/*") == []


def wait_until(reached: Callable[[], object], *, seconds: float = 900, process: subprocess.Popen | None = None) -> None:
    deadline = time.monotonic() + seconds
    while not reached():
        assert process is None or process.poll() is None, process.stdout.read()
        assert time.monotonic() < deadline, "what was waited for did not happen"
        time.sleep(0.01)


def lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@contextmanager
def sweeping(file: Path) -> Iterator[subprocess.Popen]:
    """A sweep in a process of its own; whatever happens in the block, it is over at its end, with all it started."""
    process = start("sweep", str(file))
    try:
        yield process
    finally:
        kill([process.pid, *descendants(process.pid)])
        process.wait()
        process.stdout.close()


def shoot(file: Path, moment: float, *, while_starting: bool, driver_alone: bool) -> list[int]:
    """Kill a sweep so many seconds after its start, or its first step; return what was then left to itself."""
    with sweeping(file) as process:
        if not while_starting:
            wait_until(lambda: writers(file) & set(descendants(process.pid)), process=process)
        time.sleep(moment)
        started = descendants(process.pid)
        if driver_alone:
            kill([process.pid])
            process.wait()
    return started if driver_alone else []


def test_a_sweep_killed_at_random_moments_ends_as_if_nothing_had_happened(written, undisturbed):
    expected, shown = undisturbed(6)
    file = written("killed", seeds=6, nap=0.04)
    generator, left = np.random.default_rng(0), []
    for number in range(KILLS):
        done = {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in objects(file.parent, "store/results/*")}
        starting = number % 5 == 0
        moment = generator.uniform(0, 8 if starting else 1)
        left += shoot(file, moment, while_starting=starting, driver_alone=number % 2 == 1)
        assert {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in done} == done
    assert len(results(file)) < 12, "it was over before the last kill"
    code, said = finish("sweep", str(file))
    assert code == 0, said
    assert table(said) == shown
    assert check_end(file, expected) > KILLS / 2
    check_left_over(file)
    wait_until(lambda: not any(map(lives, left)), seconds=60)


def test_two_runs_of_a_sweep_at_once_share_its_trials(written, undisturbed):
    expected, shown = undisturbed(4)
    file = written("pair", seeds=4, nap=0.05)
    with sweeping(file) as one, sweeping(file) as other:
        runs, cpus = (one, other), sorted(os.sched_getaffinity(0))
        for process, cpu in zip(runs, (cpus[0], cpus[-1]), strict=True):
            os.sched_setaffinity(process.pid, {cpu})
        said = [process.communicate(timeout=900)[0] for process in runs]
    assert [process.returncode for process in runs] == [0, 0], said
    assert [table(one) for one in said] == [shown, shown]
    assert check_end(file, expected) == 0
    assert all("packed, each in one process that is used again; 1 side by side" in one for one in said)
    assert len(writers(file)) == 2, "one run did all"
    assert objects(file.parent, "store/checkpoints/*/*") == objects(file.parent, "store/claims/*") == []


# A process of its own: Ray allows one cluster in each. It ends with its input; a line of it is a node to be shot.
NODES = """
import json, sys
from ray.cluster_utils import Cluster
small = dict(num_cpus=1, object_store_memory=100 * 2**20)
cluster = Cluster(initialize_head=True, head_node_args=small | dict(num_cpus=0, include_dashboard=False))
nodes = [cluster.add_node(**small) for _ in range(2)]
raylets = [node.all_processes["raylet"][0].process.pid for node in nodes]
print(json.dumps({"address": cluster.address, "raylets": raylets}), flush=True)
for line in sys.stdin:
    cluster.remove_node(nodes[int(line)], allow_graceful=False)
cluster.shutdown()
"""


@contextmanager
def cluster(environment: dict[str, str]):
    """A head without CPUs for trials and two workers of one each: its process, address and the pids of the workers'."""
    process = subprocess.Popen(
        [sys.executable, "-c", NODES],
        cwd=ROOT,
        env=os.environ | environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        told = json.loads(process.stdout.readline())
        yield process, told["address"], told["raylets"]
    finally:
        started = descendants(process.pid)
        process.stdin.close()
        try:
            process.wait(60)
        finally:
            kill([process.pid, *started])
            process.stdout.close()


def builders(file: Path) -> dict[str, int]:
    """The processes that train now, by the name of what they train."""
    found = {}
    for path in objects(file.parent, "store/claims/*.claim"):
        try:
            found[path.stem] = unseal(path.read_bytes())["pid"]
        except FileNotFoundError:
            continue
    return found


def shoot_trainer(file: Path, driver: subprocess.Popen, run_key: str) -> None:
    """SIGKILL the process that trains a trial, once it has saved something."""

    def further() -> bool:
        states = set(objects(file.parent, f"store/checkpoints/{run_key}/*"))
        return run_key in builders(file) and bool(states - before)

    before = set(objects(file.parent, f"store/checkpoints/{run_key}/*"))
    wait_until(further, process=driver)
    pid = builders(file)[run_key]
    kill([pid])
    wait_until(lambda: not lives(pid))


def shoot_node(file: Path, nodes: subprocess.Popen, raylets: list[int], driver: subprocess.Popen, spared: str) -> None:
    """Remove a worker without a warning while it trains something that has saved a state."""

    def trained_there() -> list[tuple[int, int]]:
        saved = {path.parent.name for path in objects(file.parent, "store/checkpoints/*/*")}
        trainers = [pid for run_key, pid in builders(file).items() if run_key in saved and run_key != spared]
        return [(at, pid) for at, raylet in enumerate(raylets) for pid in trainers if pid in descendants(raylet)]

    wait_until(trained_there, process=driver)
    at, trainer = trained_there()[0]
    nodes.stdin.write(f"{at}\n")
    nodes.stdin.flush()
    wait_until(lambda: not lives(raylets[at]) and not lives(trainer))


def test_a_sweep_on_a_cluster_survives_three_deaths_of_a_trial_and_that_of_a_node(written, undisturbed, monkeypatch):
    expected, shown = undisturbed(3)
    file = written("cluster", seeds=3, nap=0.1)
    with tempfile.TemporaryDirectory(prefix="sskt-") as short:  # sockets have to have short names
        (Path(short) / "ray").mkdir()
        (Path(short) / "token").write_text("0" * 64)
        token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": f"{short}/token"}
        with cluster(token | {"RAY_TMPDIR": short}) as (nodes, address, raylets):
            for name, value in (token | {"RAY_ADDRESS": address}).items():
                monkeypatch.setenv(name, value)
            with sweeping(file) as driver:
                wait_until(lambda: builders(file), process=driver)
                often = next(iter(builders(file)))
                for _ in range(3):
                    shoot_trainer(file, driver, often)
                shoot_node(file, nodes, raylets, driver, often)
                said, _ = driver.communicate(timeout=900)
    assert driver.returncode == 0, said
    assert table(said) == shown
    assert check_end(file, expected) >= 3 + 1
    assert objects(file.parent, "store/checkpoints/*/*") == objects(file.parent, "store/claims/*") == []


def lived_through(file: Path, kind: str, *changes: str, lives: int) -> list[str]:
    """Sweep scratch with a target that something befalls, as often as it has lives; all has to come to what it should.

    Returns what was said.
    """
    (folder := file.parent / "lives").mkdir()
    target = f"target={{architecture: 'tests.fragile:{kind}', options: {{lives: {folder}}}}}"
    changes = (target, "methods=[{method: scratch}]", *changes)
    stages = Stages(load_experiment(str(file), changes=changes), lambda line: None)
    plan, storage, said = stages.pack(), stages.storage, []
    expected = one_by_one(plan, storage)
    for number in range(lives):
        (folder / f"life-{number}").touch()
    outcome = sweep(plan, storage, say=said.append)
    assert (outcome.done, outcome.failures) == (len(plan.trials), {})
    assert read_results(storage, expected, reduce=figures) == expected
    assert not list(folder.glob("life-*"))
    assert not [*storage.keys("failures"), *storage.keys("checkpoints"), *storage.keys("claims")]
    return said


def one_by_one(plan: Plan, storage: Storage) -> dict[str, dict[str, object]]:
    """What trials come to in this process, where nothing befalls them; they are then forgotten."""
    materials, demand = gather_materials(plan, storage, plan.trials), make_demand(plan.experiment.resources, "plain")
    for planned in plan.trials:
        assert run_plain(planned, materials, demand).state == "done"
    found = read_results(storage, [planned.run_key for planned in plan.trials], reduce=figures)
    for run_key in found:
        storage.delete(f"results/{run_key}.json")
    return found


@pytest.mark.usefixtures("ray_session")
def test_a_trial_that_hangs_is_ended_and_goes_on_in_another_process(experiment_file):
    began = time.monotonic()
    said = lived_through(experiment_file, "hanging", "resources.hung_after=5", lives=1)
    assert len(said) == 1
    assert time.monotonic() - began < 120


@pytest.mark.usefixtures("ray_session")
def test_trials_that_do_not_fit_side_by_side_are_run_one_after_the_other(experiment_file):
    said = lived_through(experiment_file, "large", "seeds=[0, 1, 2, 3]", lives=0)
    assert re.fullmatch(r"sweep   [1-3] trials ran out of memory with 2 side by side: again with 1", said[1])
    assert len(said) == 2
