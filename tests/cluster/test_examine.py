import json
import os
import socket
import subprocess
import sys
import time
import tomllib
from pathlib import Path

import pytest
import ray

from cluster import doctor, examine
from cluster.examine import JoinError, Questions, answers, gather, gpu_problem, heard, join, probe, say, versions
from cluster.storage import FolderStorage, open_storage
from tests.object_store import forget

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def listener():
    """An address where somebody listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


class Forgetful(FolderStorage):
    """One that replaces what it should keep."""

    def create(self, key: str, data: bytes) -> bool:
        self.write(key, data)
        return True


class Sticky(FolderStorage):
    """One that keeps what should go."""

    def delete(self, key: str) -> None:
        pass


class Spoiling(FolderStorage):
    """One that loses the end."""

    def read(self, key: str) -> bytes | None:
        data = super().read(key)
        return data if data is None else data[:100]


class Late(FolderStorage):
    """One whose clock is an hour behind."""

    def write(self, key: str, data: bytes) -> None:
        super().write(key, data)
        os.utime(self.path(key), (time.time() - 3600,) * 2)


def prepared(kind: type[FolderStorage], folder: Path) -> FolderStorage:
    storage = kind(str(folder))
    storage.write("doctor/run/shared", b"")
    return storage


def test_a_storage_that_does_all_it_should_is_measured_and_left_clean(tmp_path):
    storage = prepared(FolderStorage, tmp_path)
    met = probe(storage, "doctor/run/0")
    assert met.problem == ""
    assert met.write_rate > 0
    assert met.read_rate > 0
    assert met.clock_off == 0
    assert list(storage.keys("")) == ["doctor/run/shared"]


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        (Forgetful, "is created again"),
        (Sticky, "what was deleted is still there"),
        (Spoiling, "is not read back"),
    ],
)
def test_a_storage_that_misbehaves_is_found_out(tmp_path, kind, words):
    assert words in probe(prepared(kind, tmp_path), "doctor/run/0").problem


def test_a_folder_of_one_machine_alone_is_found_out(tmp_path):
    assert "a folder of that machine alone" in probe(FolderStorage(str(tmp_path)), "doctor/run/0").problem


def test_a_folder_that_cannot_be_written_is_found_out(tmp_path):
    (tmp_path / "file").write_text("")
    assert "cannot be written" in probe(FolderStorage(str(tmp_path / "file")), "doctor/run/0").problem


def test_a_storage_whose_clock_is_off_is_found_out(tmp_path):
    assert 3590 < probe(prepared(Late, tmp_path), "doctor/run/0").clock_off < 3700


def test_a_bucket_is_probed_with_the_credentials_at_hand(bucket_uri):
    storage = open_storage(bucket_uri)
    storage.write("doctor/run/shared", b"")
    asked = Questions(gpus=0, offers="", object_store_bytes=0, neighbours=[], storage=bucket_uri, place="doctor/run/0")
    facts = say("here", asked)
    assert facts.storage is not None
    assert facts.storage.problem == ""
    assert facts.storage.clock_off < 5
    assert facts.credentials == doctor.Credentials(found_by="env", expire_in=None)
    assert list(storage.keys("")) == ["doctor/run/shared"]


def test_a_bucket_that_may_only_be_read_is_found_out(bucket_uri, monkeypatch):
    from tests.object_store import READ_ONLY_KEY, READ_ONLY_SECRET

    monkeypatch.setenv("AWS_ACCESS_KEY_ID", READ_ONLY_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", READ_ONLY_SECRET)
    forget()
    problem = probe(open_storage(bucket_uri), "doctor/run/0").problem
    assert "access is denied" in problem
    assert READ_ONLY_SECRET not in problem


def test_what_listens_answers_and_what_does_not_does_not(listener):
    assert answers(listener)
    with socket.create_server(("127.0.0.1", 0)) as server:
        closed = f"127.0.0.1:{server.getsockname()[1]}"
    assert not answers(closed)
    assert not answers("nonsense")
    assert not answers("127.0.0.1:99999")


def test_versions_are_those_that_the_project_asks_for():
    wanted = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    names = {name.split("[")[0].split("=")[0].split(">")[0].lower() for name in wanted}
    assert names == {name.lower() for name in doctor.PACKAGES}
    assert versions()["ray"] == ray.__version__
    assert set(versions()) == set(doctor.PACKAGES)


def fake_torch(folder: Path, body: str) -> None:
    (folder / "torch.py").write_text(body)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("class cuda:\n    device_count = staticmethod(lambda: 0)", "torch sees 0 of 2"),
        ("raise RuntimeError('driver too old')", "torch fails (RuntimeError: driver too old)"),
        ("import os; os.abort()", "torch fails (killed)"),
        ("import time; time.sleep(9)", "torch did not finish within 1 s"),
    ],
)
def test_devices_that_torch_cannot_use_are_found_out(tmp_path, monkeypatch, body, words):
    fake_torch(tmp_path, body)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(examine, "PATIENCE", 2.0)
    assert words in gpu_problem(2)


MULTIPLYING = """
class cuda:
    device_count = staticmethod(lambda: 2)
class ones:
    def __init__(self, rows, columns, device): self.right = device != "cuda:1" or {right}
    def __matmul__(self, other): return self
    def sum(self): return self
    def item(self): return 512.0**3 if self.right else 0.0
"""


@pytest.mark.parametrize(("right", "said"), [(True, ""), (False, "device 1 multiplies wrongly")])
def test_every_device_has_to_multiply(tmp_path, monkeypatch, right, said):
    fake_torch(tmp_path, MULTIPLYING.format(right=right))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert said in gpu_problem(2)
    assert bool(said) == bool(gpu_problem(2))


def test_a_cluster_that_is_not_there_is_not_waited_for(monkeypatch):
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    began = time.monotonic()
    with pytest.raises(JoinError, match=r"the cluster at RAY_ADDRESS=127\.0\.0\.1:1 does not answer"):
        join()
    assert time.monotonic() - began < 5


@pytest.mark.usefixtures("ray_session")
def test_this_machine_is_examined_as_a_cluster_of_one(tmp_path):
    facts = gather(storage=str(tmp_path), expected=1)
    assert len(facts.nodes) == 1
    assert facts.silent == {}
    assert facts.nodes[0].token
    assert facts.nodes[0].packages["ray"] == ray.__version__
    assert facts.nodes[0].unreachable == []
    assert list(open_storage(str(tmp_path)).keys("")) == []
    findings = doctor.judge(facts)
    assert [str(finding) for finding in findings if "storage" in finding.what and not finding.ok] == []
    assert findings[0].what.startswith("nodes: ")


@pytest.mark.usefixtures("ray_session")
def test_a_node_that_fails_says_why_in_one_line():
    @ray.remote
    def fail() -> None:
        raise ValueError("no such thing\nat all")

    why = heard(fail.remote(), lambda: None)
    assert isinstance(why, str)
    assert "\n" not in why
    assert "at all" in why


# A process of its own: Ray allows one cluster in each.
TWO_NODES = """
import json, os, sys
from ray.cluster_utils import Cluster
small = dict(num_cpus=1, object_store_memory=100 * 2**20)
cluster = Cluster(initialize_head=True, head_node_args=small | dict(num_cpus=0, include_dashboard=False))
cluster.add_node(**small)
os.environ["RAY_ADDRESS"] = cluster.address
from cluster.__main__ import main
code = main(["doctor", "--storage", sys.argv[1], "--nodes", "3", "--json"])
cluster.shutdown()
sys.exit(code)
"""


@pytest.mark.slow
def test_every_node_of_a_cluster_is_asked(tmp_path):
    (tmp_path / "ray").mkdir()
    (tmp_path / "token").write_text("0" * 64)
    environment = os.environ | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(tmp_path / "token"),
        "PYTHONPATH": str(ROOT),
    }
    done = subprocess.run(
        [sys.executable, "-c", TWO_NODES, str(tmp_path / "store")],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    said = json.loads(done.stdout[done.stdout.index("{") :])
    wrong = [finding["what"] for finding in said["findings"] if not finding["ok"]]
    assert [what for what in wrong if not what.startswith("disk has")] == ["2 nodes instead of 3"], done.stderr
    assert done.returncode == 1
    assert len(said["facts"]["nodes"]) == 2
    assert all(node["storage"]["write_rate"] > 0 for node in said["facts"]["nodes"])
    assert all(node["clock_off"] < 1 for node in said["facts"]["nodes"])
