import copy
import math

import numpy as np
import pytest
import torch

from sskt.errors import InputError
from sskt.methods.alignahead import Alignahead, AlignaheadOptions, ahead_kl, said
from tests.sskt.learning import facts, feed, method, source, training
from tests.sskt.methods.test_base import run
from tests.sskt.test_losses import slow_softmax


def slow_ahead(own, other, *, shift, temperature):
    """The formula, a stage, an image and a neighbour at a time."""
    stages, rows, total = len(own), len(own[0]), 0.0

    def shares(space, i):
        cosines = {
            j: float(space[i] @ space[j]) / math.sqrt(space[i] @ space[i]) / math.sqrt(space[j] @ space[j])
            for j in range(rows)
            if j != i
        }
        mass = sum(math.exp(value / temperature) for value in cosines.values())
        return [math.exp(value / temperature) / mass for value in cosines.values()]

    for stage in range(stages):
        for i in range(rows):
            pairs = zip(shares(own[(stage + shift) % stages], i), shares(other[stage], i), strict=True)
            total += sum(p * math.log(p / q) for q, p in pairs) / rows
    return total


def stages(rows, *widths, seed=0):
    generator = np.random.default_rng(seed)
    return [generator.normal(size=(rows, width)) + 0.3 for width in widths]


def tensors(arrays, **how):
    return [torch.tensor(one, **how) for one in arrays]


@pytest.mark.parametrize("shift", [0, 1, 2])
@pytest.mark.parametrize("widths", [(2, 3, 4), (3, 3, 1)])
@pytest.mark.parametrize("rows", [2, 3, 6])
def test_value_and_gradient_are_those_of_the_formula(rows, widths, shift):
    own, other, step = stages(rows, *widths), stages(rows, *widths, seed=1), 1e-6
    chosen = {"shift": shift, "temperature": 0.3}
    leaves = tensors(own, requires_grad=True)
    loss = ahead_kl(leaves, tensors(other), **chosen)
    loss.backward()
    assert loss.item() == pytest.approx(slow_ahead(own, other, **chosen), rel=1e-8, abs=1e-12)
    for stage, rows_of in enumerate(own):
        for index in np.ndindex(rows_of.shape):
            up, down = copy.deepcopy(own), copy.deepcopy(own)
            up[stage][index] += step
            down[stage][index] -= step
            slope = (slow_ahead(up, other, **chosen) - slow_ahead(down, other, **chosen)) / (2 * step)
            assert leaves[stage].grad[index].item() == pytest.approx(slope, rel=1e-5, abs=1e-6)


def test_only_without_a_shift_copies_have_nothing_to_learn():
    own = tensors(stages(5, 3, 4, 2))
    assert ahead_kl(own, own, shift=0, temperature=0.1).item() == pytest.approx(0, abs=1e-12)
    assert ahead_kl(own, own, shift=1, temperature=0.1).item() > 0.01
    ahead = [own[2], own[0], own[1]]  # stage l + 1 is what the other's stage l is
    assert ahead_kl(ahead, own, shift=1, temperature=0.1).item() == pytest.approx(0, abs=1e-12)


HARD = {
    "one row": torch.randn(1, 6),
    "two rows": torch.randn(2, 6),
    "identical rows": torch.randn(1, 6).repeat(4, 1),
    "zero rows": torch.zeros(4, 6),
    "huge": torch.randn(4, 6) * 1e30,
}


@pytest.mark.parametrize("hard", HARD)
def test_degenerate_stages_are_finite(hard):
    leaf = HARD[hard].clone().requires_grad_()
    loss = ahead_kl([leaf, torch.randn_like(leaf)], [torch.randn_like(leaf), HARD[hard]], shift=1, temperature=0.1)
    (loss + 0 * leaf.sum()).backward()
    assert loss.isfinite()
    assert leaf.grad.isfinite().all()


def pooled(target, images):
    """What a network's stages show when it is asked, in evaluation mode."""
    with torch.no_grad():
        return [tap.mean(dim=(2, 3)).double().numpy() for tap in target.eval()(images).taps]


def targets(model):
    return [copy.deepcopy(peer.target) for peer in model.peers]


def same(left, right):
    return all(torch.equal(*pair) for pair in zip(left.state_dict().values(), right.state_dict().values(), strict=True))


def slow_cross_entropy(logits, labels):
    rows = [row for row, label in enumerate(labels) if label >= 0]
    return -sum(float(np.log(slow_softmax(logits[row])[labels[row]])) for row in rows) / len(rows)


@pytest.mark.parametrize("learn_from", ["labelled", "all"])
@pytest.mark.parametrize("shift", [0, 1])
def test_a_step_is_the_formula_with_others_that_have_stepped(shift, learn_from):
    chosen = {"peers": 3, "weight": 0.7, "shift": shift, "temperature": 0.2, "learn_from": learn_from}
    model = method("alignahead", identical_start=False, **chosen)
    batch = feed(training(), pool=learn_from == "all").batch(0)
    assert (batch.labels < 0).any() == (learn_from == "all")
    model.train(mode=True)
    before = targets(model)
    parts = model.step(batch)
    with torch.no_grad():
        # Those before a peer have stepped; those after it have not. Neither learns that it was looked at.
        stepped, waiting = ([pooled(one, batch.images) for one in now] for now in (targets(model), before))
        for number, target in enumerate(before):
            features = target.train()(batch.images)
            own = [tap.mean(dim=(2, 3)).double().numpy() for tap in features.taps]
            hard = slow_cross_entropy(features.logits.double().numpy(), batch.labels.tolist())
            others = stepped[:number] + waiting[number + 1 :]
            ahead = [slow_ahead(own, other, shift=shift, temperature=0.2) for other in others]
            assert parts[f"peer{number}/primary"].item() == pytest.approx(hard, rel=1e-4)
            assert parts[f"peer{number}/ahead"].item() == pytest.approx(0.7 * sum(ahead) / 2, rel=1e-3, abs=1e-5)


def test_a_peer_steps_on_its_own_loss():
    """Plain gradient descent by hand, from the oracle-checked loss."""
    settings = training(momentum=0.0, weight_decay=0.0, schedule="constant")
    model, batch = method("alignahead", settings=settings, weight=2.0), feed(settings).batch(0)
    model.train(mode=True)
    twin, other = copy.deepcopy(model.peers[0].target), model.peers[1]
    theirs = [torch.tensor(one) for one in pooled(copy.deepcopy(other.target), batch.images)]
    model.step(batch)
    features = twin(batch.images)
    own = [tap.mean(dim=(2, 3)) for tap in features.taps]
    loss = torch.nn.functional.cross_entropy(features.logits, batch.labels)
    loss = loss + 2.0 * ahead_kl(own, theirs, shift=1, temperature=0.1)
    before = list(twin.parameters())
    gradients = torch.autograd.grad(loss, before)
    for after, start, gradient in zip(model.export().parameters(), before, gradients, strict=True):
        assert torch.allclose(after, start - settings.lr * gradient, atol=1e-6)


def test_being_asked_changes_nothing():
    model = method("alignahead")
    model.train(mode=True)
    peer, images = model.peers[1], feed(training()).batch(0).images
    before = copy.deepcopy(peer.target.state_dict())
    taps = said(peer, images)
    assert all(torch.equal(value, before[name]) for name, value in peer.target.state_dict().items())
    assert all(part.training for part in peer.target.modules())
    assert not any(tap.requires_grad for tap in taps)
    model.train(mode=False)
    said(peer, images)
    assert not any(part.training for part in peer.target.modules())


def test_copies_part_since_they_step_in_turn():
    model, _ = run("alignahead", steps=0)
    assert same(*(peer.target for peer in model.peers))
    model.step(feed(training()).batch(0))
    assert not same(*(peer.target for peer in model.peers))


@pytest.mark.parametrize("identical", [False, True])
def test_the_target_starts_as_in_scratch_and_its_peers_there_or_elsewhere(identical):
    plain, model = method("scratch", seed=3), method("alignahead", peers=3, seed=3, identical_start=identical)
    assert same(plain.export(), model.peers[0].target)
    for a, b in ((0, 1), (0, 2), (1, 2)):
        heads = [model.peers[peer].target.network.fc.weight for peer in (a, b)]
        assert torch.equal(*heads) == identical


@pytest.mark.parametrize("options", [{"peers": 1}, {"peers": 3, "weight": 0.0}])
def test_a_target_that_nobody_teaches_is_scratch_bit_for_bit(options):
    plain, parts = run("scratch")
    alone, its = run("alignahead", learn_from="all", **options)
    assert same(plain.export(), alone.export())
    assert [part["primary"] for part in parts] == [part["peer0/primary"] for part in its]
    assert "peer0/ahead" not in its[0]


@pytest.mark.parametrize("shift", [0, 1])
def test_the_stage_behind_is_learnt(shift):
    settings = training(epochs=20)
    _, alone = run("alignahead", steps=60, settings=settings, shift=shift, weight=1e-9)
    _, taught = run("alignahead", steps=60, settings=settings, shift=shift, weight=1.0)
    for part in ("peer0/ahead", "peer1/ahead"):
        left, learnt = (sum(one[part].item() for one in parts[-8:]) for parts in (alone, taught))
        assert learnt < left / 1e-9, part


def test_the_pool_is_asked_for_only_where_it_counts():
    assert not Alignahead.needs(AlignaheadOptions()).pool
    assert Alignahead.needs(AlignaheadOptions(learn_from="all")).pool
    assert not Alignahead.needs(AlignaheadOptions(learn_from="all", peers=1)).pool
    assert not Alignahead.needs(AlignaheadOptions(learn_from="all", weight=0.0)).pool


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"peers": 0}, "peers is 0; it has to be at least 1"),
        ({"weight": -0.5}, r"weight is -0\.5; it has to be at least 0"),
        ({"shift": -1}, "shift is -1; it has to be at least 0"),
        ({"temperature": 0.0}, r"temperature is 0\.0; it has to be above 0"),
    ],
)
def test_options_out_of_range_are_refused(options, says):
    with pytest.raises(InputError, match=says):
        AlignaheadOptions(**options)


@pytest.mark.parametrize(
    ("options", "known", "says"),
    [
        ({}, {"taps": ()}, "the target's architecture has no taps"),
        ({}, {"taps": facts().taps[:1]}, "shift is 1; it has to be below the target's number of taps, 1"),
        ({"shift": len(facts().taps)}, {}, "it has to be below the target's number of taps"),
        ({}, {"rows": 2}, "2 images at a time; this method relates images of one batch and needs at least 3"),
    ],
)
def test_where_there_is_nothing_to_compare_it_is_refused(options, known, says):
    with pytest.raises(InputError, match=says):
        Alignahead.check(AlignaheadOptions(**options), facts(**known))
    Alignahead.check(AlignaheadOptions(weight=0.0), facts(**known))
    Alignahead.check(AlignaheadOptions(learn_from="all"), facts(rows=2, pool_rows=1))


def test_sources_are_refused():
    with pytest.raises(InputError, match="not used by this method"):
        method("alignahead", source())
