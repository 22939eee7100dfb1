"""The pipeline on the gateway of Ceph 16: no SHA-256 checked by the server, no trailing checksums, other names."""

import secrets
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from cluster import s3
from cluster.storage import open_storage
from tests.ceph import PACKAGES, missing, running_ceph
from tests.object_store import BUCKET, forget, use
from tests.pipeline.sweeps.test_sweep import content, table
from tests.processes import finish

RACERS = 16
pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(bool(missing()), reason=f"needs Debian's {PACKAGES}: no {', '.join(missing())} here"),
]


@pytest.fixture(scope="module")
def gateway() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="ceph-") as folder, running_ceph(Path(folder)) as endpoint:
        yield endpoint


@pytest.fixture
def uri(gateway, monkeypatch) -> Iterator[str]:
    """A place on it; nothing is set but what every own server needs."""
    use(gateway, monkeypatch)
    boto3.session.Session().client("s3", endpoint_url=gateway, region_name="us-east-1").create_bucket(Bucket=BUCKET)
    yield f"s3://{BUCKET}/{secrets.token_hex(8)}"
    forget()


def test_of_many_creators_one_wins(uri):
    storage, won = open_storage(uri), list[int]()
    ready = threading.Barrier(RACERS)

    def create(number: int) -> None:
        ready.wait()
        if storage.create("claims/one.claim", b"%d" % number):
            won.append(number)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(RACERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert storage.read("claims/one.claim") == b"%d" % won[0]


def test_objects_come_back_whole_and_in_parts(uri, monkeypatch):
    storage = open_storage(uri)
    monkeypatch.setattr(s3, "WHOLE_BYTES", 1 << 20)
    for name, data in (("small", b"1"), ("empty", b""), ("large", bytes(range(256)) * (80 << 10))):
        storage.write(f"some/{name}", data)
        assert storage.read(f"some/{name}") == data
    assert [found.key for found in storage.objects("some")] == ["some/empty", "some/large", "some/small"]
    storage.delete("some/small")
    assert storage.read("some/small") is None


def test_a_sweep_is_that_in_a_folder_and_is_found_again(uri, experiment_file):
    code, in_folder = finish("sweep", str(experiment_file))
    assert code == 0, in_folder
    code, first = finish("sweep", str(experiment_file), "--set", f"storage={uri}")
    assert code == 0, first
    assert "sweep   0 trials found, 4 done now" in first
    assert (content(first), table(first)) == (content(in_folder), table(in_folder))
    folder, bucket = open_storage(f"{experiment_file.parent}/store"), open_storage(uri)
    for area in ("datasets", "caches", "networks", "results"):
        assert list(bucket.keys(area)) == list(folder.keys(area))
    assert not [*bucket.keys("claims"), *bucket.keys("checkpoints")]
    code, again = finish("sweep", str(experiment_file), "--set", f"storage={uri}")
    assert code == 0, again
    assert "cache   wise logits: found, 0 source passes;" in again
    assert "sweep   4 trials found, 0 done now" in again
