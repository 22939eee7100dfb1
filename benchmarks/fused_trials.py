"""What trials that step together in one process learn, beside the same trials in processes of their own.

    python -m benchmarks.fused_trials
    python -m benchmarks.fused_trials --device cuda --batch 128 --at-once 8
    python -m benchmarks.fused_trials --clock cpu

Prints images a second of all of K trials (scratch on random images of 32 x 32 pixels, learning rates and seeds of
their own), in three ways, in turns, the best of several rounds of each:

fused       stacked in one process, with all cores;
processes   each in a process with one thread, so many at once as there are cores, or as --at-once says;
one by one  one after the other in one process, with all cores: its rate is that of a single trial.

`--clock cpu` is for a machine that has other things to do: images per second of CPU time, by one thread each, and
no processes beside each other, for to those a second of CPU time is what it is to one.
"""

import argparse
import multiprocessing
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from pipeline.computing import compute_here
from sskt.feeds import ImageSet, ResidentFeed
from sskt.methods import Facts, Task, get_method
from sskt.methods.base import SingleTarget
from sskt.networks import ImageFormat
from sskt.settings import TargetSettings, TrainingSettings, ViewSettings
from sskt.stacks import Stack
from sskt.views import make_recipe

CLASSES, SIZE, COUNT = 10, 32, 2048
IMAGE = ImageFormat(3, SIZE, (0.5,) * 3, (0.25,) * 3)
RECIPE = make_recipe(ViewSettings(ops=({"pad_crop": 4}, "hflip")), image_size=SIZE)


@dataclass(frozen=True, kw_only=True)
class Case:
    """What is measured."""

    architecture: str
    lanes: int
    batch: int
    device: str
    seconds: float
    clock: Callable[[], float] = time.perf_counter


def trial(case: Case, number: int) -> tuple[SingleTarget, ResidentFeed]:
    """One of the trials, ready to train."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (COUNT, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator)
    splits, labels = torch.zeros(COUNT, dtype=torch.int8), torch.randint(0, CLASSES, (COUNT,), generator=generator)
    training = TrainingSettings(epochs=1000, batch_size=case.batch, lr=0.01 * (1 + number))
    held = ImageSet(images, labels, splits).to(torch.device(case.device))
    feed = ResidentFeed(held, classes=CLASSES, training=training, recipe=RECIPE, view_count=1, seed=number)
    facts = Facts(
        classes=CLASSES, image=IMAGE, sources={}, taps=(), rows=case.batch, pool_rows=case.batch, pool_size=COUNT
    )
    task = Task(
        facts=facts,
        target=TargetSettings(architecture=case.architecture),
        training=training,
        steps_per_epoch=feed.steps_per_epoch,
        seed=number,
        load_source=lambda name: None,  # type: ignore[arg-type, return-value]
        pool=feed.pool(),
        prepare=lambda module: module.to(case.device),
    )
    kind: Any = get_method("scratch")
    method = kind(task, kind.Options())
    method.train(mode=True)
    return method, feed


def pace(step: Callable[[int], object], case: Case) -> float:
    """Steps a second, after a first one."""
    wait = torch.cuda.synchronize if case.device == "cuda" else lambda: None
    step(0)
    wait()
    began, count = case.clock(), 0
    while count < 2 or case.clock() - began < case.seconds:
        count += 1
        step(count)
        wait()
    return count / (case.clock() - began)


def fused(case: Case, threads: int) -> float:
    """Images a second of all trials in one stack."""
    compute_here(threads)
    methods, feeds = zip(*(trial(case, number) for number in range(case.lanes)), strict=True)
    stack = Stack(methods)
    return pace(lambda step: stack.step([feed.batch(step) for feed in feeds]), case) * case.batch * case.lanes


def alone(case: Case, threads: int) -> float:
    """Images a second of one trial."""
    compute_here(threads)
    method, feed = trial(case, 0)
    return pace(lambda step: method.step(feed.batch(step)), case) * case.batch


def _beside(case: Case, barrier: Any, rates: Any) -> None:
    compute_here(1)
    method, feed = trial(case, 0)
    method.step(feed.batch(0))
    barrier.wait()
    rates.put(pace(lambda step: method.step(feed.batch(step)), case) * case.batch)


def processes(case: Case, at_once: int) -> float:
    """Images a second of as many processes as run at once."""
    context, count = multiprocessing.get_context("spawn"), min(at_once, case.lanes)
    barrier, rates = context.Barrier(count), context.Queue()
    workers = [context.Process(target=_beside, args=(case, barrier, rates)) for _ in range(count)]
    for worker in workers:
        worker.start()
    total = sum(rates.get() for _ in workers)
    for worker in workers:
        worker.join()
    return total


def main() -> None:
    """Measure every architecture with every number of trials."""
    cores = len(os.sched_getaffinity(0))
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--architectures", nargs="+", default=["small_cnn", "resnet20"])
    parser.add_argument("--trials", nargs="+", type=int, default=[1, 4, 16])
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--at-once", type=int, default=cores)
    parser.add_argument("--clock", choices=["wall", "cpu"], default="wall")
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--rounds", type=int, default=3)
    asked = parser.parse_args()
    threads = cores if asked.clock == "wall" else 1
    torch.backends.cudnn.deterministic = True  # as trials run
    print(f"{asked.device}, {cores} cores, torch {torch.__version__}, batches of {asked.batch}; images/s of all trials")
    for architecture in asked.architectures:
        for lanes in asked.trials:
            case = Case(
                architecture=architecture,
                lanes=lanes,
                batch=asked.batch,
                device=asked.device,
                seconds=asked.seconds,
                clock=time.process_time if asked.clock == "cpu" else time.perf_counter,
            )
            ways = {
                "fused": partial(fused, case, threads),
                "processes": partial(processes, case, asked.at_once),
                "one by one": partial(alone, case, threads),
            }
            if asked.clock == "cpu":
                del ways["processes"]
            rounds = [[way() for way in ways.values()] for _ in range(asked.rounds)]
            best = dict(zip(ways, map(max, zip(*rounds, strict=True)), strict=True))
            figures = "   ".join(f"{way} {rate:.0f}" for way, rate in best.items())
            ratios = ", ".join(f"{best['fused'] / best[way]:.2f} x {way}" for way in list(ways)[1:])
            print(f"{architecture:10} K={lanes:<3} {figures}   fused is {ratios}", flush=True)


if __name__ == "__main__":
    main()
