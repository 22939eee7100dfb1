"""How quickly a streamed feed makes batches, beside pyarrow reading the same files, and how much memory it takes.

    python -m benchmarks.streamed_feed [warm] [cold] [memory] [bucket]

Writes a packed set of 64 parts of 16 MiB (87,000 images of 64 x 64), several times what a streamed feed has in memory,
and makes up what a source said of 4 views: 1000 classes as top10. In turns, the best of 3, batches of 256 with their
views drawn and their labels decoded, from which nothing learns, of as many images as 24 parts hold:
- by the simplest loop: `pyarrow.parquet.read_table` of one part after the other, in order, unchecked, unshuffled,
- by the same loop while threads read the next two parts,
- by a streamed feed, shuffled and checked, from its second batch on; in its first pass it checks every part by SHA-256.
Ratios are those of images per second to the quicker loop's, and of the processor's time, of all threads, to the first
loop's. `warm`: the files are in the page cache, views are cut and flipped, or resized too; `cold`: they are not there
before a run; `memory`: the peak of a process that streams one pass; `bucket`: half of the set on a bucket, whose
server is on the same machine. Without any word all four.
"""

import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from hashlib import sha256
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pyarrow import fs

from cluster.storage import Storage, open_storage
from pipeline.columns import read_rows
from pipeline.computing import compute_here
from pipeline.packing.pack import _part_bytes, part_rows
from pipeline.packing.packed import IMAGE_FIELD, PackedDataset, PackedPart, PoolBlock
from pipeline.tensors import as_tensor
from pipeline.trials.streaming import StreamedImages, open_shelf
from sskt.answers import CachedOutputs, Column
from sskt.encodings import get_encoding
from sskt.feeds import Batch, ImageSet
from sskt.settings import TrainingSettings, ViewSettings
from sskt.streamed import AHEAD, WINDOW, StreamedFeed
from sskt.views import Recipe, make_recipe, view_of_pass
from tests.object_store import ACCESS_KEY, BUCKET, SECRET_KEY, environment, forget, running

SIZE, CLASSES, VIEWS, BATCH, PARTS, TURNS = 64, 1000, 4, 256, 64, 3
SOME = 24
"""Parts whose images are counted."""
FLIPPED = make_recipe(ViewSettings(ops=({"pad_crop": 4}, "hflip"), count=VIEWS), image_size=SIZE)
RESIZED = make_recipe(ViewSettings(ops=("random_resized_crop", "hflip"), count=VIEWS), image_size=SIZE)
CPU = torch.device("cpu")


def write_set(storage: Storage, parts: int) -> PackedDataset:
    """Parts as `pack` writes them, all of the same pixels; zstd leaves three quarters of them, as of photographs."""
    each, generator = part_rows(3 * SIZE * SIZE), np.random.default_rng(0)
    coarse = generator.integers(0, 192, (each, 3, SIZE // 8, SIZE // 8), dtype=np.uint8).repeat(8, 2).repeat(8, 3)
    images, rows = coarse + generator.integers(0, 64, coarse.shape, dtype=np.uint8), parts * each
    labels, splits = np.arange(rows, dtype=np.int32) % CLASSES, np.zeros(rows, np.int8)
    said = SimpleNamespace(keys=[str(row) for row in range(rows)], labels=labels, splits=splits, own_splits=[0] * rows)
    written = []
    for number in range(parts):
        data = _part_bytes(said, slice(number * each, (number + 1) * each), images)
        written.append(PackedPart(name=f"part-{number:05d}.parquet", rows=each, sha256=sha256(data).hexdigest()))
        storage.write(f"datasets/benchmark/{written[-1].name}", data)
    return PackedDataset(
        pack_id="benchmark", name="made", classes=tuple(map(str, range(CLASSES))), multi_label=False,
        rows=rows, pool=rows, unlabelled=0, labelled=(), validation=0, test=0, channels=3, size=SIZE,
        mean=(0.5,) * 3, std=(0.25,) * 3, fingerprint="x", blocks=(PoolBlock(stop=rows, fingerprint="x"),),
        not_grown=None, parts=tuple(written), unreadable=(), settings={}, signature="x",
    )  # fmt: skip


def labels_of(rows: int) -> CachedOutputs:
    """What a source is supposed to have said of all views."""
    encoding = get_encoding("top10", "logits")
    some = encoding.encode(torch.randn(4096, CLASSES, generator=torch.Generator().manual_seed(0)) * 4)
    payload = some[torch.arange(rows * VIEWS) % len(some)].view(rows, VIEWS, -1)
    return CachedOutputs({"": {"logits": Column(payload, encoding, CLASSES)}})


Table = Callable[[int], pa.Table]


def simplest(tables: Iterator[pa.Table], recipe: Recipe, outputs: CachedOutputs) -> Iterator[Batch]:
    """Batches in the order of the files, by the views and the decoder of the feeds."""
    first = 0
    for table in tables:
        images = as_tensor(read_rows(table.column(IMAGE_FIELD)).reshape(-1, 3, SIZE, SIZE))
        labels = torch.from_numpy(table.column("label").to_numpy()).long()
        for rows in torch.arange(len(images)).split(BATCH):
            ids = rows + first
            views = view_of_pass(ids, torch.zeros_like(ids), count=VIEWS, seed=0)
            shown = recipe.apply(images[rows], ids=ids, views=views)
            yield Batch(shown, labels[rows], ids, views, {"source": outputs(shown, ids=ids, views=views)})
        first += len(images)


def one_by_one(read: Table, parts: int) -> Iterator[pa.Table]:
    """Nothing is read while a part is used."""
    return map(read, range(parts))


def two_ahead(read: Table, parts: int) -> Iterator[pa.Table]:
    """Threads read the next two parts."""
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(read, part) for part in range(min(3, parts))]
        for part in range(parts):
            yield waiting.pop(0).result()
            if part + 3 < parts:
                waiting.append(pool.submit(read, part + 3))


def streamed(storage: Storage, packed: PackedDataset, recipe: Recipe, outputs: CachedOutputs) -> StreamedFeed:
    """The feed as a trial has it."""
    images = StreamedImages(packed=packed, storage_uri=storage.uri, node_cache_gb=0)
    shelf = open_shelf(images, golden={}, recipe=recipe, device=CPU)
    labels, splits = torch.arange(packed.rows) % CLASSES, torch.zeros(packed.rows, dtype=torch.int8)
    return StreamedFeed(
        ImageSet(shelf, labels, splits, packed.edges),
        classes=CLASSES,
        training=TrainingSettings(epochs=1, batch_size=BATCH),
        recipe=recipe,
        view_count=VIEWS,
        seed=0,
        outputs={"source": outputs},
    )


class Pace(NamedTuple):
    """Seconds an image takes, and those of a processor."""

    wall: float
    processor: float


def pace(batches: Iterator[Batch]) -> Pace:
    """Until there are no more batches."""
    wall, processor, images = time.perf_counter(), time.process_time(), 0
    for batch in batches:
        images += len(batch.ids)
    return Pace((time.perf_counter() - wall) / images, (time.process_time() - processor) / images)


@dataclass(frozen=True)
class Case:
    """What a row of the table is about."""

    name: str
    storage: Storage
    packed: PackedDataset
    read: Table
    recipe: Recipe = FLIPPED
    before: Callable[[], None] = lambda: None
    """What is done before every run."""
    first_pass: bool = False

    def row(self) -> str:
        """Run everything in turns and spell the best of each."""
        outputs, parts = labels_of(self.packed.rows), min(SOME, len(self.packed.parts))
        turns = []
        for _ in range(TURNS):
            paces = []
            for tables in (one_by_one, two_ahead):
                self.before()
                paces.append(pace(simplest(tables(self.read, parts), self.recipe, outputs)))
            with closing(streamed(self.storage, self.packed, self.recipe, outputs)) as feed:
                paces.append(self._streamed(feed, parts * self.packed.parts[0].rows // BATCH))
            turns.append(paces)
        one, two, ours = (Pace(*map(min, zip(*paces, strict=True))) for paces in zip(*turns, strict=True))
        rates = " | ".join(f"{1 / each.wall:,.0f}" for each in (one, two, ours))
        share = one.processor / ours.processor
        return f"| {self.name} | {rates} | {min(one.wall, two.wall) / ours.wall:.2f} | {share:.2f} |"

    def _streamed(self, feed: StreamedFeed, steps: int) -> Pace:
        for part in () if self.first_pass else range(len(self.packed.parts)):
            feed.shelf.read(part)
        self.before()
        feed.batch(0)
        return pace(map(feed.batch, range(1, 1 + min(steps, feed.steps_per_epoch - 1))))


def drop(files: list[Path]) -> None:
    """Put files out of the page cache."""
    for file in files:
        with file.open("rb") as opened:
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def memory(uri: str, packed: PackedDataset) -> tuple[int, int, int]:
    """Of this process: its resident bytes before a pass, their peak in it, and the bytes of the labels it holds."""
    compute_here(1)
    outputs, own = labels_of(packed.rows), Path("/proc/self")
    (own / "clear_refs").write_text("5")  # forgets the peak so far
    began = _peak(own)
    with closing(streamed(open_storage(uri), packed, FLIPPED, outputs)) as feed:
        pace(map(feed.batch, range(feed.steps_per_epoch)))
    return began, _peak(own), packed.rows * VIEWS * 32


def _peak(process: Path) -> int:
    (line,) = (one for one in (process / "status").read_text().splitlines() if one.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def on_a_folder(folder: str, wanted: set[str]) -> None:
    """What is wanted of the first table, and of memory."""
    storage = open_storage(folder)
    packed = write_set(storage, PARTS)
    files = [Path(folder) / "datasets" / "benchmark" / part.name for part in packed.parts]
    read = lambda part: pq.read_table(files[part], columns=["id", "label", IMAGE_FIELD])  # noqa: E731
    warm = Case("warm, first pass", storage, packed, read, first_pass=True)
    resized = replace(warm, name="warm, resized views", recipe=RESIZED, first_pass=False)
    cases = {
        "warm": (warm, replace(warm, name="warm, later", first_pass=False), resized),
        "cold": (replace(warm, name="cold, later", before=lambda: drop(files), first_pass=False),),
    }
    for case in (case for word, some in cases.items() if word in wanted for case in some):
        print(case.row(), flush=True)
    if "memory" not in wanted:
        return
    with get_context("spawn").Pool(1) as pool:
        began, peak, labels = pool.apply(memory, (folder, packed))
    held, whole = (WINDOW + AHEAD) * packed.parts[0].rows * 3 * SIZE * SIZE, packed.rows * 3 * SIZE * SIZE
    print(f"memory: {peak / 1e6:.0f} MB at the peak of a pass, {began / 1e6:.0f} before it", end="")
    print(f" ({labels / 1e6:.0f} of them labels); window and parts ahead are {held / 1e6:.0f} MB", end="")
    print(f", all images {whole / 1e6:.0f} MB", flush=True)


def on_a_bucket(folder: Path) -> None:
    """The second table."""
    with running(folder) as server:
        os.environ.update(environment(server.endpoint))
        forget()
        storage = open_storage(f"s3://{BUCKET}/benchmark")
        packed = write_set(storage, PARTS // 2)
        keys = {"access_key": ACCESS_KEY, "secret_key": SECRET_KEY, "scheme": "http"}
        files = fs.S3FileSystem(endpoint_override=server.endpoint.removeprefix("http://"), **keys)
        place = f"{BUCKET}/benchmark/datasets/benchmark"
        names = [f"{place}/{part.name}" for part in packed.parts]
        columns = ["id", "label", IMAGE_FIELD]
        read = lambda part: pq.read_table(names[part], filesystem=files, columns=columns)  # noqa: E731
        print(Case("bucket, later", storage, packed, read).row(), flush=True)


def main() -> None:
    """Print the tables."""
    compute_here(1)
    wanted = set(sys.argv[1:]) or {"warm", "cold", "memory", "bucket"}
    print("| images/s | one part after the other | two parts ahead | streamed | ratio | ratio, processor |")
    print("|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        if wanted - {"bucket"}:
            on_a_folder(folder, wanted)
    with tempfile.TemporaryDirectory() as folder:
        if "bucket" in wanted:
            on_a_bucket(Path(folder))


if __name__ == "__main__":
    main()
