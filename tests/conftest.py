"""What several tests share: a small real experiment, and one local Ray for those that need it."""

import json
import logging
import os
import secrets
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from cluster import logs
from tests.object_store import BUCKET, ObjectStore, forget, running, use

# Read by Ray when it is imported, and by every process the tests start.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")

# A shell has its background jobs ignore Ctrl-C, and with them all that they start: `make test` has such a job.
signal.signal(signal.SIGINT, signal.default_int_handler)

SIZE = 12
CLASSES = ("dark", "middle", "light")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """One Ray at a time: tests that start it are marked, and run one after the other, beside all others."""
    for item in items:
        starts = any(getattr(value, "__module__", "") == "tests.processes" for value in vars(item.module).values())
        if starts or "ray_session" in item.fixturenames:
            item.add_marker(pytest.mark.ray)


@pytest.fixture(autouse=True, scope="session")
def _few_threads() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """180 pictures of three classes that brightness tells apart."""
    root = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for label, name in enumerate(CLASSES):
        (root / name).mkdir()
        for number in range(60):
            pixels = generator.integers(0, 120, (SIZE, SIZE)) + label * 60
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{number}.png")
    return root


@pytest.fixture(scope="session")
def source_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source network of four classes with random weights, as `train --export` writes one."""
    from sskt.export import export_bytes
    from sskt.networks import ImageFormat, build_target
    from sskt.settings import TargetSettings

    settings = TargetSettings(architecture="small_cnn", options={"width": 6})
    with torch.random.fork_rng():
        torch.manual_seed(4)
        network = build_target(settings, classes=4, image=ImageFormat(1, SIZE, (0.5,), (0.25,)))
    file = tmp_path_factory.mktemp("networks") / "wise.safetensors"
    file.write_bytes(export_bytes(network, settings=settings, classes=4))
    return file


@pytest.fixture
def experiment_file(tmp_path: Path, pictures: Path, source_file: Path) -> Path:
    """An experiment of seconds in a storage of its own."""
    return write_experiment(tmp_path, pictures=pictures, source_file=source_file)


def write_experiment(folder: Path, *, pictures: Path, source_file: Path) -> Path:
    """Real pictures, one source, two methods, two seeds."""
    file = folder / "small.yaml"
    file.write_text(f"""
storage: {folder}/store
dataset: {{kind: folder, path: {pictures}, validation: 0.2, test: 0.2}}
views: {{ops: [pad_crop: 1, hflip], count: 3}}
sources:
  wise: {{weights: {source_file}}}
target: {{architecture: small_cnn, options: {{width: 4}}}}
training: {{epochs: 3, steps_per_epoch: 4, batch_size: 16, labels_per_class: 8, lr: 0.05}}
methods:
  - {{method: scratch}}
  - {{method: sskt, sources: [wise], learn_from: all}}
seeds: [0, 1]
""")
    return file


@pytest.fixture(scope="session")
def object_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ObjectStore]:
    """One S3 server for all tests that need one."""
    with running(tmp_path_factory.mktemp("object_store")) as store:
        yield store


@pytest.fixture
def bucket_uri(object_store: ObjectStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A place of its own on the server, which the environment leads to; copies on this node are its own too."""
    use(object_store.endpoint, monkeypatch)
    monkeypatch.setenv("SSKT_NODE_CACHE", str(tmp_path / "node"))
    yield f"s3://{BUCKET}/{secrets.token_hex(8)}"
    forget()


@pytest.fixture
def log_lines(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Callable]:
    """What this process has logged since this was last asked, as if it had been started to log JSON."""

    def forget_stream() -> None:
        logging.getLogger("sskt.events").handlers.clear()
        logs._logger.cache_clear()

    monkeypatch.setenv(logs.VARIABLE, "json")
    forget_stream()
    yield lambda: [json.loads(line, parse_constant=pytest.fail) for line in capsys.readouterr().err.splitlines()]
    forget_stream()


@pytest.fixture(scope="session")
def ray_session() -> Iterator[None]:
    """One local Ray for all tests that run inside this process."""
    import ray

    from cluster.session import start_session

    start_session()
    yield
    ray.shutdown()
