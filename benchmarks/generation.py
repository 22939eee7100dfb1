"""What making a cache costs beyond the source's own forward passes.

    python -m benchmarks.generation

EfficientNet-Lite0 (ImageNet weights from a package) at 74 pixels, one process, one thread. Both sides see as many views
in the same batches, in turns: a bare loop of forward passes, and the cache's own worker, which also reads the packed
images, draws the views, encodes, writes, reads back and records. Prints views per second of both, their ratio, and how
the time grows with the number of shards.
"""

import tempfile
import time
from pathlib import Path

import torch

from pipeline.caches.shards import Part, ShardJob, make_shard
from pipeline.computing import compute_here
from pipeline.planning.experiment import load_experiment
from pipeline.stages import Stages
from sskt.sources import Source

EXPERIMENT = """
storage: {folder}/store
dataset: {{kind: mnist5k, image_size: 32, channels: 3}}
views: {{ops: [pad_crop: 4, hflip], count: 2}}
sources:
  lite0: {{architecture: efficientnet_lite0, weights: package, input: {{size: 74}}}}
target: {{architecture: small_cnn}}
training: {{epochs: 1}}
methods:
  - {{method: sskt, sources: [lite0]}}
cache: {{encoding: {encoding}}}
"""
TURNS = 9


def prepare(folder: str, encoding: str) -> tuple[ShardJob, Source]:
    """Pack the images and load the source."""
    file = Path(folder) / "experiment.yaml"
    file.write_text(EXPERIMENT.format(folder=folder, encoding=encoding))
    stages = Stages(load_experiment(str(file)), lambda line: None)
    plan = stages.pack()
    spec = plan.caches["lite0"]["logits"]
    segment = spec.segment(0, 0, spec.view_count)
    job = ShardJob(
        storage_uri=stages.storage.uri,
        parts={segment.prefix: Part(source="lite0", segment=segment)},
        sources=dict(plan.experiment.sources),
        recipe=plan.recipe,
        batch_size=plan.experiment.source_batch,
        threads=1,
        device="cpu",
        packed=plan.packed,
    )
    return job, plan.sources["lite0"].place(job.device)


def bare(source: Source, views: list[torch.Tensor]) -> float:
    """Seconds of the forward passes alone."""
    began = time.perf_counter()
    with torch.inference_mode():
        for view in views:
            source.network(view)
    return time.perf_counter() - began


def worker(source: Source, job: ShardJob, shards: range) -> float:
    """Seconds of the cache's worker for some shards."""
    began = time.perf_counter()
    for shard in shards:
        make_shard({"lite0": source}, job, shard=shard, prefixes=list(job.parts))
    return time.perf_counter() - began


def main() -> None:
    """Take turns shard by shard, and print the medians."""
    compute_here(1)
    with tempfile.TemporaryDirectory() as folder:
        job, source = prepare(folder, "u8")
        (part,) = job.parts.values()
        rows, count = part.segment.shard_rows, len(part.segment.view_ids)
        pictures = torch.randint(0, 256, (rows, 3, 32, 32), dtype=torch.uint8)
        views = list(pictures.split(job.batch_size)) * count
        bare(source, views)
        pairs = [(bare(source, views), worker(source, job, range(turn, turn + 1))) for turn in range(TURNS)]
        alone, whole = (sorted(column)[TURNS // 2] for column in zip(*pairs, strict=True))
        ratios = sorted(one / other for one, other in pairs)
        print(f"bare forward passes  {rows * count / alone:8.1f} views/s")
        print(f"cache worker         {rows * count / whole:8.1f} views/s")
        print(f"ratio                {ratios[TURNS // 2]:8.3f}   (median of {TURNS} turns of one shard each)")
        few, many = worker(source, job, range(2)), worker(source, job, range(8))
        print(f"8 shards take {many / few:.2f} times as long as 2")


if __name__ == "__main__":
    main()
