import io

import numpy as np
import pytest
import torch

from sskt.errors import InputError, UnknownNameError
from sskt.methods.relation import RelationOptions
from sskt.networks import build_target
from sskt.relations import PRESETS
from sskt.settings import TargetSettings
from sskt.sources import Source
from tests.sskt.learning import IMAGE, feed, method, source, training
from tests.sskt.methods.test_base import run
from tests.sskt.test_losses import slow_softmax
from tests.sskt.test_relations import SLOW

PUBLISHED = {"rkd": 1.0, "sp": 3000.0, "pkt": 30000.0, "cc": 0.02, "batch_similarity": 1.0}
GENTLE = {"rkd": 0.2, "sp": 10.0, "pkt": 100.0, "cc": 10.0, "batch_similarity": 0.5}
"""Weights for the tests' batches of 8; the published ones go with batches of 64."""


def wide(*, width: int = 6) -> Source:
    """A source whose embedding is wider than the target's."""
    settings = TargetSettings(architecture="small_cnn", options={"width": width})
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return Source("wide", build_target(settings, classes=7, image=IMAGE))


def trained(model) -> list[torch.Tensor]:
    return list(model.export().parameters())


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("learn_from", ["labelled", "all"])
def test_the_loss_is_cross_entropy_and_the_papers_relation(preset, learn_from):
    sources = [source(), wide()]
    model = method("relation", *sources, preset=preset, weight=0.7, learn_from=learn_from)
    assert wide().embedding_dim != model.target.embedding_dim
    batch = feed(training(), sources=sources, pool=model.needs(model.options).pool).batch(0)
    assert (batch.labels < 0).any() == (learn_from == "all")
    model.train(mode=True)
    with torch.no_grad():
        features = model.target(batch.images)
    hard = [
        -np.log(slow_softmax(row)[y]) for row, y in zip(features.logits.numpy(), batch.labels, strict=True) if y >= 0
    ]
    expected = {"primary": np.mean(hard)}
    for one in sources:
        embedding = batch.outputs[one.name]["embedding"].double().numpy()
        expected[f"relation/{one.name}"] = 0.7 * SLOW[preset](features.embedding.double().numpy(), embedding)
    parts = model.step(batch)
    assert parts.pop("loss").item() == pytest.approx(sum(expected.values()), rel=1e-4)
    assert {name: part.item() for name, part in parts.items()} == pytest.approx(expected, rel=1e-3, abs=1e-7)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_default_weight_is_the_published_one(preset):
    batch = feed(training(), sources=[source()]).batch(0)
    parts = [
        method("relation", source(), preset=preset, **chosen).step(batch)["relation/wise"]
        for chosen in ({}, {"weight": PUBLISHED[preset]}, {"weight": 2 * PUBLISHED[preset]})
    ]
    assert torch.equal(parts[0], parts[1])
    assert parts[2].item() == pytest.approx(2 * parts[0].item(), rel=1e-5)


@pytest.mark.parametrize("preset", PRESETS)
def test_the_relation_is_learnt_beside_the_labels(preset):
    settings = training(epochs=10)
    alone, relation = (
        run("relation", source(), wide(), steps=50, settings=settings, preset=preset, weight=weight)[1]
        for weight in (1e-9, GENTLE[preset])
    )
    assert sum(part["primary"] for part in relation[-5:]) < sum(part["primary"] for part in relation[:5])
    for name in ("relation/wise", "relation/wide"):
        learnt, left = (sum(part[name].item() for part in parts[-5:]) for parts in (relation, alone))
        assert learnt / GENTLE[preset] < left / 1e-9, name


@pytest.mark.parametrize("preset", PRESETS)
def test_weight_zero_is_scratch_bit_for_bit(preset):
    plain, _ = run("scratch")
    related, _ = run("relation", source(), wide(), preset=preset, weight=0.0, learn_from="all")
    assert all(torch.equal(*pair) for pair in zip(trained(plain), trained(related), strict=True))


@pytest.mark.parametrize("preset", PRESETS)
def test_a_checkpoint_goes_on_exactly(preset):
    sources = [source(), wide()]
    whole, _ = run("relation", *sources, steps=5, preset=preset)
    half, _ = run("relation", *sources, steps=3, preset=preset)
    file = io.BytesIO()
    torch.save(half.state_dict(), file)
    file.seek(0)
    resumed = method("relation", *sources, seed=9, preset=preset)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    resumed.train(mode=True)
    served = feed(training(), sources=sources)
    for step in (3, 4):
        resumed.step(served.batch(step))
    assert all(torch.equal(*pair) for pair in zip(trained(whole), trained(resumed), strict=True))


def test_only_embeddings_are_asked_for_and_the_pool_only_if_it_weighs():
    model = method("relation", source())
    assert model.needs(RelationOptions()).outputs == ("embedding",)
    assert not model.needs(RelationOptions()).pool
    assert model.needs(RelationOptions(learn_from="all")).pool
    assert not model.needs(RelationOptions(learn_from="all", weight=0.0)).pool


def test_nothing_is_added_to_the_target():
    assert not list(method("relation", source()).heads.parameters())


def test_options_that_cannot_be_are_refused():
    with pytest.raises(UnknownNameError, match="preset 'rdk' is unknown; did you mean 'rkd'"):
        RelationOptions(preset="rdk")
    for weight in (-1.0, float("nan")):
        with pytest.raises(InputError, match=rf"weight is {weight}; it has to be at least 0, or null"):
            RelationOptions(weight=weight)
    with pytest.raises(InputError, match="this method needs at least 1"):
        method("relation")


def test_a_batch_too_small_to_relate_is_refused():
    small = training(batch_size=2)
    with pytest.raises(InputError, match=r"batch_size gives each process 2 images .* 'rkd' .* needs at least 3"):
        method("relation", source(), settings=small)
    method("relation", source(), settings=small, preset="sp")
    method("relation", source(), settings=small, weight=0.0)
    method("relation", source(), settings=small, learn_from="all")
