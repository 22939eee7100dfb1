import copy
import dataclasses
import functools

import numpy as np
import pytest
import torch

from sskt.errors import InputError
from sskt.maxl_losses import first_order_lookahead, focal_loss, masked_softmax, negative_entropy
from sskt.methods.maxl import MAXL, MAXLOptions
from tests.sskt.learning import CLASSES, facts, feed, method, source, training
from tests.sskt.methods.test_base import run
from tests.sskt.test_maxl_losses import slow_focal, slow_masked_softmax

BOTH = pytest.mark.parametrize("second_order", [True, False], ids=["exact", "first order"])


def ready(**options):
    model = method("maxl", **options)
    model.train(mode=True)
    return model, feed(training()).batch(0)


def slow_loss(model, batch):
    """The whole of step 1 in NumPy, from the logits of copies."""
    student, labeller = copy.deepcopy(model.student), copy.deepcopy(model.label_network)
    with torch.no_grad():
        logits, heads = student(batch.images)
        invented = labeller(batch.images).logits.double().numpy()
    soft = slow_masked_softmax(invented, batch.labels.tolist(), model.options.subclasses)
    primary = slow_focal(logits.double().numpy(), np.eye(CLASSES)[batch.labels.numpy()], model.options.focal)
    return primary, slow_focal(heads["auxiliary"].double().numpy(), soft, model.options.focal)


@pytest.mark.parametrize("options", [{}, {"subclasses": 2, "focal": 0.0}])
def test_the_loss_is_two_focal_losses(options):
    model, batch = ready(**options)
    primary, auxiliary = slow_loss(model, batch)
    parts = model.step(batch)
    assert parts["primary"].item() == pytest.approx(primary, rel=1e-4)
    assert parts["auxiliary"].item() == pytest.approx(auxiliary, rel=1e-4)
    assert parts["loss"].item() == pytest.approx(primary + auxiliary, rel=1e-4)
    assert {name for name in parts if name.startswith("watch/")} == {"watch/lookahead", "watch/label_entropy"}
    assert 0 < parts["watch/label_entropy"] <= np.log(model.subclasses) + 1e-6


@BOTH
def test_the_target_takes_the_labels_as_constants_and_one_step_a_batch(second_order):
    model, batch = ready(second_order=second_order)
    other = copy.deepcopy(model)
    model.step(batch)
    soft = masked_softmax(other.label_network(batch.images).logits, batch.labels, subclasses=5).detach()
    logits, heads = other.student(batch.images)
    one_hot = torch.eye(CLASSES)[batch.labels]
    loss = focal_loss(logits, one_hot, gamma=2.0) + focal_loss(heads["auxiliary"], soft, gamma=2.0)
    other.optimizer.zero_grad()
    loss.backward()
    other.optimizer.step()
    for mine, its in zip(model.student.parameters(), other.student.parameters(), strict=True):
        assert torch.allclose(mine.grad, its.grad, atol=1e-7)
        assert torch.allclose(mine, its, atol=1e-7)
    assert all(weight.grad is None for weight in other.label_network.parameters())


@BOTH
def test_running_statistics_move_once_a_step(second_order):
    model, batch = ready(second_order=second_order)
    once = copy.deepcopy(model)
    model.step(batch)
    with torch.no_grad():
        once.student(batch.images)
        once.label_network(batch.images)
    for network in ("student", "label_network"):
        wanted = dict(getattr(once, network).named_buffers())
        assert any("running_mean" in name for name in wanted)
        for name, value in getattr(model, network).named_buffers():
            assert torch.allclose(value, wanted[name], atol=1e-7), name


def label_loss_by_hand(model, batch, rate):
    """L_pri(theta+) + w * sum m log m with a copy of the target that takes a plain step of SGD."""
    student, labeller = copy.deepcopy(model.student), copy.deepcopy(model.label_network)
    one_hot = torch.eye(CLASSES, dtype=torch.float64)[batch.labels]
    soft = masked_softmax(labeller(batch.images).logits, batch.labels, subclasses=model.options.subclasses).detach()
    logits, heads = student(batch.images)
    student.zero_grad()
    (focal_loss(logits, one_hot, gamma=2.0) + focal_loss(heads["auxiliary"], soft, gamma=2.0)).backward()
    torch.optim.SGD(student.parameters(), lr=rate).step()
    with torch.no_grad():
        ahead = focal_loss(student(batch.images)[0], one_hot, gamma=2.0)
    return (ahead + model.options.entropy_weight * negative_entropy(soft)).item()


def label_gradient(model, batch, rate):
    """What the label network is given, without any step."""
    soft = model.soft_labels(batch)
    labelled = dataclasses.replace(batch, outputs={"label network": {"soft": soft}})
    ahead, negentropy = model.label_loss(labelled, soft, rate=rate)
    weights = dict(model.label_network.named_parameters())
    gradients = torch.autograd.grad(ahead + model.options.entropy_weight * negentropy, list(weights.values()))
    return dict(zip(weights, gradients, strict=True))


def in_float64(**options):
    model, batch = ready(entropy_weight=0.02, **options)
    model.student.double()
    model.label_network.double()
    return model, batch


def test_the_label_networks_gradient_is_that_of_finite_differences():
    model, batch = in_float64()
    rate, step = 0.5, 1e-6
    gradients = label_gradient(model, batch, rate)
    for name in ("network.stage1.0.weight", "network.stage3.1.bias", "network.fc.weight"):
        weight = model.label_network.get_parameter(name).data
        for position in gradients[name].flatten().abs().topk(3).indices.tolist():
            index = np.unravel_index(position, weight.shape)
            was = weight[index].item()
            weight[index] = was + step
            up = label_loss_by_hand(model, batch, rate)
            weight[index] = was - step
            down = label_loss_by_hand(model, batch, rate)
            weight[index] = was
            assert gradients[name][index].item() == pytest.approx((up - down) / (2 * step), rel=1e-4, abs=1e-8)


@pytest.mark.parametrize(("distance", "off"), [(0.01, 0.1), (1e-5, 1e-4)])
def test_the_first_order_gradient_tends_to_the_exact_one(distance, off, monkeypatch):
    """At the usual distance a few ReLUs change sides; closer by none do."""
    closer = functools.partial(first_order_lookahead, distance=distance)
    monkeypatch.setattr("sskt.methods.maxl.first_order_lookahead", closer)
    exact, close = (
        torch.cat([one.flatten() for one in label_gradient(*in_float64(second_order=order), 0.5).values()])
        for order in (True, False)
    )
    assert (close - exact).norm() < off * exact.norm()


@BOTH
def test_the_lookahead_reaches_the_label_network_without_the_entropy(second_order):
    model, batch = ready(second_order=second_order, entropy_weight=0.0)
    model.step(batch)
    assert max(weight.grad.abs().max() for weight in model.label_network.parameters()) > 1e-6


@BOTH
def test_the_entropy_reaches_the_label_network(second_order):
    without, batch = ready(second_order=second_order, entropy_weight=0.0)
    model, _ = ready(second_order=second_order, entropy_weight=3.0)
    soft = model.soft_labels(batch)
    weights = list(model.label_network.parameters())
    expected = torch.autograd.grad(3.0 * negative_entropy(soft), weights)
    without.step(batch)
    model.step(batch)
    pairs = zip(weights, without.label_network.parameters(), expected, strict=True)
    for weight, plain, wanted in pairs:
        assert torch.allclose(weight.grad - plain.grad, wanted, atol=1e-5)
    assert max(one.abs().max() for one in expected) > 1e-3


@BOTH
def test_going_on_is_exact_for_both_networks(second_order):
    served = feed(training())
    straight, _ = run("maxl", steps=5, second_order=second_order)
    model, _ = run("maxl", steps=3, second_order=second_order)
    other = method("maxl", seed=9, second_order=second_order)
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    other.train(mode=True)
    for step in (3, 4):
        other.step(served.batch(step))
    for name, module in straight.modules().items():
        for key, value in module.state_dict().items():
            assert torch.equal(value, other.modules()[name].state_dict()[key]), f"{name}.{key}"
    assert straight.label_schedule.state_dict() == other.label_schedule.state_dict()


def test_the_label_network_has_its_own_start_and_its_own_sgd():
    model, batch = ready(label_lr=0.01, label_weight_decay=0.1)
    for mine, plain in zip(model.export().parameters(), method("scratch").export().parameters(), strict=True):
        assert torch.equal(mine, plain)
    kernel = "stage1.0.weight"
    assert not torch.equal(model.label_network.network.state_dict()[kernel], model.target.network.state_dict()[kernel])
    before = [weight.detach().clone() for weight in model.label_network.parameters()]
    model.step(batch)
    for old, weight in zip(before, model.label_network.parameters(), strict=True):
        assert torch.allclose(weight, old - 0.01 * (weight.grad + 0.1 * old), atol=1e-6)
    target, label = model.optimizer.param_groups[0], model.label_optimizer.param_groups[0]
    assert label["lr"] < 0.01
    assert label["lr"] / 0.01 == pytest.approx(target["lr"] / training().lr)


def test_the_lookahead_takes_the_rate_of_the_step():
    """Not the one that the schedule sets behind it, which is 0 after the last step of a cosine."""
    model, batch = ready(entropy_weight=0.0)
    model.optimizer.param_groups[0]["lr"] = 0.0
    model.step(batch)
    assert model.optimizer.param_groups[0]["lr"] > 0
    assert max(weight.grad.abs().max() for weight in model.label_network.parameters()) == 0


@BOTH
@pytest.mark.parametrize("scale", [1.0, 1e4])
@pytest.mark.parametrize("classes", [1, CLASSES])
def test_one_class_one_subclass_and_saturated_heads_stay_finite(second_order, scale, classes):
    task = method("maxl").task
    task = dataclasses.replace(task, facts=dataclasses.replace(task.facts, classes=classes))
    model = MAXL(task, MAXLOptions(subclasses=1 if classes == 1 else 5, second_order=second_order))
    model.train(mode=True)
    batch = feed(training()).batch(0)
    batch = dataclasses.replace(batch, labels=batch.labels.clamp(max=classes - 1))
    with torch.no_grad():
        for head in (model.target.network.fc, model.label_network.network.fc, model.heads["auxiliary"].fc):
            head.weight.mul_(scale)
    for _ in range(2):
        assert all(value.isfinite() for value in model.step(batch).values())
    for module in model.modules().values():
        assert all(weight.isfinite().all() for weight in module.parameters())


def test_several_processes_are_refused():
    MAXL.check(MAXLOptions(), facts(workers=1))
    with pytest.raises(InputError) as raised:
        MAXL.check(MAXLOptions(), facts(workers=2))
    assert str(raised.value) == "resources.workers is 2; maxl trains in one process, so it has to be 1"


def test_sources_are_refused():
    with pytest.raises(InputError, match="not used by this method"):
        method("maxl", source())


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"subclasses": 0}, r"subclasses is 0; it has to be at least 1"),
        ({"focal": -1.0}, r"focal is -1\.0; it has to be at least 0"),
        ({"entropy_weight": -0.2}, r"entropy_weight is -0\.2; it has to be at least 0"),
        ({"label_lr": 0.0}, r"label_lr is 0\.0; it has to be above 0"),
        ({"label_weight_decay": -1.0}, r"label_weight_decay is -1\.0; it has to be at least 0"),
    ],
)
def test_options_out_of_range_are_refused(options, says):
    with pytest.raises(InputError, match=says):
        MAXLOptions(**options)
