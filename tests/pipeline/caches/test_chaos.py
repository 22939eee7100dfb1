"""A builder of a cache killed at a hundred random moments: nothing is lost but the shard it was at."""

import os
import signal
import time

import numpy as np
import pytest
import torch

from pipeline.caches.claims import Watch, claim_key
from pipeline.caches.labels import finish_segment, read_record, shard_key
from pipeline.caches.segments import open_cache, read_cache
from pipeline.caches.shards import Part, ShardJob, ShardWriter
from pipeline.planning.experiment import load_experiment
from pipeline.stages import Stages

KILLS = 100


def prepare(experiment_file, store):
    """The experiment with its 2 shards cut into many, and what a worker of it needs."""
    changes = [f"storage={store}", "views.count=12"]
    stages = Stages(load_experiment(str(experiment_file), changes=changes), lambda line: None)
    plan = stages.pack()
    spec = plan.caches["wise"]["logits"]
    segments = [spec.segment(0, first, first + 1) for first in range(spec.view_count)]
    job = ShardJob(
        storage_uri=stages.storage.uri,
        parts={segment.prefix: Part(source="wise", segment=segment) for segment in segments},
        sources=dict(plan.experiment.sources),
        recipe=plan.recipe,
        batch_size=16,
        threads=1,
        device="cpu",
        packed=plan.packed,
    )
    return stages.storage, spec, job


def missing(storage, job):
    return [
        (prefix, shard)
        for prefix, part in job.parts.items()
        for shard in range(part.segment.shards)
        if read_record(storage, part.segment, shard) is None
    ]


def build(storage, job):
    """Make what is missing; claims of builders that died here are dead at once."""
    writer = ShardWriter(job)
    for prefix, shard in missing(storage, job):
        Watch(storage).lives(claim_key(job.parts[prefix].segment, shard))
        writer({"shard": shard, "prefixes": [prefix]})


def kill_at_random(storage, job, moment: float) -> None:
    """Build in a process of its own, and kill that after so many seconds."""
    pid = os.fork()
    if pid == 0:
        torch.set_num_threads(1)
        build(storage, job)
        os._exit(0)
    time.sleep(moment)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)


@pytest.mark.slow
def test_a_hundred_kills_change_nothing_and_lose_at_most_the_shard_at_hand(experiment_file, tmp_path):
    storage, spec, job = prepare(experiment_file, tmp_path / "undisturbed")
    began = time.perf_counter()
    build(storage, job)
    whole = time.perf_counter() - began
    expected = finished(storage, spec, job)
    generator = np.random.default_rng(0)
    killed = 0
    while killed < KILLS:
        storage, spec, job = prepare(experiment_file, tmp_path / f"store-{killed}")
        while missing(storage, job) and killed < KILLS:
            before = set(missing(storage, job))
            written = {key: storage.path(key).stat().st_mtime_ns for key in kept(storage, job)}
            kill_at_random(storage, job, generator.uniform(0, whole))
            killed += 1
            assert set(missing(storage, job)) <= before, "a record that was there is gone"
            again = [key for key in written if storage.path(key).stat().st_mtime_ns != written[key]]
            assert again == [], "a finished shard was made again"
        build(storage, job)
        assert finished(storage, spec, job) == expected


def kept(storage, job):
    return [
        shard_key(part.segment, shard)
        for part in job.parts.values()
        for shard in range(part.segment.shards)
        if read_record(storage, part.segment, shard) is not None
    ]


def finished(storage, spec, job):
    """The content once every segment has its manifest, and that each view of each sample is there exactly once."""
    for part in job.parts.values():
        segment = part.segment
        finish_segment(storage, segment, [read_record(storage, segment, shard) for shard in range(segment.shards)])
    cache = open_cache(storage, spec)
    places = [
        (sample, view)
        for segment, manifest in cache.parts
        for record in manifest.shards
        for sample in segment.id_range(record.shard)
        for view in segment.view_ids
    ]
    assert len(places) == len(set(places)) == spec.rows * spec.view_count
    return cache.content, read_cache(storage, cache).tobytes()
