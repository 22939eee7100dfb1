"""What a CPU gains where processes keep what they free (`cluster/kept_memory.py`) and large tensors lie in large pages.

    python -m benchmarks.kept_memory [--rounds 3]

A source's answers to 32 views and training steps of `scratch` (batches of 64), on one thread, in a thread as Ray runs
trials in one. Each side is a process of its own, in turns; milliseconds of CPU time of a call, the best of the rounds,
how many times as quick as what PyTorch and glibc do by themselves, and the largest resident size in MB.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from functools import partial
from statistics import median

import torch

from benchmarks.material import made_up, make_feed, make_method
from benchmarks.source_pace import answer, source_of
from pipeline.computing import compute_here
from sskt.settings import TargetSettings
from sskt.sources import USUAL_BATCH

CALLS, WARM = 9, 3
SIDES = {"by itself": ("0", False), "kept": ("0", True), "kept, large pages": ("1", True)}
"""Whether PyTorch asks for large pages, and whether what is freed is kept."""


def source_work(name: str, side: int) -> Callable[[int], object]:
    """Answers of a source."""
    source = source_of(name, side).place("cpu")
    images = made_up(USUAL_BATCH["cpu"]).images
    return lambda number: answer(source, images, len(images))


def step_work(target: str, precision: str) -> Callable[[int], object]:
    """Steps of a target."""
    feed = make_feed(made_up(512), batch=64)
    method = make_method("scratch", TargetSettings(architecture=target, precision=precision), feed)
    return lambda number: method.step(feed.batch(number))


WORK: dict[str, Callable[[], Callable[[int], object]]] = {
    f"{name}, {side} px": partial(source_work, name, side)
    for name in ("efficientnet_lite0", "efficientnet_lite2")
    for side in (64, 128)
} | {
    f"{target}, {precision}": partial(step_work, target, precision)
    for target in ("small_cnn", "resnet20")
    for precision in ("float32", "bfloat16")
}


def measure(work: str, *, kept: bool) -> None:
    """Print what a call takes here, in milliseconds, and the largest size of this process, in MB."""
    if kept:
        compute_here(1)
    torch.set_num_threads(1)
    call, times = WORK[work](), []
    for number in range(WARM + CALLS):
        began = time.process_time()
        call(number)
        times.append(1e3 * (time.process_time() - began))
    print(json.dumps([median(times[WARM:]), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))


def side_of(work: str, side: str) -> tuple[float, float]:
    """Measure one side, in a process of its own."""
    pages, kept = SIDES[side]
    command = [sys.executable, "-m", "benchmarks.kept_memory", "--work", work, *["--kept"] * kept]
    environment = os.environ | {"THP_MEM_ALLOC_ENABLE": pages}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)  # noqa: S603
    milliseconds, size = json.loads(done.stdout)
    return milliseconds, size


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kept_memory", description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", choices=WORK, help=argparse.SUPPRESS)
    parser.add_argument("--kept", action="store_true", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.work:
        thread = threading.Thread(target=measure, args=(asked.work,), kwargs={"kept": asked.kept})
        thread.start()
        thread.join()
        return
    print(f"| work | {' | '.join(SIDES)} | MB |\n|---|{'---|' * len(SIDES)}---|")
    for work in WORK:
        rounds = [{side: side_of(work, side) for side in SIDES} for _ in range(asked.rounds)]
        best = {side: min(found[side][0] for found in rounds) for side in SIDES}
        sizes = [f"{max(found[side][1] for found in rounds):.0f}" for side in SIDES]
        cells = [f"{time:.1f} ({best['by itself'] / time:.2f})" for time in best.values()]
        print(f"| {work} | {' | '.join(cells)} | {', '.join(sizes)} |", flush=True)


if __name__ == "__main__":
    main()
