"""How near the chip's limits trainings are, and what caches and sharing a device buy.

    python -m benchmarks.gpu [--device cuda] [--quick] [--only feed source fused processes] [--to FILE]

Needs torch, `sskt/` and this folder. Prints, and with --to writes, Markdown tables: what a matrix product and a copy
reach on this chip; images per second of a bare step (forward, backward and step of the plain network on tensors that
lie there) and of trainings from the resident feed, as they are, in bfloat16 and compiled, with the parts of the bare
step and of the matrix product's rate that they reach, and the memory they take; a cached source against the same one
run live at 224 pixels, beside the bound (T + S) / T; K trials fused into one; K processes side by
side. Networks of torchvision have random weights; where it is not installed they are left out, with a line that
says so. float32 is what cuDNN makes of it, TF32 where the chip has that. --quick: small networks and few steps, to see
that it runs.
"""

import argparse
import importlib.util
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.multiprocessing
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.material import CLASSES, IMAGE, made_up, made_up_answers, make_feed, make_method, settings
from sskt.answers import LiveOutputs
from sskt.compiling import compile_targets
from sskt.feeds import ImageSet, ResidentFeed
from sskt.methods import Method
from sskt.networks import ImageFormat, build_target
from sskt.networks.preprocess import Preprocess, Preprocessing
from sskt.optim import make_optimizer
from sskt.settings import TargetSettings
from sskt.sources import Source
from sskt.stacks import Stack

SOURCE_CLASSES = 1000
Step = Callable[[int], object]
Table = Iterator[str]


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What is measured, and how long."""

    device: torch.device
    networks: tuple[tuple[str, int], ...]
    """Names, and sides of the images they learn from."""
    source: tuple[str, int]
    """Its name, and the side of what it sees."""
    rows: int
    batch: int
    steps: int
    side_by_side: tuple[int, ...]
    fused: tuple[int, ...]
    compiled: bool
    matrix: int
    copied: int
    """Bytes."""


def asked_of(device: torch.device, *, quick: bool) -> Asked:
    """The whole of it, or just enough to run through all of it."""
    if quick:
        return Asked(
            device=device,
            networks=(("small_cnn", 8),),
            source=("small_cnn", 16),
            rows=256,
            batch=16,
            steps=3,
            side_by_side=(1, 2),
            fused=(1, 2),
            compiled=False,
            matrix=256,
            copied=1 << 22,
        )
    return Asked(
        device=device,
        networks=(("resnet20", 32), ("resnet32", 32), ("resnet18", 224)),
        source=("resnet50", 224),
        rows=8192,
        batch=128,
        steps=60,
        side_by_side=(1, 2, 4, 8),
        fused=(1, 2, 4, 8, 16, 32, 64),
        compiled=True,
        matrix=8192,
        copied=1 << 31,
    )


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds(step: Step, asked: Asked) -> float:
    """Of a step: the best of three runs of many."""
    for number in range(max(3, asked.steps // 4)):
        step(number)
    best = float("inf")
    for run in range(1, 4):
        wait(asked.device)
        began = time.perf_counter()
        for number in range(run * asked.steps, (run + 1) * asked.steps):
            step(number)
        wait(asked.device)
        best = min(best, (time.perf_counter() - began) / asked.steps)
    return best


def memory(asked: Asked, run: Callable[[], float]) -> tuple[float, str]:
    """What a measurement gives, and the most memory that the device held meanwhile."""
    if asked.device.type != "cuda":
        return run(), "-"
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(asked.device)
    measured = run()
    return measured, f"{torch.cuda.max_memory_allocated(asked.device) / 1e9:.2f} GB"


def ceilings(asked: Asked) -> dict[torch.dtype, float]:
    """FLOP per second of square matrix products."""
    rates = {}
    torch.backends.cuda.matmul.allow_tf32 = True
    for kind in (torch.float32, torch.bfloat16):
        matrix = torch.randn(asked.matrix, asked.matrix, device=asked.device, dtype=kind)
        rates[kind] = 2 * asked.matrix**3 / seconds(lambda _, matrix=matrix: matrix @ matrix, asked)
    torch.backends.cuda.matmul.allow_tf32 = False
    return rates


def ceiling_lines(asked: Asked, rates: dict[torch.dtype, float]) -> Table:
    """What the chip reaches."""
    yield "| ceiling | measured |\n|---|---|"
    for kind, rate in rates.items():
        yield f"| {str(kind).removeprefix('torch.')} matrix product of {asked.matrix} | {rate / 1e12:.2f} TFLOP/s |"
    data = torch.empty(asked.copied, dtype=torch.uint8, device=asked.device)
    target = torch.empty_like(data)
    copied = 2 * asked.copied / seconds(lambda _: target.copy_(data), asked)
    yield f"| copy of {asked.copied / 1e6:.0f} MB, read and written | {copied / 1e9:.1f} GB/s |"


def plain_network(name: str, side: int, device: torch.device) -> nn.Module:
    """The network alone."""
    target = build_target(TargetSettings(architecture=name), classes=CLASSES, image=image_of(side))
    return target.network.to(device)


def image_of(side: int) -> ImageFormat:
    """Images of that side."""
    return ImageFormat(3, side, IMAGE.mean, IMAGE.std)


def bare_step(name: str, side: int, asked: Asked) -> tuple[Step, float]:
    """The limit of any training of a network, and the FLOP of its step."""
    network = plain_network(name, side, asked.device)
    optimizer, _ = make_optimizer(network.parameters(), training=settings(asked.batch), steps_per_epoch=100)
    pixels = torch.randn(asked.batch, 3, side, side, device=asked.device)
    labels = torch.randint(0, CLASSES, (asked.batch,), device=asked.device)

    def step(_: int) -> None:
        loss = F.cross_entropy(network(pixels), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    with FlopCounterMode(display=False) as counted:
        step(0)
    return step, float(counted.get_total_flops())


def training_step(method: Method, feed: ResidentFeed) -> Step:
    """A step of a training, its batch included."""
    return lambda number: method.step(feed.batch(number))


def images_of(asked: Asked, side: int) -> ImageSet:
    """Noise on the device; fewer of large ones."""
    return made_up(min(asked.rows, (1 << 30) // (3 * side * side)), size=side).to(asked.device)


def feed_lines(asked: Asked, rates: dict[torch.dtype, float]) -> Table:
    """Trainings from the resident feed against the bare step."""
    yield "\n| target | training | images/s | of the bare step | of the matrix product | memory |"
    yield "|---|---|---|---|---|---|"
    for name, side in asked.networks:
        if not there(name):
            yield f"| {name} | left out: torchvision is not installed | | | | |"
            continue
        step, flops = bare_step(name, side, asked)
        images = images_of(asked, side)
        sides = {"bare": (lambda step=step: step, False)} | variants(name, images, asked)
        limit = 0.0
        for what, (make, bf16) in sides.items():
            try:
                took, held = memory(asked, lambda make=make: seconds(make(), asked))
            except RuntimeError as error:  # a compiler's, or want of memory
                yield f"| {name}, {side} px | {what} | left out: {' '.join(str(error).split())[:200]} | | | |"
                continue
            limit = limit or took
            reached = flops / took / rates[torch.bfloat16 if bf16 else torch.float32]
            row = (f"{asked.batch / took:.0f}", f"{limit / took:.3f}", f"{reached:.3f}", held)
            yield f"| {name}, {side} px | {what} | {' | '.join(row)} |"


def variants(name: str, images: ImageSet, asked: Asked) -> dict[str, tuple[Callable[[], Step], bool]]:
    """Trainings of a target, each to be made when its turn has come, and whether it is in bfloat16."""
    cache = {"source": made_up_answers(len(images.images), classes=SOURCE_CLASSES, encoding="u8", device=asked.device)}

    def hard(*, bf16: bool = False, mode: str | None = None) -> Step:
        feed = make_feed(images, batch=asked.batch)
        method = make_method("scratch", name, feed)
        method.target.computes_in = torch.bfloat16 if bf16 else None
        reason = compile_targets(method.student, feed.batch(0).images, mode=mode) if mode else None
        if reason:
            raise RuntimeError(reason)
        return training_step(method, feed)

    def cached() -> Step:
        feed = make_feed(images, cache, batch=asked.batch)
        return training_step(make_method("sskt", name, feed, sources={"source": SOURCE_CLASSES}), feed)

    known: dict[str, tuple[Callable[[], Step], bool]] = {
        "labels": (hard, False),
        "sskt, cached labels": (cached, False),
        "labels, bfloat16": (lambda: hard(bf16=True), True),
    }
    if asked.compiled:
        known["labels, compiled"] = (lambda: hard(mode="default"), False)
        known["labels, compiled, CUDA graphs"] = (lambda: hard(mode="reduce-overhead"), False)
        known["labels, compiled, bfloat16"] = (lambda: hard(bf16=True, mode="default"), True)
    return known


def there(name: str) -> bool:
    """Whether a network can be built."""
    return name in ("small_cnn", "resnet20", "resnet32") or importlib.util.find_spec("torchvision") is not None


def source_of(asked: Asked) -> Source:
    """A source with random weights, that sees enlarged images."""
    name, side = asked.source
    target = build_target(TargetSettings(architecture=name), classes=SOURCE_CLASSES, image=image_of(side))
    target.preprocess = Preprocess(Preprocessing(3, side, IMAGE.mean, IMAGE.std))
    target.to(asked.device)
    return Source("source", target)


def source_lines(asked: Asked, _: dict[torch.dtype, float]) -> Table:
    """A cached source against a live one."""
    (name, side), (student, pixels) = asked.source, asked.networks[0]
    yield "\n| target | T, ms | S, ms | live, images/s | cached, images/s | speed-up | bound (T+S)/T | ratio |"
    yield "|---|---|---|---|---|---|---|---|"
    if not there(name):
        yield f"| {student} | left out: torchvision is not installed, for {name} | | | | | | |"
        return
    images, source = images_of(asked, pixels), source_of(asked)
    cache = made_up_answers(len(images.images), classes=SOURCE_CLASSES, encoding="u8", device=asked.device)
    few = replace(asked, steps=max(3, asked.steps // 4))

    def took(outputs: object) -> float:
        feed = make_feed(images, {"source": outputs}, batch=asked.batch)
        method = make_method("sskt", student, feed, sources={"source": SOURCE_CLASSES})
        return seconds(training_step(method, feed), few)

    seen = make_feed(images, batch=asked.batch).batch(0).images
    alone = seconds(lambda _: source.outputs(seen, ("logits",)), few)
    live, cached = took(LiveOutputs(source, ("logits",))), took(cache)
    speed_up, bound = live / cached, (cached + alone) / cached
    yield (
        f"| {student} beside {name} at {side} px | {1e3 * cached:.2f} | {1e3 * alone:.2f} | {asked.batch / live:.0f} "
        f"| {asked.batch / cached:.0f} | {speed_up:.2f} | {bound:.2f} | {speed_up / bound:.3f} |"
    )


def fused_lines(asked: Asked, _: dict[torch.dtype, float]) -> Table:
    """K trainings whose targets are stacked, against one by itself."""
    name, side = asked.networks[0]
    yield f"\n| trainings of {name} in one | images/s in all | against one by itself | memory |\n|---|---|---|---|"
    images = images_of(asked, side)

    def trainings(count: int) -> tuple[list[Method], list[ResidentFeed]]:
        feeds = [make_feed(images, batch=asked.batch) for _ in range(count)]
        return [make_method("scratch", name, feed) for feed in feeds], feeds

    def alone() -> float:
        (method,), (feed,) = trainings(1)
        return seconds(training_step(method, feed), asked)

    def stacked(count: int) -> float:
        methods, feeds = trainings(count)
        stack = Stack(methods)
        return seconds(lambda number: stack.step([feed.batch(number) for feed in feeds]), asked)

    one = alone()
    for count in asked.fused:
        try:
            took, held = memory(asked, lambda count=count: stacked(count))
        except torch.OutOfMemoryError:
            yield f"| {count} | out of memory | | |"
            return
        yield f"| {count} | {count * asked.batch / took:.0f} | {count * one / took:.2f} | {held} |"


def processes_lines(asked: Asked, _: dict[torch.dtype, float]) -> Table:
    """K processes side by side, each training by itself."""
    name, _ = asked.networks[0]
    yield f"\n| processes of {name} | images/s in all | against one |\n|---|---|---|"
    one = 0.0
    for count in asked.side_by_side:
        rate = side_by_side(count, asked)
        one = one or rate
        yield f"| {count} | {rate:.0f} | {rate / one:.2f} |"


def side_by_side(count: int, asked: Asked) -> float:
    """Images per second of several processes, from when all are ready to when all are done."""
    context = torch.multiprocessing.get_context("spawn")
    barrier, times = context.Barrier(count), context.Queue()
    workers = [context.Process(target=work, args=(asked, barrier, times)) for _ in range(count)]
    for worker in workers:
        worker.start()
    spans: list[tuple[float, float]] = [times.get(timeout=300) for _ in workers]
    for worker in workers:
        worker.join()
    whole = max(end for _, end in spans) - min(begin for begin, _ in spans)
    return count * asked.steps * asked.batch / whole


def work(asked: Asked, barrier: object, times: object) -> None:
    """What one of them does."""
    if asked.device.type == "cpu":
        torch.set_num_threads(1)
    name, side = asked.networks[0]
    feed = make_feed(images_of(asked, side), batch=asked.batch)
    step = training_step(make_method("scratch", name, feed), feed)
    for number in range(5):
        step(number)
    wait(asked.device)
    barrier.wait(timeout=300)  # type: ignore[attr-defined]
    began = time.time()
    for number in range(asked.steps):
        step(number)
    wait(asked.device)
    times.put((began, time.time()))  # type: ignore[attr-defined]


TABLES = {"feed": feed_lines, "source": source_lines, "fused": fused_lines, "processes": processes_lines}


def tables(asked: Asked, wanted: Sequence[str]) -> Table:
    """Those that are wanted, behind what the chip reaches."""
    chip = torch.cuda.get_device_name(asked.device) if asked.device.type == "cuda" else platform.machine()
    yield f"{chip}, torch {torch.__version__}, batches of {asked.batch}, {asked.steps} steps\n"
    torch.backends.cudnn.deterministic = True  # as trials are run
    rates = ceilings(asked)
    yield from ceiling_lines(asked, rates)
    for name in wanted:
        yield from TABLES[name](asked, rates)


def main(argv: Sequence[str] | None = None) -> None:
    """Print the tables as they come, and write them."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__.partition("\n")[0])
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="only to see that it runs")
    parser.add_argument("--only", nargs="+", choices=TABLES, default=tuple(TABLES), help="some of the tables")
    parser.add_argument("--to", type=Path, help="a Markdown file for the tables")
    given = parser.parse_args(argv)
    lines = []
    for line in tables(asked_of(torch.device(given.device), quick=given.quick), given.only):
        print(line, flush=True)
        lines.append(line)
    if given.to:
        given.to.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
