import copy

import numpy as np
import pytest
import torch

from sskt.errors import InputError
from sskt.methods.dogo import DoGo, DoGoOptions, Projection
from sskt.networks import Features
from tests.sskt.learning import facts, method, served, source, training
from tests.sskt.methods.test_base import run
from tests.sskt.test_contrastive_losses import slow_cross_view_kl, slow_nt_xent
from tests.sskt.test_losses import slow_softmax

NOTHING = {"ssl_weight": 0.0, "mutual_weight": 0.0}


def make(settings=None, **options):
    model = method("dogo", settings=settings, **options)
    model.train(mode=True)
    return model, served(model, settings=settings)


def slow_cross_entropy(logits, labels):
    rows = [row for row, label in enumerate(labels) if label >= 0]
    return -sum(float(np.log(slow_softmax(logits[row])[labels[row]])) for row in rows) / len(rows)


def slow_projection(layers, embedding):
    """Linear, batch normalisation by the statistics of all rows, ReLU, Linear."""
    first, norm, _, last = (
        {name: value.detach().double().numpy() for name, value in layer.state_dict().items()} for layer in layers
    )
    hidden = embedding @ first["weight"].T + first["bias"]
    hidden = (hidden - hidden.mean(axis=0)) / np.sqrt(hidden.var(axis=0) + 1e-5) * norm["weight"] + norm["bias"]
    return np.maximum(hidden, 0) @ last["weight"].T + last["bias"]


@pytest.mark.parametrize("learn_from", ["labelled", "all"])
@pytest.mark.parametrize("peers", [1, 2, 3])
def test_a_step_is_the_formula(peers, learn_from):
    chosen = {"ssl_weight": 0.6, "mutual_weight": 2.5, "temperature": 0.4, "mutual_temperature": 0.2}
    model, batches = make(peers=peers, learn_from=learn_from, **chosen)
    batch, twins = batches.batch(0), copy.deepcopy(model)
    assert (batch.labels < 0).any() == (learn_from == "all")
    with torch.no_grad():
        seen = [peer.target(torch.cat([batch.images, batch.pair.images])) for peer in twins.peers]
    spaces = [
        slow_projection(peer.heads["projection"].layers, one.embedding.double().numpy())
        for peer, one in zip(twins.peers, seen, strict=True)
    ]
    parts, images = model.step(batch), len(batch.labels)
    for number, (own, one) in enumerate(zip(spaces, seen, strict=True)):
        hard = slow_cross_entropy(one.logits[:images].double().numpy(), batch.labels.tolist())
        expected = {"primary": hard, "ssl": 0.6 * slow_nt_xent(own[:images], own[images:], 0.4)}
        others = [slow_cross_view_kl(own, other, 0.2) for other in spaces[:number] + spaces[number + 1 :]]
        if others:
            expected["mutual"] = 2.5 * sum(others) / len(others)
        its = {name.split("/")[1]: part.item() for name, part in parts.items() if name.startswith(f"peer{number}/")}
        assert its == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_a_peer_steps_on_its_own_loss():
    """Plain gradient descent by hand: what the others would gain by its moves moves it nowhere."""
    settings = training(momentum=0.0, weight_decay=0.0, schedule="constant")
    model, batches = make(settings, mutual_weight=3.0)
    batch, twins = batches.batch(0), copy.deepcopy(model)
    model.step(batch)
    losses = twins.losses(batch)
    for peer, twin, parts in zip(model.peers, twins.peers, losses, strict=True):
        before = list(twin.student.parameters())
        gradients = torch.autograd.grad(sum(parts.values()), before, retain_graph=True)
        assert all(gradient.abs().max() > 0 for gradient in gradients[-2:])
        for after, start, gradient in zip(peer.student.parameters(), before, gradients, strict=True):
            assert torch.allclose(after, start - settings.lr * gradient, atol=1e-6)
    reached = [
        [
            one is not None
            for one in torch.autograd.grad(losses[0]["mutual"], moved, allow_unused=True, retain_graph=True)
        ]
        for moved in (list(peer.student.parameters()) for peer in twins.peers)
    ]
    assert any(reached[0])
    assert not any(reached[1])


@pytest.mark.parametrize("options", [NOTHING, NOTHING | {"peers": 1}, {"ssl_weight": 0.0, "peers": 1}])
def test_without_weight_the_target_is_scratch_bit_for_bit(options):
    plain, parts = run("scratch")
    alone, its = run("dogo", **options)
    for name, value in plain.export().state_dict().items():
        assert torch.equal(value, alone.export().state_dict()[name]), name
    assert [part["primary"] for part in parts] == [part["peer0/primary"] for part in its]
    assert "peer0/heads" not in alone.state_dict()


def test_the_target_starts_as_in_scratch():
    starts = method("scratch", seed=3).export().state_dict(), method("dogo", seed=3).export().state_dict()
    assert all(torch.equal(value, starts[1][name]) for name, value in starts[0].items())


def test_both_comparisons_are_learnt():
    settings = training(epochs=20)
    _, alone = run("dogo", steps=60, settings=settings, ssl_weight=1e-9, mutual_weight=1e-9)
    _, taught = run("dogo", steps=60, settings=settings, ssl_weight=1.0, mutual_weight=1.0)
    for part in ("peer0/ssl", "peer1/ssl", "peer0/mutual", "peer1/mutual"):
        left, learnt = (sum(one[part].item() for one in parts[-8:]) for parts in (alone, taught))
        assert learnt < left / 1e-9, part


def test_the_projection_is_as_wide_as_published():
    out = Projection(6)(Features((), torch.randn(5, 6), torch.randn(5, 3)))
    assert out.shape == (5, 128)
    assert Projection(6).layers[0].weight.shape == (6, 6)


def test_the_default_weight_is_the_published_one_a_row():
    assert DoGoOptions().mutual_weight == pytest.approx(100 / 256, abs=1e-2)


@pytest.mark.parametrize(
    ("options", "pair", "pool"),
    [
        ({}, True, True),
        ({"learn_from": "labelled"}, True, False),
        ({"ssl_weight": 0.0}, True, True),
        ({"mutual_weight": 0.0}, True, True),
        ({"peers": 1}, True, True),
        ({"peers": 1, "ssl_weight": 0.0}, False, False),
        (NOTHING, False, False),
    ],
)
def test_second_views_and_the_pool_are_asked_for_where_they_count(options, pair, pool):
    needs = DoGo.needs(DoGoOptions(**options))
    assert (needs.pair, needs.pool, needs.outputs) == (pair, pool, ())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"peers": 0}, "peers is 0; it has to be at least 1"),
        ({"ssl_weight": -1.0}, r"ssl_weight is -1\.0; it has to be at least 0"),
        ({"mutual_weight": float("nan")}, "mutual_weight is nan; it has to be at least 0"),
        ({"temperature": 0.0}, r"temperature is 0\.0; it has to be above 0"),
        ({"mutual_temperature": -0.1}, r"mutual_temperature is -0\.1; it has to be above 0"),
    ],
)
def test_options_out_of_range_are_refused(options, says):
    with pytest.raises(InputError, match=says):
        DoGoOptions(**options)


def test_one_image_and_sources_are_refused():
    with pytest.raises(InputError, match="1 image at a time; this method compares at least 2"):
        DoGo.check(DoGoOptions(learn_from="labelled"), facts(rows=1))
    DoGo.check(DoGoOptions(learn_from="all"), facts(rows=1, pool_rows=1))
    DoGo.check(DoGoOptions(**NOTHING), facts(rows=1))
    with pytest.raises(InputError, match="not used by this method"):
        method("dogo", source())
