"""What was spent and saved, by hand from few numbers."""

import pytest

from pipeline.caches.labels import finish_segment
from pipeline.caches.segments import segments_of
from pipeline.caches.shards import Part, ShardJob, make_shard
from pipeline.planning.experiment import load_experiment
from pipeline.reports.costs import CacheCost, Cost, Used, cost_of, pace
from pipeline.stages import Stages


def cache(source, *, name="logits", passes=100, seconds=2.0):
    return CacheCost(
        source=source, name=name, id=f"{source} {name}", content="", encoding="fp16",
        passes=passes, seconds=seconds, bytes=50,
    )  # fmt: skip


def test_the_pace_of_a_source_is_that_of_all_its_caches_of_which_one_may_have_cost_nothing():
    made = [cache("wise"), cache("wise", name="embedding", passes=0, seconds=0.0), cache("fool", seconds=5.0)]
    assert (pace("wise", made), pace("fool", made), pace("nobody", made)) == (0.02, 0.05, 0.0)


def test_the_speed_up_its_bound_and_the_break_even_are_what_one_calculates():
    # 10 trials of 4 s, 8 of which read 1,000 labels at 0.02 s: live sources would have taken 160 s, the cache took 2 s.
    cost = Cost(trials=10, training_seconds=40.0, readers=8, label_rows=8000, live_seconds=160.0, made=(cache("wise"),))
    assert cost.speed_up == pytest.approx(200 / 42)
    assert cost.speed_up_bound == pytest.approx(200 / 40)
    assert cost.break_even == pytest.approx(2 / (160 / 8))
    assert (cost.passes_saved, cost.cache_bytes, cost.caches) == (7900, 50, 1)


def test_without_caches_nothing_is_claimed():
    cost = Cost(trials=1, training_seconds=1.0)
    assert (cost.speed_up, cost.speed_up_bound, cost.break_even, cost.passes_saved) == (None, None, None, 0)


def test_what_trials_read_is_costed_at_the_pace_of_their_sources(experiment_file):
    stages = Stages(load_experiment(str(experiment_file)), lambda line: None)
    plan, storage = stages.pack(), stages.storage
    spec = plan.caches["wise"]["logits"]
    parts = {segment.prefix: Part(source="wise", segment=segment) for segment in segments_of(storage, spec)}
    job = ShardJob(
        storage_uri=storage.uri, parts=parts, sources=dict(plan.experiment.sources),
        recipe=plan.recipe, batch_size=64, threads=1, device="cpu", packed=plan.packed,
    )  # fmt: skip
    for prefix, part in parts.items():
        shards = [make_shard(plan.sources, job, shard=s, prefixes=[prefix]) for s in range(part.segment.shards)]
        finish_segment(storage, part.segment, [records[prefix] for records in shards])
    used = {one.run_key: Used(seconds=2.0, processes=3, label_rows=100 * len(one.trial.sources)) for one in plan.trials}
    cost = cost_of(plan, storage, trials=plan.trials, used=used)
    (made,) = cost.made
    assert (made.source, made.name, made.id, made.encoding) == ("wise", "logits", spec.id, "fp16")
    assert made.passes == cost.source_passes == plan.packed.pool * 3
    assert (cost.trials, cost.training_seconds, cost.process_seconds, cost.readers) == (4, 8.0, 24.0, 2)
    assert cost.live_seconds == pytest.approx(200 * made.seconds / made.passes)
