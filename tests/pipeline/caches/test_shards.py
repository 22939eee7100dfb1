import dataclasses
import json

import pytest
import torch

from cluster import metrics
from cluster.storage import open_storage
from pipeline.caches import shards
from pipeline.caches.claims import Claim, claim_key
from pipeline.caches.labels import as_record, finish_segment, read_record, record_key, shard_key
from pipeline.caches.segments import read_cache, require_cache
from pipeline.caches.shards import Part, ShardJob, ShardWriter, label_shard, make_shard
from pipeline.packing.packed import PoolBlock, read_images
from pipeline.planning import specs
from pipeline.planning.experiment import load_experiment
from pipeline.stages import Stages
from sskt.errors import DamagedError, SsktError
from sskt.gallery import Gallery
from sskt.golden import check_pixels
from sskt.sources import load_source


@pytest.fixture
def prepared(experiment_file):
    stages = Stages(load_experiment(str(experiment_file)), lambda line: None)
    plan = stages.pack()
    segments = {name: spec.segment(0, 0, 3) for name, spec in plan.caches["wise"].items()}
    job = ShardJob(
        storage_uri=stages.storage.uri,
        parts={segment.prefix: Part(source="wise", segment=segment) for segment in segments.values()},
        sources={"wise": plan.experiment.sources["wise"]},
        recipe=plan.recipe,
        batch_size=50,
        threads=1,
        device="cpu",
        packed=plan.packed,
    )
    return plan, job


def segment_of(job, name):
    return next(part.segment for part in job.parts.values() if part.segment.labels.name == name)


def made(plan, job, *names, shard=0):
    """Shard of some caches, by name; made even if it is there."""
    prefixes = [segment_of(job, name).prefix for name in names]
    for prefix in prefixes:
        open_storage(job.storage_uri).delete(record_key(job.parts[prefix].segment, shard))
    records = make_shard(plan.sources, job, shard=shard, prefixes=prefixes)
    return dict(zip(names, (records[prefix] for prefix in prefixes), strict=True))


def test_every_view_goes_through_the_source_once_for_all_outputs(prepared):
    plan, job = prepared
    ids = segment_of(job, "logits").id_range(1)
    records = made(plan, job, "logits", "embedding", "turned logits", shard=1)
    assert plan.sources["wise"].passes == len(ids) * (3 + 9)
    assert [record.passes for record in records.values()] == [len(ids) * 3, 0, len(ids) * 9]
    assert [record.rows for record in records.values()] == [len(ids)] * 3


def test_a_shard_does_not_depend_on_who_makes_it_or_with_what(prepared):
    plan, job = prepared
    alone = made(plan, job, "logits")["logits"]
    beside = made(plan, job, "embedding", "logits")["logits"]
    assert alone.sha256 == beside.sha256
    prefix = segment_of(job, "logits").prefix
    open_storage(job.storage_uri).delete(record_key(segment_of(job, "logits"), 0))
    answer = ShardWriter(job)({"shard": 0, "prefixes": [prefix]})
    assert as_record(json.loads(answer["records"])[prefix]).sha256 == alone.sha256


def test_what_is_stored_of_a_view_does_not_depend_on_the_views_beside_it(prepared):
    plan, job = prepared
    spec = plan.caches["wise"]["embedding"]
    together = made(plan, job, "embedding")["embedding"].views
    for view in range(3):
        segment = spec.segment(0, view, view + 1)
        alone = dataclasses.replace(job, parts={segment.prefix: Part(source="wise", segment=segment)})
        record = make_shard(plan.sources, alone, shard=0, prefixes=[segment.prefix])[segment.prefix]
        assert record.views == (together[view],)


def test_several_sources_share_one_read_of_the_images(prepared, monkeypatch):
    plan, job = prepared
    reads = []
    monkeypatch.setattr(shards, "read_images", lambda *asked: reads.append(asked) or read_images(*asked))
    logits = segment_of(job, "logits")
    other = dataclasses.replace(logits, labels=dataclasses.replace(logits.labels, source={"weights": "of another"}))
    parts = {logits.prefix: Part(source="wise", segment=logits), other.prefix: Part(source="other", segment=other)}
    sources = {"wise": plan.sources["wise"], "other": load_source("other", plan.experiment.sources["wise"])}
    records = make_shard(sources, dataclasses.replace(job, parts=parts), shard=0, prefixes=list(parts))
    assert len(reads) == 1
    assert [source.passes for source in sources.values()] == [64 * 3, 64 * 3]
    assert records[logits.prefix].views == records[other.prefix].views


def test_what_others_make_or_have_made_is_left_to_them(prepared):
    plan, job = prepared
    storage, logits, embedding = open_storage(job.storage_uri), segment_of(job, "logits"), segment_of(job, "embedding")
    turned = segment_of(job, "turned logits")
    prefixes = [segment.prefix for segment in (logits, embedding, turned)]
    made(plan, job, "logits")
    theirs = Claim(storage=storage, key=claim_key(turned, 0))
    assert theirs.take()
    before = plan.sources["wise"].passes
    records = make_shard(plan.sources, job, shard=0, prefixes=prefixes)
    assert list(records) == [embedding.prefix]
    assert (records[embedding.prefix].passes, plan.sources["wise"].passes - before) == (64 * 3, 64 * 3)
    assert storage.read(shard_key(turned, 0)) is None
    assert theirs.held()
    theirs.release()
    assert list(make_shard(plan.sources, job, shard=0, prefixes=prefixes)) == [turned.prefix]
    assert [key for key in storage.keys("caches") if key.endswith(".claim")] == []


def test_nothing_is_read_where_nothing_is_free(prepared, monkeypatch):
    plan, job = prepared
    logits = segment_of(job, "logits")
    monkeypatch.setattr(shards, "read_images", None)
    assert Claim(storage=open_storage(job.storage_uri), key=claim_key(logits, 0)).take()
    assert make_shard(plan.sources, job, shard=0, prefixes=[logits.prefix]) == {}


def test_who_was_given_up_while_at_work_publishes_nothing(prepared, monkeypatch):
    plan, job = prepared
    storage, logits = open_storage(job.storage_uri), segment_of(job, "logits")

    def slow(*arguments, **named):
        storage.delete(claim_key(logits, 0))
        assert Claim(storage=storage, key=claim_key(logits, 0), builder="theirs").take()
        return label_shard(*arguments, **named)

    monkeypatch.setattr(shards, "label_shard", slow)
    assert make_shard(plan.sources, job, shard=0, prefixes=[logits.prefix]) == {}
    assert storage.read(shard_key(logits, 0)) is None
    assert Claim(storage=storage, key=claim_key(logits, 0), builder="theirs").held()


def test_a_failure_leaves_no_claim(prepared):
    plan, job = prepared
    logits = segment_of(job, "logits")
    plan.sources["wise"].network.network.fc.bias.data[2] = float("nan")
    with pytest.raises(SsktError, match="not finite"):
        made(plan, job, "logits")
    assert open_storage(job.storage_uri).read(claim_key(logits, 0)) is None


@pytest.mark.parametrize("name", ["turned logits", "mixup logits"])
def test_the_pixels_of_some_views_are_remembered(prepared, name):
    plan, job = prepared
    record, segment = made(plan, job, name)[name], segment_of(job, name)
    storage = Stages(plan.experiment, lambda line: None).storage
    images = torch.from_numpy(read_images(plan.packed, storage, range(plan.packed.pool)))
    assert len(record.golden) >= 60 // segment.shards
    assert {int(place.split("/")[1]) for place in record.golden} <= set(segment.view_ids)
    gallery = Gallery(plan.recipe, images, plan.packed.edges)
    check_pixels(gallery, record.golden)
    images[:, 0, 4, 4] ^= 16
    with pytest.raises(DamagedError, match="is not what the sources saw"):
        check_pixels(gallery, record.golden)


@pytest.mark.parametrize("name", ["mixup logits", "cutmix embedding"])
def test_a_shard_of_mixed_views_is_that_of_the_whole_pool(prepared, monkeypatch, name):
    """Of a pool that grew, cut into shards that are no whole groups: each reads the partners that it lacks."""
    plan, job = prepared
    packed = dataclasses.replace(
        job.packed, blocks=(PoolBlock(stop=20, fingerprint="old"), PoolBlock(stop=108, fingerprint="new"))
    )
    monkeypatch.setattr(specs, "SMALLEST_SHARD", 50)
    spec = dataclasses.replace(plan.caches["wise"][name], blocks=packed.blocks)
    spec = dataclasses.replace(spec, labels=dataclasses.replace(spec.labels, encoding="fp32"))
    segments = [spec.segment(block, 0, 3) for block in (0, 1)]
    parts = {segment.prefix: Part(source="wise", segment=segment) for segment in segments}
    job, storage = dataclasses.replace(job, packed=packed, parts=parts), open_storage(job.storage_uri)
    for segment in segments:
        for shard in range(segment.shards):
            made_now = make_shard(plan.sources, job, shard=shard, prefixes=[segment.prefix])[segment.prefix]
            assert made_now.passes == len(segment.id_range(shard)) * 3
        finish_segment(storage, segment, [read_record(storage, segment, shard) for shard in range(segment.shards)])
    stored = read_cache(storage, require_cache(storage, spec, source="wise"))
    assert [segment.shards for segment in segments] == [1, 2]
    images = torch.from_numpy(read_images(packed, storage, range(108)))
    gallery, ids = Gallery(plan.recipe, images, packed.edges), torch.arange(108)
    for place, view in enumerate(segments[0].view_ids):
        shown = gallery.show(ids, views=torch.full_like(ids, view), kind=spec.labels.kind)
        said = plan.sources["wise"].outputs(shown, (spec.labels.output,))[spec.labels.output]
        values = torch.from_numpy(stored[:, place].copy()).view(torch.float32)
        assert torch.allclose(values, said, atol=1e-5)
        assert said.std() > 1e-3


def test_a_read_of_the_images_serves_all_kinds_of_views(prepared, monkeypatch):
    plan, job = prepared
    reads = []
    monkeypatch.setattr(shards, "read_images", lambda *asked: reads.append(asked[2]) or read_images(*asked))
    monkeypatch.setattr(specs, "SMALLEST_SHARD", 50)
    assert len(made(plan, job, "logits", "mixup logits", "turned logits", shard=1)) == 3
    made(plan, job, "logits", shard=1)
    assert reads == [range(108), range(50, 100)]


def test_rows_are_samples_and_views_lie_side_by_side(prepared):
    plan, job = prepared
    logits = segment_of(job, "logits")
    exact = dataclasses.replace(logits, labels=dataclasses.replace(logits.labels, encoding="fp32"))
    storage = Stages(plan.experiment, lambda line: None).storage
    images = torch.from_numpy(read_images(plan.packed, storage, exact.id_range(1)))
    gallery = Gallery(plan.recipe, images, plan.packed.edges, first=exact.id_range(1).start)
    job = dataclasses.replace(job, batch_size=7)
    (rows,) = label_shard(plan.sources["wise"], gallery, job=job, shard=1, segments=[exact])
    logits = torch.from_numpy(rows).view(torch.float32)
    first = exact.id_range(1).start
    for sample, view in ((0, 0), (3, 2), (len(images) - 1, 1)):
        seen = plan.recipe.apply(
            images[sample : sample + 1], ids=torch.tensor([first + sample]), views=torch.tensor([view])
        )
        expected = plan.sources["wise"].outputs(seen, ("logits",))["logits"][0]
        assert torch.allclose(logits[sample, view], expected, atol=1e-5)


def test_a_failure_names_its_shard(prepared, monkeypatch, log_lines):
    monkeypatch.setattr(metrics, "_STATE", metrics._State())
    _, job = prepared
    logits = segment_of(job, "logits")
    odd = dataclasses.replace(logits, labels=dataclasses.replace(logits.labels, output="dreams"))
    with pytest.raises(SsktError, match=r"source 'wise', shard 1: UnknownNameError: output 'dreams' is unknown"):
        ShardWriter(dataclasses.replace(job, parts={"odd": Part(source="wise", segment=odd)}))(
            {"shard": 1, "prefixes": ["odd"]}
        )
    (line,) = log_lines()
    assert (line["event"], line["source"], line["shard"]) == ("shard_failed", "wise", 1)
    assert line["reason"].startswith("output 'dreams' is unknown")
    assert metrics._STATE.ledger.total("sskt_shards") == 1
    assert metrics._STATE.ledger.total("sskt_source_views") == 0


def test_outputs_that_are_no_numbers_are_refused(prepared):
    plan, job = prepared
    plan.sources["wise"].network.network.fc.bias.data[2] = float("nan")
    with pytest.raises(SsktError, match=r"logits of samples 64\.\.\d+ are not finite"):
        made(plan, job, "logits", shard=1)
