"""What trials that run side by side take of a node's memory, and that images and labels are there once.

    python -m benchmarks.memory

By the runner that sweeps use, 1, 4 and then 8 trials of a small network at a time, on 300,000 made-up images of 32 x 32
pixels and what a source is supposed to have said of 4 views of each. The kernel is asked about all processes of the
session again and again while they train; of each round the moment counts at which most trials had their images:
RSS, all that a process has mapped; USS, what it has for itself; PSS, that and its share of what it has in common with
others, so that sums over processes count every page once.
"""

import os
import re
import tempfile
import threading
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cluster.resources import Resources
from cluster.session import start_session, usable_cpus
from pipeline.computing import compute_here
from pipeline.planning.experiment import load_experiment
from pipeline.planning.plan import Plan
from pipeline.stages import Stages
from pipeline.trials.runners import Demand, run_packed
from pipeline.trials.trials import Materials
from pipeline.trials.tuning import Fixed
from sskt.export import export_bytes
from sskt.networks import ImageFormat, build_target
from sskt.settings import TargetSettings

AT_ONCE, IMAGES, SIZE, VIEWS = (1, 4, 8), 300_000, 32, 4
EXPERIMENT = """
storage: {folder}/store
dataset: {{kind: digits, image_size: 32}}
views: {{ops: [pad_crop: 2], count: 4}}
sources:
  wise: {{weights: {folder}/wise.safetensors}}
target: {{architecture: small_cnn, options: {{width: 4}}}}
training: {{epochs: 1, steps_per_epoch: 600, batch_size: 64}}
methods: [{{method: sskt, sources: [wise]}}]
seeds: {seeds}
"""


def prepare(folder: str) -> tuple[Plan, Materials]:
    """Plan trials on the digits, and make up what they train from: many more images, all there is said of them."""
    settings = TargetSettings(architecture="small_cnn", options={"width": 4})
    network = build_target(settings, classes=100, image=ImageFormat(1, SIZE, (0.5,), (0.25,)))
    (Path(folder) / "wise.safetensors").write_bytes(export_bytes(network, settings=settings, classes=100))
    file = Path(folder) / "memory.yaml"
    file.write_text(EXPERIMENT.format(folder=folder, seeds=list(range(sum(AT_ONCE)))))
    stages = Stages(load_experiment(str(file)), lambda line: None)
    plan, generator = stages.pack(), np.random.default_rng(0)
    labels = plan.caches["wise"]["logits"].labels
    splits = np.zeros(IMAGES, np.int8)
    splits[-2000:-1000], splits[-1000:] = 1, 2
    return plan, Materials(
        images=generator.integers(0, 256, (IMAGES, 1, SIZE, SIZE), dtype=np.uint8),
        labels=np.arange(IMAGES) % 10,
        splits=splits,
        payload={"wise": {"logits": np.zeros((IMAGES - 2000, VIEWS, labels.view_bytes), np.uint8)}},
        stored={"wise": {"logits": labels}},
        golden={},
        graphs={},
        recipe=plan.recipe,
        edges=(0, IMAGES - 2000),
        sources=dict(plan.experiment.sources),
        experiment="memory",
        storage_uri=stages.storage.uri,
    )


@dataclass(frozen=True)
class Moment:
    """Bytes of the processes of a session. trials: of each that trains its RSS, PSS and USS; everything: PSS of all."""

    trials: tuple[tuple[int, ...], ...] = ()
    everything: int = 0


class Watch(threading.Thread):
    """Asks the kernel until it is told to stop; remembers the moment with most trials, of those the fullest."""

    def __init__(self, shared: int) -> None:
        super().__init__(daemon=True)
        self.shared, self.most, self.ended = shared, Moment(), threading.Event()

    def run(self) -> None:
        """Ask again and again."""
        while not self.ended.wait(0.2):
            self.most = max(self.most, self._now(), key=lambda moment: (len(moment.trials), moment.everything))

    def _now(self) -> Moment:
        found = [(name, taken) for name, taken in map(_taken, _session()) if taken]
        trials = [taken for name, taken in found if name.startswith("ray::") and taken[0] > self.shared]
        return Moment(tuple(trials), sum(pss for _, (_, pss, _) in found))


def _session() -> list[Path]:
    """Of this process and all below it the folders that the kernel has."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parents[int(folder.name)] = int(re.findall(r"PPid:\s+(\d+)", (folder / "status").read_text())[0])
    own = {os.getpid()}
    while more := {child for child, parent in parents.items() if parent in own} - own:
        own |= more
    return [Path("/proc") / str(one) for one in own]


def _taken(folder: Path) -> tuple[str, tuple[int, ...]]:
    """A process's name and its bytes: RSS, PSS, USS; none if it has ended."""
    with suppress(OSError):
        rows = re.findall(r"(\w+):\s+(\d+) kB", (folder / "smaps_rollup").read_text())
        sizes = {name: int(size) * 1024 for name, size in rows}
        taken = (sizes["Rss"], sizes["Pss"], sizes["Private_Clean"] + sizes["Private_Dirty"])
        return (folder / "cmdline").read_text(), taken
    return "", ()


def measure(plan: Plan, materials: Materials, *, first: int, at_once: int) -> str:
    """Run so many trials side by side; return a row of the table."""
    watch = Watch(shared_bytes(materials))
    watch.start()
    demand = Demand(need=Resources(cpus=usable_cpus() / at_once), at_once=at_once)
    ended: list[str] = []
    trials = plan.trials[first : first + at_once]
    run_packed(Fixed(trials), demand, lambda one: ended.append(one.state), materials=materials)
    watch.ended.set()
    watch.join()
    assert ended == ["done"] * at_once, ended
    rss, pss, uss = (np.array(column) / 1e6 for column in zip(*watch.most.trials, strict=True))
    return (
        f"| {at_once} | {len(rss)} | {rss.max():.0f} | {uss.max():.0f} | {rss.sum():.0f} | {pss.sum():.0f} "
        f"| {uss.sum():.0f} | {watch.most.everything / 1e6:.0f} |"
    )


def shared_bytes(materials: Materials) -> int:
    """Bytes of images and labels."""
    arrays = (materials.images, materials.labels, materials.splits, materials.payload["wise"]["logits"])
    return sum(array.nbytes for array in arrays)


def main() -> None:
    """Print the table."""
    compute_here(1)
    with tempfile.TemporaryDirectory() as folder:
        plan, materials = prepare(folder)
        start_session()
        print(f"images and labels: {shared_bytes(materials) / 1e6:.0f} MB; {os.cpu_count()} cores\n")
        print("| trials | seen at once | RSS of one, MB | USS of one | RSS, sum | PSS, sum | USS, sum | PSS of all |")
        print("|---|---|---|---|---|---|---|---|")
        for number, at_once in enumerate(AT_ONCE):
            print(measure(plan, materials, first=sum(AT_ONCE[:number]), at_once=at_once), flush=True)


if __name__ == "__main__":
    main()
