import dataclasses

import pytest
import torch

from pipeline.experiment import load_experiment
from pipeline.packed import read_images
from pipeline.shards import ShardJob, ShardWriter, label_shard, make_shard
from pipeline.stages import Stages
from sskt.errors import SsktError


@pytest.fixture
def prepared(experiment_file):
    stages = Stages(load_experiment(str(experiment_file)), lambda line: None)
    plan = stages.pack()
    return plan, ShardJob(
        storage_uri=stages.storage.uri, specs=plan.caches["wise"], source_name="wise",
        source=plan.experiment.sources["wise"], recipe=plan.recipe, batch_size=50, threads=1, device="cpu",
        packed=plan.packed,
    )  # fmt: skip


def test_every_view_goes_through_the_source_once_for_all_outputs(prepared):
    plan, job = prepared
    source, spec = plan.sources["wise"], plan.caches["wise"]["logits"]
    records = make_shard(source, job, shard=1, names=("logits", "embedding"))
    views = len(spec.id_range(1)) * spec.view_count
    assert source.passes == views
    assert [record.passes for record in records.values()] == [views, 0]
    assert [record.rows for record in records.values()] == [len(spec.id_range(1))] * 2


def test_a_shard_does_not_depend_on_who_makes_it_or_with_what(prepared):
    plan, job = prepared
    alone = make_shard(plan.sources["wise"], job, shard=0, names=("logits",))["logits"]
    beside = make_shard(plan.sources["wise"], job, shard=0, names=("embedding", "logits"))["logits"]
    assert alone.sha256 == beside.sha256
    answer = ShardWriter(job)({"shard": 0, "caches": ["logits"]})
    assert answer["records"]["logits"]["sha256"] == alone.sha256


def test_rows_are_samples_and_views_lie_side_by_side(prepared):
    plan, job = prepared
    exact = dataclasses.replace(plan.caches["wise"]["logits"], encoding="fp32")
    job = dataclasses.replace(job, specs={"logits": exact}, batch_size=7)
    storage = Stages(plan.experiment, lambda line: None).storage
    images = torch.from_numpy(read_images(plan.packed, storage, exact.id_range(1)))
    rows = label_shard(plan.sources["wise"], images, job=job, shard=1, specs=[exact])[0]
    logits = torch.from_numpy(rows).view(torch.float32).view(len(images), exact.view_count, 4)
    first = exact.id_range(1).start
    for sample, view in ((0, 0), (3, 2), (len(images) - 1, 1)):
        seen = plan.recipe.apply(
            images[sample : sample + 1], ids=torch.tensor([first + sample]), views=torch.tensor([view])
        )
        expected = plan.sources["wise"].outputs(seen, ("logits",))["logits"][0]
        assert torch.allclose(logits[sample, view], expected, atol=1e-5)


def test_a_failure_names_its_shard(prepared):
    _, job = prepared
    with pytest.raises(SsktError, match=r"shard 1: UnknownNameError: output 'dreams' is unknown"):
        odd = dataclasses.replace(job.specs["logits"], output="dreams")
        ShardWriter(dataclasses.replace(job, specs={"dreams": odd}))({"shard": 1, "caches": ["dreams"]})


def test_outputs_that_are_no_numbers_are_refused(prepared):
    plan, job = prepared
    plan.sources["wise"].network.network.fc.bias.data[2] = float("nan")
    with pytest.raises(SsktError, match=r"logits of samples 64\.\.80 are not finite"):
        make_shard(plan.sources["wise"], job, shard=1, names=("logits",))
