import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from sskt.errors import InputError
from sskt.losses import bernoulli_cross_entropy, labelled_cross_entropy, soft_bernoulli_kl, soft_kl
from sskt.methods import get_method
from sskt.methods.dml import DMLOptions, mutual_losses
from tests.sskt.learning import feed, method, source, training
from tests.sskt.methods.test_base import run
from tests.sskt.test_losses import slow_bernoulli, slow_bernoulli_kl, slow_softmax

LABELS = [2, -1, 0, 1]
"""The second image is unlabelled."""


def slow_dml(logits, labels, number, *, weight):
    """The loss of one peer, a row, a peer and a class at a time."""
    hard, labelled = 0.0, 0
    for row, label in enumerate(labels):
        if label >= 0:
            hard -= float(np.log(slow_softmax(logits[number][row])[label]))
            labelled += 1
    mutual = 0.0
    for other in range(len(logits)):
        if other == number:
            continue
        for row in range(len(labels)):
            p_own, p_other = slow_softmax(logits[number][row]), slow_softmax(logits[other][row])
            for own, theirs in zip(p_own, p_other, strict=True):
                mutual += float(theirs * (np.log(theirs) - np.log(own)))
    others = max(1, len(logits) - 1)
    return hard / labelled + weight * mutual / len(labels) / others


def some_logits(peers, *, classes=3):
    return np.random.default_rng(peers).normal(size=(peers, len(LABELS), classes)) * 2


def losses_of(logits, labels=LABELS, *, weight=0.7):
    parts = mutual_losses(
        list(logits), torch.tensor(labels), weight=weight, primary=labelled_cross_entropy, divergence=soft_kl
    )
    return [torch.stack(list(part.values())).sum() for part in parts]


@pytest.mark.parametrize("peers", [1, 2, 3])
def test_value_and_gradient_are_those_of_the_formula(peers):
    logits, step = some_logits(peers), 1e-6
    leaves = [torch.tensor(one, requires_grad=True) for one in logits]
    losses = losses_of(leaves)
    torch.stack(losses).sum().backward()
    for number, loss in enumerate(losses):
        assert loss.item() == pytest.approx(slow_dml(logits, LABELS, number, weight=0.7), rel=1e-10)
        # A peer is moved by its own loss alone: those in which it is the teacher leave no gradient.
        for index in np.ndindex(logits[number].shape):
            up, down = logits.copy(), logits.copy()
            up[number][index] += step
            down[number][index] -= step
            ends = [slow_dml(moved, LABELS, number, weight=0.7) for moved in (up, down)]
            assert leaves[number].grad[index].item() == pytest.approx((ends[0] - ends[1]) / (2 * step), abs=1e-7)


SEVERAL = [[1, 0, 1], [-1, -1, -1], [0, 0, 0], [1, -1, 0]]
"""Several classes, or none, may hold; -1 is not known."""


@pytest.mark.parametrize("peers", [1, 2, 3])
def test_where_several_classes_may_hold_it_is_the_bernoulli_formula(peers):
    logits, labels, step = some_logits(peers), np.array(SEVERAL), 1e-6

    def slow(moved, number):
        others = [moved[other] for other in range(peers) if other != number]
        taught = [slow_bernoulli_kl(moved[number], other, 1.0) for other in others]
        return slow_bernoulli(moved[number], labels) + 0.7 * sum(taught) / max(1, len(others))

    leaves = [torch.tensor(one, requires_grad=True) for one in logits]
    choice = {"primary": bernoulli_cross_entropy, "divergence": soft_bernoulli_kl}
    parts = mutual_losses(leaves, torch.tensor(labels, dtype=torch.int8), weight=0.7, **choice)
    losses = [torch.stack(list(part.values())).sum() for part in parts]
    torch.stack(losses).sum().backward()
    for number, loss in enumerate(losses):
        assert loss.item() == pytest.approx(slow(logits, number), rel=1e-10)
        for index in np.ndindex(logits[number].shape):
            up, down = logits.copy(), logits.copy()
            up[number][index] += step
            down[number][index] -= step
            slope = (slow(up, number) - slow(down, number)) / (2 * step)
            assert leaves[number].grad[index].item() == pytest.approx(slope, abs=1e-7)


def several(name, **options):
    """A method trained for three steps on images that several classes may hold for."""
    task = method("scratch").task
    task = replace(task, facts=replace(task.facts, multi_label=True))
    kind = get_method(name)
    model = kind(task, kind.Options(**options))
    model.train(mode=True)
    batches = [feed(training()).batch(step) for step in range(3)]
    shown = [torch.nn.functional.one_hot(batch.labels, 3).to(torch.int8) for batch in batches]
    marked = [
        replace(batch, labels=labels.index_fill(1, torch.tensor(0), 1))
        for batch, labels in zip(batches, shown, strict=True)
    ]
    return model, marked, [model.step(batch) for batch in marked]


def test_a_step_on_several_classes_is_the_bernoulli_formula():
    model, batches, _ = several("dml", weight=0.8)
    twins, batch = copy.deepcopy(model), batches[0]
    with torch.no_grad():
        mine, its = (peer.target(batch.images).logits.double().numpy() for peer in twins.peers)
    part = model.step(batch)
    assert part["peer0/primary"].item() == pytest.approx(slow_bernoulli(mine, batch.labels.numpy()), rel=1e-4)
    assert part["peer0/mutual"].item() == pytest.approx(0.8 * slow_bernoulli_kl(mine, its, 1.0), rel=1e-3)


def test_one_peer_is_scratch_on_several_classes_too():
    (plain, _, parts), (alone, _, its) = several("scratch"), several("dml", peers=1)
    assert [part["primary"] for part in parts] == [part["peer0/primary"] for part in its]
    for name, value in plain.export().state_dict().items():
        assert torch.equal(value, alone.export().state_dict()[name]), name


@pytest.mark.parametrize("learn_from", ["labelled", "all"])
def test_a_step_takes_all_predictions_before_anyone_moves(learn_from):
    model = method("dml", peers=3, weight=0.8, learn_from=learn_from)
    batch = feed(training(), pool=learn_from == "all").batch(0)
    model.train(mode=True)
    twins = copy.deepcopy(model)
    with torch.no_grad():
        logits = [peer.target(batch.images).logits.double().numpy() for peer in twins.peers]
    parts = model.step(batch)
    expected = [slow_dml(logits, batch.labels.tolist(), number, weight=0.8) for number in range(3)]
    for number, value in enumerate(expected):
        assert (parts[f"peer{number}/primary"] + parts[f"peer{number}/mutual"]).item() == pytest.approx(value, rel=1e-4)
    assert parts["loss"].item() == pytest.approx(sum(expected), rel=1e-4)


def test_a_peer_steps_on_its_own_loss():
    """Plain gradient descent by hand, from the oracle-checked losses."""
    settings = training(momentum=0.0, weight_decay=0.0, schedule="constant")
    model = method("dml", settings=settings, weight=2.0)
    batch = feed(settings).batch(0)
    model.train(mode=True)
    twins = copy.deepcopy(model)
    model.step(batch)
    logits = [peer.target(batch.images).logits for peer in twins.peers]
    for number, (peer, twin) in enumerate(zip(model.peers, twins.peers, strict=True)):
        other = logits[1 - number].detach()
        hard = torch.nn.functional.cross_entropy(logits[number], batch.labels)
        loss = hard + 2.0 * soft_kl(logits[number], other, temperature=1.0)
        before = list(twin.target.parameters())
        gradients = torch.autograd.grad(loss, before)
        for after, start, gradient in zip(peer.target.parameters(), before, gradients, strict=True):
            assert torch.allclose(after, start - settings.lr * gradient, atol=1e-6)


def test_the_target_starts_as_in_scratch_and_its_peers_elsewhere():
    plain, model = method("scratch", seed=3), method("dml", peers=3, seed=3)
    starts = [peer.target.state_dict() for peer in model.peers]
    for name, value in plain.export().state_dict().items():
        assert torch.equal(value, starts[0][name])
    heads = [start["network.fc.weight"] for start in starts]
    assert not any(torch.equal(heads[a], heads[b]) for a, b in ((0, 1), (0, 2), (1, 2)))


@pytest.mark.parametrize("options", [{"peers": 1}, {"peers": 3, "weight": 0.0}])
def test_a_target_that_nobody_teaches_is_scratch_bit_for_bit(options):
    plain, parts = run("scratch")
    alone, its = run("dml", learn_from="all", **options)
    for name, value in plain.export().state_dict().items():
        assert torch.equal(value, alone.export().state_dict()[name]), name
    assert [part["primary"] for part in parts] == [part["peer0/primary"] for part in its]
    assert ("peer0/mutual" in its[0]) == (options["peers"] > 1)


def test_the_order_of_the_peers_changes_nothing_but_names():
    served, order = feed(training(), pool=True), [2, 0, 1]
    straight = method("dml", peers=3, learn_from="all")
    turned = method("dml", peers=3, learn_from="all")
    for number, peer in enumerate(order):
        turned.peers[number].target.load_state_dict(straight.peers[peer].target.state_dict())
    for model in (straight, turned):
        model.train(mode=True)
    for step in range(3):
        its, parts = turned.step(served.batch(step)), straight.step(served.batch(step))
        for number, peer in enumerate(order):
            for part in ("primary", "mutual"):
                assert its[f"peer{number}/{part}"].item() == pytest.approx(parts[f"peer{peer}/{part}"].item(), rel=1e-4)
    for number, peer in enumerate(order):
        pairs = zip(turned.peers[number].target.parameters(), straight.peers[peer].target.parameters(), strict=True)
        assert all(torch.allclose(left, right, atol=1e-5) for left, right in pairs)


def test_identical_peers_have_nothing_to_teach():
    model = method("dml")
    model.peers[1].target.load_state_dict(model.peers[0].target.state_dict())
    model.train(mode=True)
    parts = model.step(feed(training()).batch(0))
    assert parts["peer0/mutual"].item() == pytest.approx(0, abs=1e-6)
    assert parts["peer0/primary"] == parts["peer1/primary"]
    for left, right in zip(model.peers[0].target.parameters(), model.peers[1].target.parameters(), strict=True):
        assert torch.equal(left, right)


@pytest.mark.parametrize("logits", [torch.randn(2, 4, 1), torch.stack([torch.eye(4), torch.eye(4).flip(0)]) * 1e4])
def test_one_class_and_saturated_logits_stay_finite(logits):
    leaves = [one.clone().requires_grad_() for one in logits]
    losses = losses_of(leaves, [0, 0, -1, 0])
    torch.stack(losses).sum().backward()
    assert torch.stack(losses).isfinite().all()
    assert all(leaf.grad.isfinite().all() for leaf in leaves)


def test_a_training_that_goes_on_equals_one_that_never_stopped():
    served = feed(training(), pool=True)
    model, _ = run("dml", peers=3, learn_from="all", steps=3)
    other = method("dml", peers=3, learn_from="all", seed=9)
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    other.train(mode=True)
    for step in (3, 4, 5):
        mine, its = model.step(served.batch(step)), other.step(served.batch(step))
        assert mine == its
    for name, module in model.modules().items():
        for key, value in module.state_dict().items():
            assert torch.equal(value, other.modules()[name].state_dict()[key]), f"{name} {key}"


def test_the_pool_is_asked_for_only_where_it_counts():
    kind = type(method("dml"))
    assert not kind.needs(DMLOptions()).pool
    assert kind.needs(DMLOptions(learn_from="all")).pool
    assert not kind.needs(DMLOptions(learn_from="all", peers=1)).pool
    assert not kind.needs(DMLOptions(learn_from="all", weight=0.0)).pool


def test_every_peer_is_prepared_for_several_processes():
    prepared = []
    task = copy.copy(vars(method("scratch").task)) | {"prepare": lambda module: prepared.append(module) or module}
    scratch = method("scratch")
    kind = type(method("dml"))
    model = kind(type(scratch.task)(**task), DMLOptions(peers=3))
    assert [id(module) for module in prepared] == [id(peer.student) for peer in model.peers]
    assert [id(module.target) for module in prepared] == [id(peer.target) for peer in model.peers]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"peers": 0}, "peers is 0; it has to be at least 1"),
        ({"weight": -0.5}, r"weight is -0\.5; it has to be at least 0"),
    ],
)
def test_options_out_of_range_are_refused(options, says):
    with pytest.raises(InputError, match=says):
        DMLOptions(**options)


def test_sources_are_refused():
    with pytest.raises(InputError, match="not used by this method"):
        method("dml", source())
