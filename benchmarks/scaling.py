"""How much of its speed a training keeps over several processes, by the size of the buckets its gradients travel in.

    python -m benchmarks.scaling [--processes 2] [--targets small_cnn resnet20] [--buckets 0.1 1 25] [--steps 12]

Every process has one CPU (with `--device cuda` a GPU) and 128 images of made-up noise a step. In turns: `alone`, one
process while the others wait; `apart`, all at once, each for itself; and tied by DistributedDataParallel over gloo
(NCCL), by each bucket size in MB (`resources.bucket_mb`). Efficiency is images per second of all processes against so
many times those of one alone; what it loses `apart` already are the machine's caches and memory, the rest is the tie.
`strong`: the same 128 images a step, shared out.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch
import torch.distributed as dist
from torch import multiprocessing, nn

from benchmarks.material import BATCH, made_up, make_feed, make_method
from pipeline.computing import compute_here
from pipeline.trials.tied import tied
from sskt.feeds import ImageSet
from sskt.methods import Method
from sskt.orders import Share

ROWS, WARM, TURNS = 1024, 3, 3


@dataclass(frozen=True)
class Asked:
    """What each process is told."""

    processes: int
    targets: tuple[str, ...]
    buckets: tuple[float, ...]
    steps: int
    device: str


@dataclass(frozen=True)
class Side:
    """A way to train."""

    name: str
    images: int
    """Of a step, in all processes."""
    step: Callable[[int], object]
    alone: bool = False


def sides(asked: Asked, target: str, images: ImageSet, rank: int) -> list[Side]:
    """All ways for one target; every process makes the same ones."""
    n, share = asked.processes, Share(rank=rank, world=asked.processes)

    def stepping(batch: int, *, tie: Callable[[nn.Module], nn.Module] | None) -> Callable[[int], object]:
        feed = make_feed(images, batch=batch, share=share if tie else Share())
        method: Method = make_method("scratch", target, feed, tie=tie or (lambda module: module))
        return lambda step: method.step(feed.batch(step))

    free = stepping(BATCH, tie=None)
    made = [Side("alone", BATCH, free, alone=True), Side("apart", n * BATCH, free)]
    for bucket in asked.buckets:
        tie = partial(tied, world=n, bucket_mb=bucket)
        made.append(Side(f"tied, {bucket:g} MB", n * BATCH, stepping(n * BATCH, tie=tie)))
    made.append(Side("strong", BATCH, stepping(BATCH, tie=partial(tied, world=n, bucket_mb=asked.buckets[0]))))
    return made


def seconds(side: Side, asked: Asked, rank: int) -> float:
    """Of a step, until the last process is done with all of them."""
    dist.barrier()
    began = time.perf_counter()
    if rank == 0 or not side.alone:
        for step in range(asked.steps):
            side.step(step)
        if asked.device == "cuda":
            torch.cuda.synchronize()
    took = time.perf_counter() - began
    dist.barrier()
    return (took if side.alone else time.perf_counter() - began) / asked.steps


def process(rank: int, asked: Asked, folder: str) -> None:
    """What each process does; the first one prints."""
    compute_here(1)
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    if asked.device == "cuda":
        torch.cuda.set_device(rank)
    else:
        os.sched_setaffinity(0, {sorted(os.sched_getaffinity(0))[rank % os.cpu_count()]})
    place = {"init_method": f"file://{folder}/meet", "rank": rank, "world_size": asked.processes}
    dist.init_process_group("nccl" if asked.device == "cuda" else "gloo", **place)
    images = made_up(ROWS * asked.processes)
    images = ImageSet(*(one.to(asked.device) for one in (images.images, images.labels, images.splits)))
    for target in asked.targets:
        ways = sides(asked, target, images, rank)
        for side in ways:
            for step in range(WARM if rank == 0 or not side.alone else 0):
                side.step(step)
        turns = [[seconds(side, asked, rank) for side in ways] for _ in range(TURNS)]
        rates = [side.images / median(each) for side, each in zip(ways, zip(*turns, strict=True), strict=True)]
        for side, rate in zip(ways, rates, strict=True) if rank == 0 else ():
            of = 1 if side.alone else asked.processes
            print(f"| {target} | {side.name} | {rate:,.0f} | {rate / (of * rates[0]):.2f} |", flush=True)
    dist.barrier()
    dist.destroy_process_group()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scaling", description=__doc__.partition("\n")[0])
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--targets", nargs="+", default=("small_cnn", "resnet20"))
    parser.add_argument("--buckets", type=float, nargs="+", default=(0.1, 1, 25), help="MB")
    parser.add_argument("--steps", type=int, default=12, help="of a turn")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    given = parser.parse_args()
    asked = Asked(given.processes, tuple(given.targets), tuple(given.buckets), given.steps, given.device)
    print(f"| target | training, {asked.processes} processes | images/s | efficiency |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        multiprocessing.spawn(process, (asked, folder), nprocs=asked.processes)


if __name__ == "__main__":
    main()
