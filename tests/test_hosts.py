"""Doctor, trainings and sweeps on several machines with addresses of their own, and a bucket on one of them.

Machine 0 has the storage and is where these tests look from, 1 is Ray's head without room for work, the others have
room for one piece of work each. Machines are cut off, lose Ray or their power; what was finished is never done again.
"""

import re
import secrets
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cluster.storage import Storage, open_storage
from pipeline.caches.claims import LEASE
from pipeline.canonical import unseal
from pipeline.trials.checkpoints import newest_epochs
from tests import fragile
from tests.conftest import CLASSES, SIZE, write_experiment
from tests.hosts import HEAD, Lab, hosts_of, until
from tests.object_store import BUCKET, environment, forget, running
from tests.pipeline.sweeps.test_sweep import content, table
from tests.pipeline.sweeps.test_sweep_survives import EPOCHS, diaries, outcomes
from tests.processes import finish

ONE, OTHER = 2, 3
SEEDS, VIEWS, SHARDS = 6, 3, 10
OF_A_SHARD = 2 * VIEWS
"""How often a source is asked for a whole shard: 64 images, at most 32 at once."""
PASSES = SHARDS * OF_A_SHARD - VIEWS
"""And for all of them: the last has 21 images."""
pytestmark = [pytest.mark.slow, pytest.mark.ray, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def machines() -> Iterator[Lab]:
    with (
        tempfile.TemporaryDirectory(prefix="sskt-") as folder,
        hosts_of(Path(folder), 4) as hosts,
        hosts.network(0),
        running(Path(folder) / "objects", hosts.address(0)) as store,
        pytest.MonkeyPatch.context() as patch,
    ):
        for name, value in environment(store.endpoint).items():
            patch.setenv(name, value)
        forget()
        yield Lab(hosts, environment(store.endpoint))
        forget()


@pytest.fixture
def lab(machines: Lab) -> Lab:
    machines.start_anew(HEAD, ONE, OTHER)
    return machines


@pytest.fixture
def bucket(machines: Lab) -> Storage:
    return open_storage(f"s3://{BUCKET}/{secrets.token_hex(8)}")


def written(folder: Path, *, nap: float, source_file: Path) -> Path:
    """An experiment with a source whose cache has `SHARDS` shards, and diaries of what source and targets see."""
    (folder / "diaries").mkdir(parents=True)
    generator = np.random.default_rng(0)
    for label, name in enumerate(CLASSES):
        (folder / "pictures" / name).mkdir(parents=True)
        for number in range(333):
            pixels = generator.integers(0, 120, (SIZE, SIZE)) + label * 60
            Image.fromarray(pixels.astype(np.uint8)).save(folder / "pictures" / name / f"{number}.png")
    with torch.random.fork_rng():
        torch.manual_seed(4)
        torch.save(fragile.thorough(classes=4, diary="", nap=0).state_dict(), folder / "source.pt")
    source = (
        f"{{architecture: 'tests.fragile:thorough', weights: {folder}/source.pt, classes: 4, "
        f"options: {{diary: {folder}/seen, nap: {15 * nap}}}, input: {{mean: [0.5], std: [0.5]}}}}"
    )
    target = f"{{architecture: 'tests.fragile:diligent', options: {{diaries: {folder}/diaries, nap: {nap}}}}}"
    file = write_experiment(folder, pictures=folder / "pictures", source_file=source_file)
    text = file.read_text().replace(f"{{weights: {source_file}}}", source).replace("epochs: 3", f"epochs: {EPOCHS}")
    text = text.replace("{architecture: small_cnn, options: {width: 4}}", target)
    file.write_text(text.replace("seeds: [0, 1]", f"seeds: {list(range(SEEDS))}"))
    return file


def shards(storage: Storage) -> list[str]:
    """The records of the shards that are made."""
    return [key for key in storage.keys("caches") if re.search(r"/shard-\d+\.json$", key)]


def claims(storage: Storage, kind: str, host: int | None = None) -> dict[str, str]:
    """Who is at work on what, by the names of claims: on a machine, or on any."""
    found = {}
    for key in storage.keys(kind):
        if key.endswith(".claim") and (said := storage.read(key)) is not None:
            claim = unseal(said)
            if host is None or claim["place"].startswith(f"host{host} "):
                found[key] = claim["builder"]
    return found


def begun(storage: Storage, host: int) -> dict[str, str]:
    """The claims of a machine on trainings that have saved something, and are far from their end."""
    under_way = {run_key for run_key, epoch in newest_epochs(storage).items() if epoch <= EPOCHS // 2}
    return {key: who for key, who in claims(storage, "claims", host).items() if Path(key).stem in under_way}


def finished(storage: Storage) -> dict[str, tuple[object, ...]]:
    """What is there for good, its size, and the time at which it was written."""
    objects = [one for kind in ("caches", "results", "networks") for one in storage.objects(kind)]
    return {one.key: tuple(one[1:]) for one in objects if not one.key.endswith((".claim", "manifest.json"))}


def copied(storage: Storage, folder: Path) -> None:
    """All results, into a folder."""
    (folder / "results").mkdir(parents=True)
    for key in storage.keys("results"):
        (folder / key).write_bytes(storage.read(key) or b"")


class Stopwatch:
    """Prints how long things took: docs/cluster.md has the figures."""

    def __init__(self) -> None:
        self.began = time.monotonic()

    def __call__(self, what: str) -> None:
        print(f"\n{time.monotonic() - self.began:6.1f} s  {what}")


def wait(reached: Callable[[], object], what: str, driver: subprocess.Popen[str]) -> None:
    until(reached, what, seconds=200, alive=driver)


def test_the_doctor_finds_machines_right_one_cut_off_and_one_without_credentials(lab, bucket):
    asked = ("cluster", "doctor", "--storage", bucket.uri, "--nodes", "3")
    names = [lab.hosts.address(host) for host in (HEAD, ONE, OTHER)]
    code, said = lab.finish(*asked)
    lines = [line for line in said.splitlines() if line.startswith(("ok", "bad"))]
    assert (code, [line for line in lines if line.startswith("bad")]) == (0, []), said
    assert any(line.startswith("ok   nodes: ") and all(name in line for name in names) for line in lines)
    assert "ok   ports: every node reaches every other" in lines
    assert "ok   credentials: from env" in lines
    assert any(line.startswith(f"ok   storage {bucket.uri}: ") for line in lines)

    lab.hosts.cut(OTHER)  # the doctor comes before Ray has noticed
    code, said = lab.finish(*asked)
    assert code == 1
    assert re.search(rf"^bad  node {names[-1]} says nothing \(", said, re.MULTILINE), said
    code, said = lab.finish(*asked)
    assert (code, "bad  2 nodes instead of 3: " in said) == (1, True), said

    lab.let_return(OTHER, without="ACCESS_KEY")
    code, said = lab.finish(*asked)
    assert code == 1
    assert f"bad  no AWS credentials, on {names[-1]}: " in said
    assert re.search(rf"^bad  storage: .*no credentials.*, on {names[-1]}: ", said, re.MULTILINE), said
    assert said.count("bad  ") == 2, said


def test_a_training_over_two_machines_goes_on_when_a_lost_one_is_replaced(lab, bucket, tmp_path, source_file):
    file = written(tmp_path / "lab", nap=0.1, source_file=source_file)
    command = ("train", str(file), "--trial", "0", "--set", "resources.workers=2", "--set")
    driver = lab.drive("pipeline", *command, f"storage={bucket.uri}")

    def epochs() -> int:
        return max((int(key.split("-")[1]) for key in bucket.keys("checkpoints")), default=0)

    wait(lambda: epochs() >= 5, "five epochs", driver)
    watch = Stopwatch()
    lab.lose(OTHER)
    watch("from the cut of a machine to its loss")
    before = epochs()
    lab.start_anew(OTHER)
    watch("and until it is there again")
    wait(lambda: epochs() > before or list(bucket.keys("results")), "a further epoch", driver)
    watch("and until the training goes on")
    said, _ = driver.communicate(timeout=300)
    assert driver.returncode == 0, said
    copied(bucket, tmp_path / "lab" / "store")
    expected = written(tmp_path / "undisturbed", nap=0, source_file=source_file)
    code, said = finish(*command, f"storage={expected.parent}/store")
    assert code == 0, said
    assert outcomes(file) == outcomes(expected)


def test_a_sweep_survives_the_loss_of_each_of_its_machines(lab, bucket, tmp_path, source_file):
    file = written(tmp_path / "lab", nap=0.1, source_file=source_file)
    command = ("pipeline", "sweep", str(file), "--set", f"storage={bucket.uri}")
    driver = lab.drive(*command)
    kept = lose_a_source_worker(lab, bucket, driver)
    kept |= lose_trainers(lab, bucket, driver)
    wait(lambda: begun(bucket, ONE) or begun(bucket, OTHER), "a training", driver)
    kept |= finished(bucket)
    assert len(list(bucket.keys("results"))) < 2 * SEEDS, "it was over before the head was lost"
    lab.start_anew(HEAD, ONE, OTHER)
    code, said = lab.finish(*command)
    assert code == 0, said
    after = finished(bucket)
    assert {key: after[key] for key in kept} == kept, "what was finished was made again"

    expected = written(tmp_path / "undisturbed", nap=0, source_file=source_file)
    code, told = finish("sweep", str(expected), "--set", "resources.runner=plain")
    assert code == 0, told
    assert (table(said), content(said)) == (table(told), content(told))
    copied(bucket, file.parent / "store")
    assert outcomes(file) == outcomes(expected)
    assert sum(diaries(file).values()) >= 3, "as often trainings were interrupted"
    seen = (file.parent / "seen").read_text().split()
    assert len(set(seen)) == len((expected.parent / "seen").read_text().split()) == PASSES
    assert len(seen) <= PASSES + 2 * OF_A_SHARD, "no more than two shards were in the making"


def lose_a_source_worker(lab: Lab, bucket: Storage, driver: subprocess.Popen[str]) -> dict[str, tuple[object, ...]]:
    """Cut a machine off while it makes a shard and put another in its place; return what had been finished."""
    wait(lambda: len(shards(bucket)) >= 2 and claims(bucket, "caches", OTHER), "two shards", driver)
    watch = Stopwatch()
    lab.lose(OTHER)
    watch("from the cut of a source's machine to its loss")
    kept, left = finished(bucket), claims(bucket, "caches", OTHER)
    assert left
    lab.start_anew(OTHER)
    watch("and until another is there")
    wait(lambda: left.items().isdisjoint(claims(bucket, "caches").items()), "the end of a claim", driver)
    watch("and until its claim has died")
    wait(lambda: all(key.replace(".claim", ".json") in shards(bucket) for key in left), "the shard", driver)
    watch("and until its shard is made")
    return kept


def lose_trainers(lab: Lab, bucket: Storage, driver: subprocess.Popen[str]) -> dict[str, tuple[object, ...]]:
    """Cut off a machine that trains, shoot the raylet of another; return what had been finished."""
    wait(lambda: begun(bucket, ONE) and list(bucket.keys("results")), "a result and a training", driver)
    watch, left, kept = Stopwatch(), begun(bucket, ONE), finished(bucket)
    lab.lose(ONE)
    watch("from the cut of a trial's machine to its loss")

    def taken_over(before: dict[str, str]) -> bool:
        now = claims(bucket, "claims")
        return all(
            now.get(key) not in (None, who) or f"results/{Path(key).stem}.json" in bucket.keys("results")
            for key, who in before.items()
        )

    until(lambda: taken_over(left), "a trial that goes on before its claim dies", seconds=LEASE, alive=driver)
    watch("and until its trial goes on")
    lab.let_return(ONE)
    wait(lambda: begun(bucket, OTHER), "a training", driver)
    watch, left = Stopwatch(), begun(bucket, OTHER)
    lab.shoot_raylet(OTHER)
    watch("from the death of a raylet to its end")
    until(lambda: taken_over(left), "a trial that goes on before its claim dies", seconds=LEASE, alive=driver)
    watch("and until its trial goes on")
    lab.start_ray(OTHER)
    return kept | finished(bucket)
