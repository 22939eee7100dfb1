"""Forecasts beside what came: `plan --measure`, then the run itself, on this machine.

    python -m benchmarks.forecasts [demo] [sweep]

`demo` is the demo's experiment with two seeds instead of five, `sweep` one of 48 trials of a few seconds. Everything is
made in folders that go again; the pilot and the run are processes of their own, each with a Ray of its own. Prints a
line for each figure, and what the pilot took.
"""

import multiprocessing
import sys
import tempfile
import time
from pathlib import Path

import torch

from cluster.storage import checked_storage
from pipeline.__main__ import main as pipeline_main
from pipeline.forecasts.records import compare
from pipeline.forecasts.shown import compared_lines
from pipeline.planning.experiment import load_experiment
from pipeline.stages import Stages, found_plan
from sskt.export import export_bytes
from sskt.networks import ImageFormat, build_target
from sskt.settings import TargetSettings

DEMO = """
storage: {folder}/store
dataset: {{kind: digits, image_size: 16, validation: 0.15, test: 0.25}}
views: {{ops: [pad_crop: 2], count: 4}}
sources:
  mnist: {{weights: {folder}/mnist.safetensors}}
  lite0: {{architecture: efficientnet_lite0, weights: package, input: {{size: 64}}}}
target: {{architecture: small_cnn, options: {{width: 16}}}}
training: {{epochs: 15, steps_per_epoch: 20, batch_size: 64, labels_per_class: 5, lr: 0.05}}
methods:
  - {{method: scratch}}
  - {{method: sskt, sources: [mnist], learn_from: all}}
  - {{method: sskt, sources: [lite0], learn_from: all}}
  - {{method: sskt, sources: [mnist, lite0], learn_from: all}}
  - {{method: kd, sources: [mnist], learn_from: all}}
  - {{method: finetune, sources: [mnist]}}
seeds: [0, 1]
"""
SWEEP = """
storage: {folder}/store
dataset: {{kind: digits, image_size: 16, validation: 0.15, test: 0.25}}
views: {{ops: [pad_crop: 2], count: 4}}
sources:
  mnist: {{weights: {folder}/mnist.safetensors}}
target: {{architecture: small_cnn, options: {{width: 8}}}}
training: {{epochs: 4, steps_per_epoch: 20, batch_size: 64, labels_per_class: 10}}
methods:
  - {{method: scratch}}
  - {{method: sskt, sources: [mnist], learn_from: all}}
grid: {{training.lr: [0.01, 0.02, 0.05, 0.1]}}
seeds: [0, 1, 2, 3, 4, 5]
"""
EXPERIMENTS = {"demo": DEMO, "sweep": SWEEP}


def write_file(folder: str, name: str) -> str:
    """Write an experiment and the small source that it names."""
    settings = TargetSettings(architecture="small_cnn", options={"width": 16})
    torch.manual_seed(0)
    network = build_target(settings, classes=10, image=ImageFormat(1, 28, (0.5,), (0.25,)))
    Path(folder, "mnist.safetensors").write_bytes(export_bytes(network, settings=settings, classes=10))
    file = Path(folder) / f"{name}.yaml"
    file.write_text(EXPERIMENTS[name].format(folder=folder))
    return str(file)


def forecast(file: str) -> None:
    """Pack, measure and plan."""
    Stages(load_experiment(file), print).pack()
    began = time.perf_counter()
    pipeline_main(["plan", file, "--measure"])
    print(f"the pilot took {time.perf_counter() - began:.1f} s", flush=True)


def run(file: str) -> None:
    """Make the caches and train, and print what that took."""
    experiment = load_experiment(file)
    stages, plan = Stages(experiment, print), found_plan(experiment, checked_storage(experiment.storage, write=None))
    began = time.perf_counter()
    stages.cache(plan)
    stages.sweep(plan)
    print(f"caches and trials took {time.perf_counter() - began:.1f} s", flush=True)


def main(names: list[str]) -> int:
    """Forecast and run each; print how they compare."""
    for name in names or list(EXPERIMENTS):
        with tempfile.TemporaryDirectory() as folder:
            file = write_file(folder, name)
            for target in (forecast, run):
                process = multiprocessing.get_context("spawn").Process(target=target, args=(file,))
                process.start()
                process.join()
                if process.exitcode:
                    return process.exitcode
            experiment = load_experiment(file)
            storage = checked_storage(experiment.storage, write=None)
            for line in compared_lines(compare(found_plan(experiment, storage), storage)):
                print(f"{name}: {line}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
