"""What a sweep from cached labels saves, against the same sweep with live sources, and against what is possible.

    python -m benchmarks.cached_or_live [--cifar FOLDER] [--trials 48] [--live 3] [--epochs 2] [--sides 64 48]

Trials of SSKT on scikit-learn's digits, or on the first 4,000 images of CIFAR-10 (`train.parquet` of a folder), with
EfficientNet-Lite0 (ImageNet weights from a package) at one or more sizes as sources. All of it on one CPU: the cache by
its stage (Ray's start included), trials one after the other without Ray. Live trials take long, so a few of them are
run, in turns with the cached ones, and counted as if all had been.

T is what a training step takes of the target, S what its sources take in it, run live. A live sweep of n trials costs
n (T + S) a step, a cached one n T, and C once for the cache: the speed-up is bounded by (T + S) / T. Evaluations,
checkpoints and reading the cache are in what is measured, not in the bound. Break-even is the number of trials after
which the cache has cost less than its sources would have.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pyarrow.parquet as pq
import torch
from torch import Tensor

from cluster.storage import Storage
from pipeline.planning.experiment import load_experiment
from pipeline.planning.plan import Plan, PlannedTrial
from pipeline.stages import Stages
from pipeline.sweeps.sweep import make_demand
from pipeline.trials.results import read_result
from pipeline.trials.runners import run_plain
from pipeline.trials.trials import Materials, Process, gather_materials, make_feed, make_method, reset_process
from sskt.answers import SourceOutputs
from sskt.views import Kind

WARM, STEPS = 5, 40
EXPERIMENT = """
storage: {folder}/store
dataset: {dataset}
views: {{ops: [pad_crop: 2], count: {views}}}
sources: {sources}
target: {{architecture: resnet20}}
training: {{epochs: {epochs}, steps_per_epoch: 75, batch_size: 64, lr: 0.05}}
methods: [{{method: sskt, sources: {names}}}]
seeds: {seeds}
resources: {{runner: plain}}
"""


DIGITS, SOME = "{kind: digits, image_size: 16, validation: 0.1, test: 0.3}", 4000


def some_of_cifar(given: str, folder: str) -> str:
    """The first images of CIFAR-10 as a data set."""
    path = Path(folder) / "some.parquet"
    pq.write_table(pq.read_table(Path(given) / "train.parquet").slice(0, SOME), path)
    return f"{{kind: parquet, path: {path}, validation: 0.1, test: 0.2}}"


def sources_of(sides: Sequence[int], *, live: bool) -> str:
    """Lite0 at each size."""
    return json.dumps(
        {
            f"lite0 at {side}": {
                "architecture": "efficientnet_lite0", "weights": "package", "input": {"size": side}, "live": live
            }
            for side in sides
        }
    )  # fmt: skip


@dataclass
class Timed:
    """A source's answers, with the time they take."""

    inner: SourceOutputs
    seconds: float = 0

    def __call__(self, images: Tensor, *, ids: Tensor, views: Tensor, kind: Kind = "") -> dict[str, Tensor]:
        """Ask, and look at the clock."""
        began = time.perf_counter()
        answer = self.inner(images, ids=ids, views=views, kind=kind)
        self.seconds += time.perf_counter() - began
        return answer


def step_times(planned: PlannedTrial, materials: Materials, process: Process) -> tuple[float, float]:
    """Seconds that a training step takes: of the target, and of its sources' answers."""
    reset_process(process.threads)
    feed = make_feed(planned, materials, process)
    timed = {name: Timed(inner) for name, inner in feed.outputs.items()}
    feed.outputs = timed
    method = make_method(planned, materials, feed=feed, process=process)
    method.train(mode=True)
    target, sources = [], []
    for step in range(WARM + STEPS):
        began, before = time.perf_counter(), sum(one.seconds for one in timed.values())
        method.step(feed.batch(step))
        whole, asked = time.perf_counter() - began, sum(one.seconds for one in timed.values()) - before
        target.append(whole - asked)
        sources.append(asked)
    return statistics.median(target[WARM:]), statistics.median(sources[WARM:])


@dataclass(frozen=True)
class Side:
    """The sweep with cached or with live sources."""

    plan: Plan
    storage: Storage
    materials: Materials

    def trial_seconds(self, number: int) -> float:
        """Run a trial that has not been run."""
        demand = make_demand(self.plan.experiment.resources, "plain")
        began = time.perf_counter()
        assert run_plain(self.plan.trials[number], self.materials, demand).state == "done"
        return time.perf_counter() - began

    def history(self, number: int) -> list[dict[str, float]]:
        """The epochs of a trial that was run."""
        return read_result(self.storage, self.plan.trials[number].run_key)["history"]


def prepare(text: str, folder: str, name: str) -> tuple[Side, float]:
    """Everything before the trials; also the seconds that the cache took."""
    file = Path(folder) / f"{name}.yaml"
    file.write_text(text)
    stages = Stages(load_experiment(str(file)), lambda line: None)
    plan = stages.pack()
    began = time.perf_counter()
    stages.cache(plan)
    seconds = time.perf_counter() - began
    return Side(plan, stages.storage, gather_materials(plan, stages.storage, plan.trials)), seconds


def run_sides(cached: Side, live: Side, *, trials: int, few: int) -> tuple[float, float]:
    """Mean seconds of all cached trials and of a few live ones, which come in turns with them."""
    times: tuple[list[float], list[float]] = ([], [])
    for number in range(trials):
        times[0].append(cached.trial_seconds(number))
        if number * few // trials > (number - 1) * few // trials:
            times[1].append(live.trial_seconds(number))
            differing = abs(cached.history(number)[-1]["loss"] - live.history(number)[-1]["loss"])
            assert differing < 0.05, "both train the same; what is cached is rounded"
    return statistics.fmean(times[0]), statistics.fmean(times[1])


def arguments() -> argparse.Namespace:
    """Of the command line."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cached_or_live", description=__doc__.partition("\n")[0])
    parser.add_argument("--trials", type=int, default=48, help="of the sweep")
    parser.add_argument("--live", type=int, default=3, help="trials that are run live")
    parser.add_argument("--epochs", type=int, default=2, help="of 75 steps of 64 images")
    parser.add_argument("--views", type=int, default=2, help="that are cached of each image")
    parser.add_argument("--sides", type=int, nargs="+", default=(64, 48), help="pixels that the sources see")
    parser.add_argument("--cifar", help="a folder with train.parquet, in place of digits")
    return parser.parse_args()


def main() -> None:
    """Print both sides, the bound and the break-even."""
    asked, cpus = arguments(), os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cpus)})
    with tempfile.TemporaryDirectory() as folder:
        written = partial(
            EXPERIMENT.format,
            folder=folder,
            views=asked.views,
            dataset=some_of_cifar(asked.cifar, folder) if asked.cifar else DIGITS,
            names=json.dumps([f"lite0 at {side}" for side in asked.sides]),
            epochs=asked.epochs,
            seeds=list(range(asked.trials)),
        )
        cached, cache = prepare(written(sources=sources_of(asked.sides, live=False)), folder, "cached")
        live, _ = prepare(written(sources=sources_of(asked.sides, live=True)), folder, "live")
        process = Process(device=torch.device("cpu"), threads=1)
        target, sources = step_times(live.plan.trials[0], live.materials, process)
        _, lookup = step_times(cached.plan.trials[0], cached.materials, process)
        one_cached, one_live = run_sides(cached, live, trials=asked.trials, few=asked.live)
    n, bound = asked.trials, (target + sources) / target
    whole_cached, whole_live = cache + n * one_cached, n * one_live
    speed_up = whole_live / whole_cached
    print(
        f"a step: T {1e3 * target:.2f} ms of the target, S {1e3 * sources:.2f} ms of its live sources; "
        f"{1e3 * lookup:.3f} ms where they are cached"
    )
    print(f"cache C       {cache:8.1f} s")
    print(f"cached sweep  {whole_cached:8.1f} s: C and {n} trials of {one_cached:.2f} s")
    print(f"live sweep    {whole_live:8.1f} s: {n} trials of {one_live:.2f} s, {asked.live} of them run")
    print(f"speed-up      {speed_up:8.2f}, with the cache; the trials alone {one_live / one_cached:.2f}")
    print(f"bound (T+S)/T {bound:8.2f}; ratio {speed_up / bound:.2f}")
    print(f"break-even    {cache / (one_live - one_cached):8.2f} trials")


if __name__ == "__main__":
    main()
