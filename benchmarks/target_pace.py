"""What a training step takes of a target: by how its weights lie, by what it computes in, and compiled.

    python -m benchmarks.target_pace [--targets small_cnn resnet20 ...] [--batch 64] [--compiled small_cnn resnet20]

Steps of `scratch` on made-up images of 32 pixels, on one thread of a CPU, in turns: as PyTorch does it by itself; with
channels last (`resources.channels_last`, the default on a CPU); so and in bfloat16 (`target.precision`); so in float32
and compiled (`resources.compile: default`; what the compiler takes the first time, up to half a minute, is not
counted). Milliseconds of a step by the clock of the process, medians, and how many times as quick as by itself.
bfloat16 is quick where the CPU has instructions for it.
"""

import argparse
from collections.abc import Callable
from statistics import median

from torch import nn

from benchmarks.material import made_up, make_feed, make_method, turns
from pipeline.computing import compute_here
from sskt.compiling import compile_targets
from sskt.feeds import ResidentFeed
from sskt.settings import TargetSettings

ROWS, STEPS = 512, 7
TARGETS = ("small_cnn", "resnet20", "wrn_16_2", "cifar_vgg8", "mobilenet_v2_half", "shufflenet_v2", "resnet18")
Change = Callable[[nn.Module], nn.Module]


def by_itself(module: nn.Module) -> nn.Module:
    """As PyTorch has it."""
    for weight in module.parameters():
        weight.data = weight.data.contiguous()
    return module


def step_of(
    target: str, feed: ResidentFeed, *, precision: str = "float32", change: Change = lambda one: one
) -> Callable:
    """A step of a training."""
    method = make_method("scratch", TargetSettings(architecture=target, precision=precision), feed, tie=change)
    return lambda number: method.step(feed.batch(number))


def measure(target: str, feed: ResidentFeed, *, compiled: bool) -> str:
    """A line of the table."""

    def compiling(module: nn.Module) -> nn.Module:
        reason = compile_targets(module, feed.batch(0).images, mode="default")
        assert reason is None, reason
        return module

    sides = [
        step_of(target, feed, change=by_itself),
        step_of(target, feed),
        step_of(target, feed, precision="bfloat16"),
        *([step_of(target, feed, change=compiling)] if compiled else []),
    ]
    times = [1e3 * median(one) for one in turns(sides, count=STEPS, warm=2)]
    cells = [f"{time:.1f} ({times[0] / time:.2f})" for time in times[1:]] + ["-"] * (not compiled)
    return f"| {target} | {times[0]:.1f} | {' | '.join(cells)} |"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.target_pace", description=__doc__.partition("\n")[0])
    parser.add_argument("--targets", nargs="+", default=TARGETS)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument(
        "--compiled", nargs="*", default=("small_cnn", "resnet20"), help="targets that are compiled too"
    )
    asked = parser.parse_args()
    compute_here(1)
    feed = make_feed(made_up(ROWS), batch=asked.batch)
    print("| target | by itself, ms | channels last | and bfloat16 | compiled |\n|---|---|---|---|---|")
    for target in asked.targets:
        print(measure(target, feed, compiled=target in asked.compiled), flush=True)


if __name__ == "__main__":
    main()
