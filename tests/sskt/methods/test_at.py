import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from sskt.errors import InputError
from sskt.losses import bernoulli_cross_entropy
from sskt.maps import split_attention
from sskt.methods import METHODS, SourceFacts, check_trial
from sskt.methods.at import AT, ATOptions
from sskt.networks import TappedNetwork, build_target
from sskt.settings import TargetSettings
from sskt.sources import Source
from tests.sskt.learning import IMAGE, facts, feed, method, source, training
from tests.sskt.methods.test_base import run
from tests.sskt.methods.test_embed import wide
from tests.sskt.methods.test_kd import slow_softmax
from tests.sskt.test_map_losses import slow_attention


def tapped(*taps: str, name: str = "other") -> Source:
    """A source that shows these parts alone."""
    with torch.random.fork_rng():
        torch.manual_seed(2)
        whole = build_target(TargetSettings(architecture="small_cnn", options={"width": 6}), classes=7, image=IMAGE)
    return Source(name, TappedNetwork(whole.network, taps=taps, head=whole.head, preprocess=whole.preprocess))


def features_of(model, batch):
    """Cross-entropy over the labelled rows, and the target's taps, in float64."""
    with torch.no_grad():
        features = model.target(batch.images)
    rows = zip(features.logits.double().numpy(), batch.labels.tolist(), strict=True)
    primary = -np.mean([np.log(slow_softmax(row)[label]) for row, label in rows if label >= 0])
    return primary, [tap.double().numpy() for tap in features.taps]


@pytest.mark.parametrize("learn_from", ["labelled", "all"])
def test_the_loss_is_the_equation(learn_from):
    """Over three sources: like the target, wider, and with a single tap, larger than the target's last."""
    sources = [source(), wide(), tapped("stage1")]
    model = method("at", *sources, weight=30.0, learn_from=learn_from)
    batch = feed(training(), sources=sources, pool=model.needs(model.options).pool).batch(0)
    assert (batch.labels < 0).any() == (learn_from == "all")
    model.train(mode=True)
    primary, taps = features_of(model, batch)
    expected = {"primary": primary}
    for one in sources:
        maps = split_attention(batch.outputs[one.name]["attention"].double(), one.map_shapes(IMAGE))
        pairs = zip(reversed(taps), reversed(maps), strict=False)
        expected[f"attention/{one.name}"] = 30 * sum(slow_attention("mse", tap, its.numpy()) for tap, its in pairs)
    parts = model.step(batch)
    assert parts.pop("loss").item() == pytest.approx(sum(expected.values()), rel=1e-4)
    assert {name: part.item() for name, part in parts.items()} == pytest.approx(expected, rel=1e-4)


def test_a_source_with_one_tap_is_paired_with_the_last():
    one = tapped("stage2")
    model = method("at", one)
    batch = feed(training(), sources=[one]).batch(0)
    logits, heads = model.student(batch.images)
    loss = model.losses(batch, logits, heads)["attention/other"]
    gradients = torch.autograd.grad(loss, heads["taps"], allow_unused=True)
    assert gradients[:2] == (None, None)
    assert gradients[2].abs().max() > 0


def test_a_copy_of_the_source_has_no_loss_until_it_is_changed():
    one = source()
    model = method("at", one)
    model.target.network.load_state_dict(
        {key: value for key, value in one.network.network.state_dict().items() if not key.startswith("fc.")},
        strict=False,
    )
    batch = feed(training(), sources=[one]).batch(0)
    model.train(mode=False)
    logits, heads = model.student(batch.images)
    assert model.losses(batch, logits, heads)["attention/wise"].item() == pytest.approx(0, abs=1e-6)
    for tap in heads["taps"]:
        tap.data.mul_(17.0)
    assert model.losses(batch, logits, heads)["attention/wise"].item() == pytest.approx(0, abs=1e-6)
    heads["taps"][0].data[:, :, 0, 0] += 500.0
    assert model.losses(batch, logits, heads)["attention/wise"].item() > 0.1


def test_a_scale_of_the_sources_maps_changes_nothing():
    model = method("at", source())
    batch = feed(training(), sources=[source()]).batch(0)
    scaled = copy.deepcopy(batch)
    scaled.outputs["wise"]["attention"].mul_(0.37)
    logits, heads = model.student(batch.images)
    mine, its = (model.losses(each, logits, heads)["attention/wise"].item() for each in (batch, scaled))
    assert mine == pytest.approx(its, rel=1e-5)
    assert mine > 0


def test_weight_zero_is_scratch_bit_for_bit():
    plain, _ = run("scratch", steps=8)
    taught, parts = run("at", source(), wide(), steps=8, weight=0.0, learn_from="all")
    assert parts[0]["attention/wise"] == 0
    for name, value in plain.export().state_dict().items():
        assert torch.equal(value, taught.export().state_dict()[name]), name


def test_a_source_changes_what_is_learnt_and_the_pool_too():
    models = run("scratch"), run("at", source()), run("at", source(), learn_from="all")
    weights = [torch.cat([value.flatten() for value in one.export().parameters()]) for one, _ in models]
    assert not torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2])


def test_the_target_learns_to_look_where_the_source_looks():
    _, parts = run("at", source(), steps=40, settings=training(epochs=8))
    _, alone = run("at", source(), steps=40, settings=training(epochs=8), weight=1e-9)
    last, left = (sum(part["attention/wise"].item() for part in some[-5:]) for some in (parts, alone))
    assert last / 1000 < 0.5 * left / 1e-9


def test_nothing_is_added_to_the_target_and_only_attention_is_asked_for():
    model = method("at", source())
    assert not list(model.heads.parameters())
    assert model.needs(ATOptions()).outputs == ("attention",)
    assert not model.needs(ATOptions()).pool
    assert model.needs(ATOptions(learn_from="all")).pool
    assert not model.needs(ATOptions(learn_from="all", weight=0.0)).pool


@pytest.mark.parametrize("name", ["at", "dreamteacher"])
def test_networks_without_taps_are_refused_by_name(name):
    kind = METHODS[name]
    good = facts(source("first"))
    bare = replace(good, sources={**good.sources, "second": SourceFacts(5, 8)})
    with pytest.raises(InputError, match=r"^source 'second' has no taps; this method compares feature maps"):
        check_trial(kind, kind.Options(), bare, training())
    with pytest.raises(InputError, match=r"^the target has no taps to compare with those of source 'first'"):
        check_trial(kind, kind.Options(), replace(good, taps=()), training())
    with pytest.raises(InputError, match=r"sources are \[\]; this method needs at least 1"):
        check_trial(kind, kind.Options(), facts(), training())


@pytest.mark.parametrize("name", ["at", "dreamteacher"])
def test_several_classes_may_hold(name):
    known = facts(source(), multi_label=True)
    check_trial(METHODS[name], METHODS[name].Options(), known, training())
    model = method(name, source())
    model.task = replace(model.task, facts=known)
    labels = torch.randint(-1, 2, (8, 3), dtype=torch.int8)
    batch = replace(feed(training(), sources=[source()]).batch(0), labels=labels)
    with torch.no_grad():
        expected = bernoulli_cross_entropy(model.student(batch.images)[0], labels)
    assert model.step(batch)["primary"].item() == pytest.approx(expected.item(), rel=1e-5)


@pytest.mark.parametrize("weight", [-1.0, float("nan")])
def test_a_weight_out_of_range_is_refused(weight):
    with pytest.raises(InputError, match=f"weight is {weight}; it has to be at least 0"):
        ATOptions(weight=weight)


def test_the_default_weight_is_the_published_one():
    assert ATOptions().weight == 1000
    assert AT.multi_label
