"""What a source takes for a view: by how its weights lie, by how many views it sees at once, by what it computes in.

    python -m benchmarks.source_pace FOLDER [--sides 64 128] [--device cpu]

FOLDER holds CIFAR-10 as `train.parquet`. EfficientNet-Lite0 and Lite2 (ImageNet weights from packages), on one thread
of a CPU or on a GPU; milliseconds of a view, logits and embedding asked, the best of several. `plain` is what PyTorch
does by itself with 256 views at once; the other columns lie with channels last, as the cache stage has them
(`Source.place`): with 256 at once, with as many as it takes by default, and with as many as were quickest. Beside the
shorter precisions stands what they change (`sskt/fidelity.py`), which `cache.budget` has to allow.
"""

import argparse
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.material import cifar
from pipeline.computing import compute_here
from pipeline.forecasts.batches import seconds_by_size
from sskt.fidelity import Fidelity, fidelity
from sskt.settings import InputSettings, SourceSettings
from sskt.sources import USUAL_BATCH, Source, load_source

NAMES, OUTPUTS, SHORT = ("efficientnet_lite0", "efficientnet_lite2"), ("logits", "embedding"), ("float16", "bfloat16")
LARGE, SECONDS = 256, 1.0


@dataclass(frozen=True)
class Paces:
    """Seconds of a view."""

    plain: float
    large: float
    """With channels last, 256 at once."""
    sizes: dict[int, float]


def source_of(name: str, side: int, precision: str = "float32") -> Source:
    """As an experiment has it."""
    given = InputSettings(size=side)
    return load_source(name, SourceSettings(architecture=name, weights="package", input=given, precision=precision))


def answer(source: Source, images: Tensor, size: int) -> None:
    """Ask, and wait."""
    source.outputs(images[:size], OUTPUTS)
    if images.is_cuda:
        torch.cuda.synchronize()


def pace(source: Source, images: Tensor, size: int) -> float:
    """Seconds of a view, so many at once."""
    answer(source, images, size)
    times = []
    for _ in range(3):
        began = time.perf_counter()
        answer(source, images, size)
        times.append(time.perf_counter() - began)
    return min(times) / size


def paces(name: str, side: int, images: Tensor, *, usual: int) -> Paces:
    """Of a source in float32."""
    source = source_of(name, side)
    source.network.to(images.device)
    plain = pace(source, images, LARGE)
    source.place(images.device)
    sizes = seconds_by_size(partial(answer, source, images), most=len(images), used=usual, seconds=SECONDS)
    return Paces(plain, pace(source, images, LARGE), sizes)


def short(name: str, side: int, images: Tensor, precision: str, size: int) -> tuple[float, Fidelity]:
    """Seconds of a view in another precision, and what that changes."""
    source = source_of(name, side, precision).place(images.device)
    parts = images.split(size)
    said = torch.cat([source.outputs(part, ("logits",))["logits"] for part in parts])
    with source.exact():
        exact = torch.cat([source.outputs(part, ("logits",))["logits"] for part in parts])
    return pace(source, images, size), fidelity(exact, said)


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.source_pace", description=__doc__.partition("\n")[0])
    parser.add_argument("folder", help="with train.parquet of CIFAR-10")
    parser.add_argument("--sides", type=int, nargs="+", default=(64, 128), help="pixels that the sources see")
    parser.add_argument("--device", default="cpu")
    asked = parser.parse_args()
    compute_here(1)
    images = cifar(str(Path(asked.folder)), rows=LARGE).images.to(asked.device)
    usual, shorter = USUAL_BATCH[torch.device(asked.device).type], []
    print(f"| source | side | plain, {LARGE} | channels last, {LARGE} | {usual} | best | plain, of {usual} |")
    print("|---|---|---|---|---|---|---|")
    for name in NAMES:
        for side in asked.sides:
            found = paces(name, side, images, usual=usual)
            best = min(found.sizes, key=lambda size: found.sizes[size])
            mine = found.sizes[usual]
            row = [found.plain, found.large, mine, found.sizes[best]]
            told = " | ".join(f"{1e3 * seconds:.2f}" for seconds in row)
            print(f"| {name} | {side} | {told} ({best}) | {found.plain / mine:.2f} |", flush=True)
            for precision in SHORT:
                seconds, changed = short(name, side, images, precision, usual)
                shorter.append(f"| {name} | {side} | {precision} | {1e3 * seconds:.2f} | {changed.words()} |")
    print("\n| source | side | precision | ms | what it changes |\n|---|---|---|---|---|")
    print("\n".join(shorter))


if __name__ == "__main__":
    main()
