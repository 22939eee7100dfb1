"""How small, and how quick to read, a label cache is.

    python -m benchmarks.label_cache

Writes real shards to a temporary folder and prints, for each kind of row: bytes per view, what the container adds, rows
read per second with their checksums (2 threads, the page cache warm), and rows gathered per second in batches of 512
random samples. Last: views chosen and drawn per second. No source runs and nothing is stored of views.
"""

import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch

from cluster.storage import FolderStorage
from pipeline.caches.labels import Made, commit_shard, read_shard
from pipeline.computing import compute_here
from pipeline.packing.packed import PoolBlock
from pipeline.planning.specs import CacheSpec, Labels
from sskt.answers import Column
from sskt.encodings import get_encoding
from sskt.views import bounded, hash_counters, view_of_pass

KINDS = ((10, "u8"), (10, "fp16"), (100, "u8"), (100, "fp16"), (1000, "top10"), (1000, "u8"), (1000, "fp16"))
VIEWS, THREADS, REPEATS = 4, 2, 5
MEGABYTES = 96
"""Payload written for each kind, a few seconds' worth of reading."""


def spec_of(classes: int, encoding: str, rows: int) -> CacheSpec:
    """A cache of logits."""
    labels = Labels(
        source={}, views={}, output="logits", kind="", width=classes, encoding=encoding, numerics={"device": "cpu"}
    )
    return CacheSpec(labels=labels, blocks=(PoolBlock(stop=rows, fingerprint="x"),), view_count=VIEWS)


def best(run: Callable[[], object]) -> float:
    """Shortest of several runs, in seconds."""
    times = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        run()
        times.append(time.perf_counter() - began)
    return min(times)


def measure(classes: int, encoding: str, folder: str) -> str:
    """Write, read and gather one kind of row."""
    size = get_encoding(encoding, "logits").row_bytes(classes)
    rows = max(16 * 4096, MEGABYTES * 1_000_000 // (size * VIEWS))
    spec, storage = spec_of(classes, encoding, rows), FolderStorage(folder)
    segment = spec.segment(0, 0, VIEWS)
    logits = torch.randn(4096, classes, generator=torch.Generator().manual_seed(0)) * 4
    encoded = get_encoding(encoding, "logits").encode(logits).numpy()
    records = []
    for shard in range(segment.shards):
        ids = segment.id_range(shard)
        payload = np.stack([encoded[(np.arange(ids.start, ids.stop) + view) % 4096] for view in range(VIEWS)], axis=1)
        made = Made(payload=payload, golden={}, passes=0, seconds=0.0)
        records.append(commit_shard(storage, segment, shard=shard, made=made))
    stored, payload_bytes = sum(record.bytes for record in records), rows * VIEWS * size

    def read_all() -> list[np.ndarray]:
        with ThreadPoolExecutor(THREADS) as pool:
            return list(pool.map(lambda record: read_shard(storage, segment, record), records))

    read = best(read_all)
    column = Column(torch.from_numpy(np.concatenate(read_all())), get_encoding(encoding, "logits"), classes)
    generator = torch.Generator().manual_seed(1)
    batches = [torch.randint(rows, (512,), generator=generator) for _ in range(200)]
    views = torch.arange(512) % VIEWS
    gather = best(lambda: [column.payload[ids, views] for ids in batches])
    decode = best(lambda: [column.rows(ids, views) for ids in batches])
    return (
        f"| {classes} | {encoding} | {size} | {100 * (stored / payload_bytes - 1):.2f} % "
        f"| {rows * VIEWS / read / 1e6:.1f} | {200 * 512 / gather / 1e6:.2f} | {200 * 512 / decode / 1e6:.2f} |"
    )


def views_per_second() -> tuple[float, float]:
    """Views chosen of 8, and single draws of an operation, in millions per second and core."""
    ids, passes = torch.arange(1 << 15), torch.zeros(1 << 15, dtype=torch.int64)
    chosen = best(lambda: view_of_pass(ids, passes, count=8, seed=0))
    drawn = best(lambda: bounded(hash_counters(0, ids, passes, 0, 0), 9))
    return len(ids) / chosen / 1e6, len(ids) / drawn / 1e6


def main() -> None:
    """Print the table."""
    compute_here(1)
    print(
        "| classes | encoding | bytes/view | container | M views/s read | M views/s gathered | gathered and decoded |"
    )
    print("|---|---|---|---|---|---|---|")
    for classes, encoding in KINDS:
        with tempfile.TemporaryDirectory() as folder:
            print(measure(classes, encoding, folder), flush=True)
    chosen, drawn = views_per_second()
    print(
        f"\nviews: {chosen:.1f} M/s chosen of 8 by permutation, {drawn:.1f} M/s draws of an operation; 0 bytes stored"
    )


if __name__ == "__main__":
    main()
