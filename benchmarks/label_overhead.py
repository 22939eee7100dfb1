"""What labels from a cache cost a training step, and how long it waits for its batches.

    python -m benchmarks.label_overhead FOLDER [--rounds 8] [--networks small_cnn resnet20]

FOLDER holds CIFAR-10 as `train.parquet`. Three trainings of a target on one CPU take turns, step by step: `hard` learns
from labels alone; `sskt` has a linear head and reads a cache of 1000 classes; `fixed` does the same arithmetic on
answers that lie there decoded. A round is as many steps as a feed draws at once. What labels cost is `sskt` less
`fixed`, as a part of `hard`, the median of the rounds: the head's own arithmetic is in both. That is a difference of
large numbers; the lookup beside it is timed by itself. The wait is what the host spends in the feed, of the steps of
`sskt`; on a CPU the feed's own work is all of it. Times are those of the process on its CPU.
"""

import argparse
import time
from dataclasses import dataclass, field, replace
from statistics import median

from torch import Tensor

from benchmarks.material import cifar, made_up_answers, make_feed, make_method, turns
from pipeline.computing import compute_here
from sskt.feeds import ImageSet, ResidentFeed
from sskt.methods import Method

ENCODINGS = ("u8", "top10")
SOURCE_CLASSES, ROWS = 1000, 10_000


@dataclass
class Side:
    """A training whose waits for batches are timed."""

    method: Method
    feed: ResidentFeed
    answers: dict[str, dict[str, Tensor]] | None = None
    """In place of the feed's."""
    waits: list[float] = field(default_factory=list)

    def run(self, step: int) -> None:
        """Take a step."""
        began = time.process_time()
        batch = self.feed.batch(step)
        self.waits.append(time.process_time() - began)
        self.method.step(batch if self.answers is None else replace(batch, outputs=self.answers))


def measure(network: str, encoding: str, images: ImageSet, *, rounds: int) -> str:
    """A line of the table."""
    answers = {"source": made_up_answers(len(images.images), classes=SOURCE_CLASSES, encoding=encoding)}
    plain, cached = make_feed(images), make_feed(images, answers)
    hard = Side(make_method("scratch", network, plain), plain)
    methods = [make_method("sskt", network, cached, sources={"source": SOURCE_CLASSES}) for _ in range(2)]
    fixed, sskt = Side(methods[0], make_feed(images), cached.batch(0).outputs), Side(methods[1], cached)
    ahead = plain.ahead
    times = turns([side.run for side in (hard, fixed, sskt)], count=rounds * ahead, warm=ahead)
    by_hard, by_fixed, by_sskt = (by_round(one, ahead) for one in times)
    without, wait = (by_round(side.waits[ahead:], ahead) for side in (fixed, sskt))
    costs = [100 * (one - other) / whole for one, other, whole in zip(by_sskt, by_fixed, by_hard, strict=True)]
    lookup, usual = median(wait) - median(without), median(by_hard)
    return (
        f"| {network} | {encoding} | {usual:.2f} | {median(by_fixed):.2f} | {median(by_sskt):.2f} "
        f"| {median(costs):.2f} % ({min(costs):.1f} to {max(costs):.1f}) | {lookup:.3f}: {100 * lookup / usual:.2f} % "
        f"| {median(wait):.3f}: {100 * median(wait) / median(by_sskt):.2f} % |"
    )


def by_round(seconds: list[float], length: int) -> list[float]:
    """Mean milliseconds of a step, for every round of so many."""
    return [1e3 * sum(seconds[at : at + length]) / length for at in range(0, len(seconds), length)]


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.label_overhead", description=__doc__.partition("\n")[0])
    parser.add_argument("folder", help="with train.parquet of CIFAR-10")
    parser.add_argument("--rounds", type=int, default=8, help="of so many steps as a feed draws at once")
    parser.add_argument("--networks", nargs="+", default=("small_cnn", "resnet20"))
    asked = parser.parse_args()
    compute_here(1)
    images = cifar(asked.folder, rows=ROWS)
    print("ms of a step of 128 images, medians of the rounds\n")
    print("| target | cache | hard | fixed | sskt | labels cost, of hard | lookup, of hard | wait, of sskt |")
    print("|---|---|---|---|---|---|---|---|")
    for network in asked.networks:
        for encoding in ENCODINGS:
            print(measure(network, encoding, images, rounds=asked.rounds), flush=True)


if __name__ == "__main__":
    main()
