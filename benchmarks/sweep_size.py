"""What a large sweep costs its driver: seconds and memory of planning it, of seeing what is done, of its report.

    python -m benchmarks.sweep_size [POINTS]

A real plan on scikit-learn's digits, and for every trial a made-up result with a history of 30 epochs. The steps run in
a fresh process that has planned and reported a sweep of a few points: what is loaded once does not count.
"""

import multiprocessing
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch

from cluster.storage import FolderStorage
from pipeline.canonical import canonical
from pipeline.planning.experiment import load_experiment
from pipeline.planning.plan import Plan, PlannedTrial
from pipeline.reports.report import make_report
from pipeline.reports.write import write_report
from pipeline.stages import Stages
from pipeline.trials.results import existing_results
from sskt.export import export_bytes
from sskt.networks import ImageFormat, build_target
from sskt.settings import TargetSettings

T = TypeVar("T")

USUAL_POINTS, FEW_POINTS, SEEDS, EPOCHS = 1000, 10, 5, 30
EXPERIMENT = """
storage: {folder}/store
dataset: {{kind: digits, image_size: 8, validation: 0.2, test: 0.2}}
sources:
  wise: {{weights: {folder}/wise.safetensors}}
target: {{architecture: small_cnn, options: {{width: 4}}}}
training: {{epochs: {epochs}, batch_size: 64}}
methods:
  - {{method: scratch}}
  - {{method: sskt, sources: [wise]}}
grid: {{training.lr: {rates}}}
seeds: {seeds}
"""


def write_file(folder: Path, *, points: int) -> str:
    """Write an experiment of so many points, half of them of each method, and the source it names."""
    settings = TargetSettings(architecture="small_cnn", options={"width": 4})
    torch.manual_seed(0)
    network = build_target(settings, classes=10, image=ImageFormat(1, 8, (0.5,), (0.25,)))
    (folder / "wise.safetensors").write_bytes(export_bytes(network, settings=settings, classes=10))
    rates = [0.001 * (number + 1) for number in range(points // 2)]
    file = folder / f"sweep{points}.yaml"
    file.write_text(EXPERIMENT.format(folder=folder, epochs=EPOCHS, rates=rates, seeds=list(range(SEEDS))))
    return str(file)


def plan_of(file: str) -> tuple[Plan, FolderStorage]:
    """The plan of an experiment, and its storage."""
    stages = Stages(load_experiment(file), lambda line: None)
    return stages.pack(), FolderStorage(stages.storage.uri)


def write_results(plan: Plan, storage: FolderStorage) -> None:
    """Write a result for every trial as `write_result` spells it, without waiting for the disk."""
    storage.path("results").mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(0)
    for planned in plan.trials:
        storage.path(f"results/{planned.run_key}.json").write_text(canonical(made_up(planned, generator)))


def made_up(planned: PlannedTrial, generator: np.random.Generator) -> dict[str, object]:
    """A result as `pipeline.trials.trials.describe` makes them."""
    parts = ("loss", "primary", "auxiliary", "validation_accuracy")
    history = [
        {"epoch": epoch} | dict(zip(parts, generator.uniform(0, 100, len(parts)).tolist(), strict=True))
        for epoch in range(1, EPOCHS + 1)
    ]
    return {
        "run_key": planned.run_key,
        "label": planned.trial.label,
        "spec": planned.spec,
        "metric": "accuracy",
        "test": {"accuracy": float(generator.uniform(0, 100))},
        "validation": {"accuracy": history[-1]["validation_accuracy"]},
        "best_epoch": 1,
        "history": history,
        "label_rows": 1000,
        "training_seconds": 1.0,
        "seconds": 1.0,
        "processes": 1,
        "versions": {"torch": torch.__version__},
    }


def measure(small: str, file: str) -> None:
    """Do what the driver of a sweep does beside training; print what each step took."""
    plan, storage = plan_of(small)  # loads what is loaded once
    write_report(plan, make_report(plan, storage), storage)
    began, before = time.perf_counter(), resident_kilobytes()
    plan, storage = measured("plan", lambda: plan_of(file))
    trials = len(plan.trials)
    found = measured("existing", lambda: existing_results(storage))
    report = measured("report", lambda: make_report(plan, storage))
    measured("written", lambda: write_report(plan, report, storage))
    told("in all", time.perf_counter() - began, resident_kilobytes() - before)
    print(f"{trials} trials, {len(found)} results found, {report.cost.trials} reported in {len(report.rows)} rows")


def measured(name: str, step: Callable[[], T]) -> T:
    """Run a step; print its seconds and by how much this process grew."""
    began, before = time.perf_counter(), resident_kilobytes()
    value = step()
    told(name, time.perf_counter() - began, resident_kilobytes() - before)
    return value


def told(name: str, seconds: float, kilobytes: int) -> None:
    """Print what a step took."""
    print(f"{name:<10} {seconds:7.2f} s {kilobytes:8} kB", flush=True)


def resident_kilobytes() -> int:
    """Memory of this process that is in use."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))


def main(points: int) -> int | None:
    """Prepare in this process, measure in a fresh one; return its exit code."""
    with tempfile.TemporaryDirectory() as name:
        small, large = (write_file(Path(name), points=points) for points in (FEW_POINTS, points))
        for file in (small, large):
            write_results(*plan_of(file))
        process = multiprocessing.get_context("spawn").Process(target=measure, args=(small, large))
        process.start()
        process.join()
        return process.exitcode


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]) if len(sys.argv) > 1 else USUAL_POINTS))
