"""How cost grows with samples, views, sources, classes and trials: nothing is to be worse than linear.

    python -m benchmarks.growth [--most 8]

Every kind of work is done at sizes from the smallest to --most times it, each doubled, on made-up data in a temporary
folder, without Ray. Prints the seconds of the smallest and the largest (the best of three), and the slope of their
logarithms: 1 is linear, 0 does not grow. Of short work it is below what it would be of long work, for what is the same
at all sizes counts.
"""

import argparse
import io
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from PIL import Image

from benchmarks.label_cache import spec_of
from benchmarks.material import made_up, made_up_answers, make_feed
from benchmarks.sweep_size import SEEDS, plan_of, write_file, write_results
from cluster.storage import FolderStorage
from pipeline.caches.labels import Made, commit_shard, read_shard
from pipeline.computing import compute_here
from pipeline.packing.pack import pack
from pipeline.packing.packed import read_packed
from pipeline.planning.experiment import load_experiment
from pipeline.planning.specs import Segment
from pipeline.reports.report import make_report
from pipeline.reports.write import write_report
from pipeline.stages import Stages
from sskt.datasets import DatasetSettings
from sskt.export import export_bytes
from sskt.networks import ImageFormat, build_target
from sskt.settings import TargetSettings

REPEATS, STEPS = 3, 20
Run = Callable[[], object]


@dataclass(frozen=True)
class Growth:
    """Work of any size."""

    work: str
    against: str
    smallest: int
    prepare: Callable[[Path, int], Run]
    """(an empty folder, size) -> what is timed."""


def planning(folder: Path, trials: int) -> Run:
    """From the file to the last run key."""
    file = write_file(folder, points=trials // SEEDS)
    plan_of(file)  # packs
    return lambda: plan_of(file)[0].trials


def reporting(folder: Path, trials: int) -> Run:
    """From results to the page."""
    plan, storage = plan_of(write_file(folder, points=trials // SEEDS))
    write_results(plan, storage)
    return lambda: write_report(plan, make_report(plan, storage), storage)


def packing(folder: Path, samples: int) -> Run:
    """From encoded images to packed ones; into another storage every time, for what is packed is found."""
    pictures = np.random.default_rng(0).integers(0, 256, (samples, 16, 16, 3), dtype=np.uint8)
    encoded = []
    for picture in pictures:
        file = io.BytesIO()
        Image.fromarray(picture).save(file, format="png")
        encoded.append({"bytes": file.getvalue(), "path": None})
    table = pa.table({"image": encoded, "label": np.arange(samples) % 10})
    pq.write_table(table, folder / "data.parquet")
    settings = DatasetSettings(kind="parquet", path=str(folder / "data.parquet"), image_size=16)
    stores = iter(range(1000))
    return lambda: pack(settings, FolderStorage(str(folder / f"store{next(stores)}")))


def reading_images(folder: Path, samples: int) -> Run:
    """Packed images to memory."""
    packing(folder, samples)()
    storage = FolderStorage(str(folder / "store0"))
    settings = DatasetSettings(kind="parquet", path=str(folder / "data.parquet"), image_size=16)
    packed = pack(settings, storage)
    return lambda: read_packed(packed, storage)


def reading_labels(folder: Path, *, samples: int = 4096, views: int = 2, classes: int = 100) -> Run:
    """The shards of a cache to memory, verified."""
    storage = FolderStorage(str(folder))
    segment: Segment = spec_of(classes, "u8", samples).segment(0, 0, views)
    made, records = np.random.default_rng(0).integers(0, 256, (samples, views, classes + 4), dtype=np.uint8), []
    for shard in range(segment.shards):
        ids = segment.id_range(shard)
        payload = made[ids.start : ids.stop]
        shard_made = Made(payload=payload, golden={}, passes=0, seconds=0.0)
        records.append(commit_shard(storage, segment, shard=shard, made=shard_made))
    return lambda: [read_shard(storage, segment, record) for record in records]


def planning_sources(folder: Path, sources: int) -> Run:
    """A plan whose trials read so many sources."""
    settings = TargetSettings(architecture="small_cnn", options={"width": 4})
    network = build_target(settings, classes=10, image=ImageFormat(1, 8, (0.5,), (0.25,)))
    (folder / "wise.safetensors").write_bytes(export_bytes(network, settings=settings, classes=10))
    names = [f"source{number}" for number in range(sources)]
    lines = [
        f"storage: {folder}/store",
        "dataset: {kind: digits, image_size: 8, validation: 0.2, test: 0.2}",
        "sources:",
        *(f"  {name}: {{weights: {folder}/wise.safetensors}}" for name in names),
        "target: {architecture: small_cnn, options: {width: 4}}",
        "training: {epochs: 1}",
        f"methods: [{{method: sskt, sources: [{', '.join(names)}]}}]",
    ]
    file = folder / "sources.yaml"
    file.write_text("\n".join(lines))
    Stages(load_experiment(str(file)), lambda line: None).pack()
    return lambda: Stages(load_experiment(str(file)), lambda line: None).pack().trials


def batches(*, samples: int = 10_000, sources: int = 1, classes: int = 100, batch: int = 64) -> Run:
    """Steps of a feed that reads caches."""
    answers = made_up_answers(samples, classes=classes, encoding="u8")
    feed = make_feed(made_up(samples, size=16), {f"source{number}": answers for number in range(sources)}, batch=batch)
    return lambda: [feed.batch(step) for step in range(STEPS)]


def choosing_views(_: Path, views: int) -> Run:
    """Which of so many views is shown, for 4096 samples."""
    from sskt.views import view_of_pass

    ids, passes = torch.arange(4096), torch.zeros(4096, dtype=torch.int64)
    return lambda: view_of_pass(ids, passes, count=views, seed=0)


GROWTHS = (
    Growth("planning", "trials", 200, planning),
    Growth("report", "trials", 1000, reporting),
    Growth("planning", "sources", 2, planning_sources),
    Growth("packing", "samples", 500, packing),
    Growth("reading images", "samples", 500, reading_images),
    Growth("reading labels", "samples", 4096, lambda folder, size: reading_labels(folder, samples=size)),
    Growth("reading labels", "views", 2, lambda folder, size: reading_labels(folder, views=size)),
    Growth("reading labels", "classes", 100, lambda folder, size: reading_labels(folder, classes=size)),
    Growth("choosing views", "views", 8, choosing_views),
    Growth(f"{STEPS} batches", "samples", 10_000, lambda _, size: batches(samples=size)),
    Growth(f"{STEPS} batches", "images of a batch", 64, lambda _, size: batches(batch=size)),
    Growth(f"{STEPS} batches", "sources", 2, lambda _, size: batches(sources=size)),
    Growth(f"{STEPS} batches", "classes", 100, lambda _, size: batches(classes=size)),
)


def best(run: Run) -> float:
    """Seconds, the least of some."""
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return min(times)


def measured(growth: Growth, most: int) -> tuple[list[int], list[float]]:
    """Sizes, and what each takes."""
    sizes, times = [growth.smallest << power for power in range(most.bit_length())], []
    for size in sizes:
        with tempfile.TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
            times.append(best(growth.prepare(Path(folder), size)))
    return sizes, times


def lines(growths: tuple[Growth, ...], *, most: int) -> Iterator[str]:
    """The table."""
    yield "| work | against | from | to | seconds | to | slope |\n|---|---|---|---|---|---|---|"
    for growth in growths:
        sizes, times = measured(growth, most)
        slope = float(np.polyfit(np.log(sizes), np.log(times), 1)[0])
        yield (
            f"| {growth.work} | {growth.against} | {sizes[0]} | {sizes[-1]} | {times[0]:.4f} | {times[-1]:.4f} "
            f"| {slope:.2f} |"
        )


def main() -> None:
    """Print it."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.growth", description=__doc__.partition("\n")[0])
    parser.add_argument("--most", type=int, default=8, help="times the smallest size")
    parser.add_argument("--only", help="work whose name begins so")
    asked = parser.parse_args()
    compute_here(1)
    chosen = tuple(growth for growth in GROWTHS if growth.work.startswith(asked.only or ""))
    for line in lines(chosen, most=asked.most):
        print(line, flush=True)


if __name__ == "__main__":
    main()
