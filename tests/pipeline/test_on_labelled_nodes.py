"""Whole commands on a cluster of unlike nodes: work runs where it was told to, and what fits nowhere never starts."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import ray
import torch
from safetensors.torch import save_file
from torch import nn

from tests.fragile import in_actor
from tests.processes import ROOT, descendants, finish, kill

pytestmark = pytest.mark.slow

# A process of its own: Ray allows one cluster in each. It ends with its input.
NODES = """
import sys
from ray.cluster_utils import Cluster
small = dict(object_store_memory=100 * 2**20)
cluster = Cluster(initialize_head=True, head_node_args=small | dict(num_cpus=0, include_dashboard=False))
for zone in ("a", "b"):
    cluster.add_node(num_cpus=2, memory=3 * 10**9, labels={"zone": zone}, **small)
print(cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""


class Noting(nn.Module):
    """Notes the zone of every node on which it sees an image, by a file that is named after it."""

    def __init__(self, *, classes: int, notes: str, role: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.fc = nn.Linear(4, classes)
        self.notes, self.role = Path(notes), role

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if in_actor():
            zone = ray.get_runtime_context().get_node_labels()["zone"]
            (self.notes / f"{self.role} on {zone}").touch()
        return self.fc(torch.relu(self.conv(x)).mean(dim=(2, 3)))


def noting(*, classes: int, notes: str, role: str) -> nn.Module:
    return Noting(classes=classes, notes=notes, role=role)


@contextmanager
def cluster(environment: dict[str, str]) -> Iterator[str]:
    """Its address, until the block ends."""
    process = subprocess.Popen(
        [sys.executable, "-c", NODES],
        cwd=ROOT,
        env=os.environ | environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield process.stdout.readline().strip()
    finally:
        started = descendants(process.pid)
        process.stdin.close()
        try:
            process.wait(60)
        finally:
            kill([process.pid, *started])
            process.stdout.close()


@pytest.fixture
def file(experiment_file, tmp_path) -> Path:
    """Sources in zone a, trials in zone b, one a node for its memory."""
    (tmp_path / "notes").mkdir()
    weights = tmp_path / "source.safetensors"
    save_file(noting(classes=4, notes="", role="").state_dict(), weights)
    network = "architecture: 'tests.pipeline.test_on_labelled_nodes:noting'"
    normalised = "input: {mean: [0.5], std: [0.5]}"
    options = f"options: {{notes: {tmp_path}/notes, role: %s}}"
    text = experiment_file.read_text()
    for old, new in (
        (text[text.index("target:") : text.index("training:")], f"target: {{{network}, {options % 'target'}}}\n"),
        (
            text[text.index("  wise:") : text.index("target:")],
            f"  wise: {{{network}, weights: {weights}, classes: 4, {options % 'source'}, {normalised}}}\n",
        ),
    ):
        text = text.replace(old, new)
    experiment_file.write_text(
        text + "resources: {memory_gb_per_trial: 2, trial_node_labels: {zone: b}, source_node_labels: {zone: a}}\n"
    )
    return experiment_file


def with_set(*changes: str) -> list[str]:
    return [word for change in changes for word in ("--set", change)]


@pytest.mark.timeout(600)
def test_work_runs_where_it_was_told_to(file, tmp_path, monkeypatch):
    with tempfile.TemporaryDirectory(prefix="sskt-") as short:  # sockets have to have short names
        (Path(short) / "ray").mkdir()
        (Path(short) / "token").write_text("0" * 64)
        shared = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": f"{short}/token", "RAY_TMPDIR": short}
        with cluster(shared) as address:
            for name, value in (shared | {"RAY_ADDRESS": address}).items():
                monkeypatch.setenv(name, value)
            code, said = finish("sweep", str(file))
            assert code == 0, said
            assert "1 side by side" in said
            assert {path.name for path in tmp_path.glob("notes/*")} == {"source on a", "target on b"}

            for path in tmp_path.glob("notes/target*"):
                path.unlink()
            changes = ("seeds=[7]", "resources.workers=2", "resources.memory_gb_per_trial=1")
            code, said = finish("train", str(file), "--trial", "0", *with_set(*changes))
            assert code == 0, said
            assert [path.name for path in tmp_path.glob("notes/target*")] == ["target on b"]

            for change, wanted in (
                ("trial_node_labels={zone: c}", "needs 1 CPUs, 0 GPUs, 2 GB, zone=c; the nodes have "),
                ("memory_gb_per_trial=4", "needs 1 CPUs, 0 GPUs, 4 GB, zone=b; the nodes have "),
            ):
                code, said = finish("sweep", str(file), *with_set("seeds=[8]", f"resources.{change}"))
                assert code == 2
                (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
                assert wanted in line
                assert "1 x 2 CPUs, 0 GPUs, 3 GB, zone=a" in line
                assert "1 x 2 CPUs, 0 GPUs, 3 GB, zone=b" in line
            changes = ("views.count=4", "resources.source_node_labels={zone: c}")
            code, said = finish("sweep", str(file), *with_set(*changes))
            assert (code, "needs 1 CPUs, 0 GPUs, zone=c" in said) == (2, True), said


def test_labels_belong_to_clusters(file):
    code, said = finish("sweep", str(file))
    assert code == 2
    assert "needs 1 CPUs, 0 GPUs, 2 GB, zone=b; the nodes have 1 x " in said
