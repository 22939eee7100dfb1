import pytest

from pipeline.caches.labels import record_key, shard_key
from pipeline.caches.segments import segments_of
from pipeline.forecasts.holdings import holdings, passes_to_make, shards_to_make, supposed
from tests.pipeline.forecasts.test_forecast import METHODS, POOL, VIEWS, packed
from tests.pipeline.trials.test_trials import prepared, with_methods


@pytest.mark.parametrize("encoding", ["fp16", "fp32", "u8"])
def test_bytes_are_those_that_lie_on_the_storage(experiment_file, encoding):
    plan, storage = packed(experiment_file, f"cache.encoding={encoding}")
    (before,) = holdings(plan.caches_for(), storage)["wise"]
    plan, storage = prepared(experiment_file, f"cache.encoding={encoding}")
    (after,) = holdings(plan.caches_for(), storage)["wise"]
    segments = segments_of(storage, plan.caches["wise"]["logits"])
    keys = [shard_key(segment, shard) for segment in segments for shard in range(segment.shards)]
    stored = sum(len(storage.read(key)) for key in keys)
    assert before.stored == after.stored == pytest.approx(stored, rel=0.01)
    assert before.payload < before.stored
    assert (before.shards, len(before.lacking), len(after.lacking)) == (len(keys), len(keys), 0)


def test_a_shard_that_is_lost_is_to_be_made_again(experiment_file):
    plan, storage = prepared(experiment_file)
    (segment,) = segments_of(storage, plan.caches["wise"]["logits"])
    storage.delete(record_key(segment, 1))
    (shard,) = shards_to_make(holdings(plan.caches_for(), storage)["wise"])
    assert (shard.views, shard.outputs) == (len(segment.id_range(1)) * VIEWS, 1)


def test_outputs_of_the_same_views_share_a_shard(experiment_file):
    plan, storage = packed(with_methods(experiment_file, *METHODS))
    caches = holdings(plan.caches_for(), storage)["wise"]
    assert sum(shard.outputs for shard in shards_to_make(caches)) == sum(one.shards for one in caches)
    assert passes_to_make(caches) == POOL * VIEWS * (1 + 3)


def test_a_pool_that_is_only_supposed_has_nothing_yet(experiment_file):
    plan, storage = prepared(experiment_file)
    (one,) = holdings(supposed(plan.caches_for(), 1_000_000), storage)["wise"]
    (real,) = holdings(plan.caches_for(), storage)["wise"]
    assert one.payload == 1_000_000 * real.payload // POOL
    assert passes_to_make([one]) == 1_000_000 * VIEWS
    assert len(one.lacking) == one.shards == 62  # of 16,384 samples at most
