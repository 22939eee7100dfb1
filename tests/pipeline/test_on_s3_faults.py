"""Whole runs on a bucket whose server is busy, stalls, breaks off, forgets to answer or goes away: none shows it.

A proxy between the run and the server does all that. What a run leaves behind is compared, object by object, with what
the same run leaves in a folder; targets keep a diary of their steps (`tests/fragile.py`).
"""

import json
import re
import shutil
import time
from pathlib import Path

import pytest

from cluster.storage import Storage, open_storage
from tests.conftest import write_experiment
from tests.object_store import Proxy, at_first, away, often, proxy_of, use
from tests.pipeline.sweeps.test_sweep import content, table
from tests.pipeline.sweeps.test_sweep_survives import figures
from tests.processes import finish

EPOCHS, STEPS, MINUTE = 3, 4, 60
EXACT = ("datasets/", "caches/", "networks/")
"""What holds no times, but for its records."""
FAULTS = {
    "busy": often(0.3, "503"),
    "requests cut": often(0.3, "cut"),
    "answers cut": often(0.3, "half"),
    "answers truncated": at_first("short", "short", concerned=lambda method, path: method == "GET" and "?" not in path),
    "answers lost": often(0.3, "lost"),
    "stalls": often(0.1, "stall"),
}
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def experiment(tmp_path_factory, pictures, source_file) -> Path:
    """Two trials that keep diaries."""
    folder = tmp_path_factory.mktemp("faults")
    (folder / "diaries").mkdir()
    file = write_experiment(folder, pictures=pictures, source_file=source_file)
    target = f"architecture: 'tests.fragile:diligent', options: {{diaries: {folder}/diaries, nap: 0}}"
    text = file.read_text().replace("architecture: small_cnn, options: {width: 4}", target)
    file.write_text(text.replace("seeds: [0, 1]", "seeds: [0]"))
    return file


@pytest.fixture(scope="module")
def undisturbed(experiment) -> tuple[str, Storage]:
    """What the run says, and what it leaves in a folder."""
    said = swept(experiment, f"{experiment.parent}/store")
    return said, open_storage(f"{experiment.parent}/store")


@pytest.fixture
def proxied(object_store, bucket_uri, monkeypatch):
    with proxy_of(object_store.port) as proxy:
        use(proxy.endpoint, monkeypatch)
        yield proxy


def swept(experiment: Path, uri: str, *changes: str) -> str:
    """Run everything; no trial may be trained twice, or in two parts. Returns what was said."""
    diaries = experiment.parent / "diaries"
    shutil.rmtree(diaries)
    diaries.mkdir()
    code, said = finish("sweep", str(experiment), "--set", f"storage={uri}", *changes)
    assert code == 0, said
    written = [[line.split() for line in diary.open()] for diary in diaries.iterdir()]
    assert [[int(step) for _, step in lines] for lines in written] == [list(range(1, EPOCHS * STEPS + 1))] * 2
    assert [len({process for process, _ in lines}) for lines in written] == [1, 1]
    return said


def check_same(said: str, bucket: Storage, undisturbed: tuple[str, Storage]) -> None:
    """Nothing but times differs from what the undisturbed run said and left."""
    expected, folder = undisturbed
    assert (content(said), table(said)) == (content(expected), table(expected))
    assert packed(said) == packed(expected)
    keys = list(bucket.keys(""))
    assert keys == list(folder.keys(""))
    assert not [key for key in keys if key.startswith(("checkpoints", "claims", "failures", "quarantine"))]
    exact = [key for key in keys if key.startswith(EXACT) and not key.endswith(".json")]
    assert len(exact) == 1 + 2 + 2
    assert all(bucket.read(key) == folder.read(key) for key in exact)
    for key in (key for key in keys if key.startswith("results/")):
        assert figures(json.loads(bucket.read(key))) == figures(json.loads(folder.read(key)))


def packed(said: str) -> list[str]:
    """The dataset's fingerprint and counts."""
    return [line for line in said.splitlines() if line.startswith("pack ") and "retried" not in line]


def retried(said: str) -> int:
    """How many requests the stages say were made again."""
    return sum(int(count) for count in re.findall(r"storage: \d+ requests, (\d+) retried", said))


def went_wrong(proxy: Proxy) -> int:
    return sum(wrong is not None for *_, wrong in proxy.requests)


@pytest.mark.parametrize("fault", FAULTS)
def test_requests_that_go_wrong_all_the_time_change_nothing(
    fault, experiment, undisturbed, proxied, bucket_uri, object_store, monkeypatch
):
    proxied.rule = FAULTS[fault]
    said = swept(experiment, bucket_uri)
    wrong = went_wrong(proxied)
    assert wrong > 3
    # Of the first look and of the report at the end no stage tells; who stalls answers in the end.
    assert (0 if fault == "stalls" else wrong / 2) <= retried(said) <= wrong
    use(object_store.endpoint, monkeypatch)
    check_same(said, open_storage(bucket_uri), undisturbed)


def test_a_server_that_is_away_for_a_minute_while_caching_and_while_training_is_waited_for(
    experiment, undisturbed, proxied, bucket_uri, object_store, monkeypatch
):
    proxied.rule = away(MINUTE, method="PUT", parts=["shard-00001.parquet", "epoch-000002"])
    began = time.monotonic()
    said = swept(experiment, bucket_uri, "--set", "resources.hung_after=10")
    assert time.monotonic() - began > 2 * MINUTE
    assert 10 < retried(said) <= went_wrong(proxied)
    use(object_store.endpoint, monkeypatch)
    check_same(said, open_storage(bucket_uri), undisturbed)
