import numpy as np
import pytest
import torch

from sskt.errors import InputError
from sskt.methods.propagate import Propagate, PropagateOptions
from tests.sskt.learning import CLASSES, POOL, feed, graph, image_set, method, source, training
from tests.sskt.methods.test_base import run
from tests.sskt.methods.test_embed import slow_primary
from tests.sskt.test_losses import slow_softmax
from tests.sskt.test_propagation import slow_propagation


def slow_certainty(share: np.ndarray) -> float:
    return 1 + sum(p * np.log(p) for p in share if p > 0) / np.log(len(share))


@pytest.mark.parametrize("certainty", [True, False])
@pytest.mark.parametrize("labels_per_class", [None, 2])
@pytest.mark.parametrize("learn_from", ["labelled", "all"])
def test_the_loss_is_the_equation(certainty, labels_per_class, learn_from):
    one, settings = source(), training(labels_per_class=labels_per_class)
    options = {"alpha": 0.7, "iterations": 4, "gamma": 2.0}
    chosen = {"weight": 0.6, "neighbours": 5, "certainty": certainty, "learn_from": learn_from}
    model = method("propagate", one, settings=settings, **options, **chosen)
    batch = feed(settings, sources=[one], pool=learn_from == "all").batch(1)
    model.train(mode=True)
    expected, _ = slow_primary(model, batch)
    labels = image_set().labels[:POOL].clone()
    if labels_per_class:
        for label in range(CLASSES):
            labels[(labels == label).nonzero().flatten()[labels_per_class:]] = -1
    shares = slow_propagation(graph(one, 5), labels, classes=CLASSES, **options)
    with torch.no_grad():
        logits = model.student(batch.images)[0].double().numpy()
    for row, number in zip(logits, batch.ids.tolist(), strict=True):
        counts = slow_certainty(shares[number]) if certainty else 1.0
        soft = -sum(p * np.log(q) for p, q in zip(shares[number], slow_softmax(row), strict=True))
        expected += 0.6 * counts * soft / len(batch.ids)
    parts = model.step(batch)
    assert parts["loss"].item() == pytest.approx(expected, rel=1e-4)
    assert set(parts) == {"loss", "primary", "propagated"}


def test_the_gradient_is_that_of_the_formula():
    """Of weight * c_i * CE: weight * c_i * (softmax - p_i) / B, with saturated logits too."""
    model = method("propagate", source(), weight=3.0)
    batch = feed(training(), sources=[source()], pool=True).batch(0)
    shares, counts = model.shares[batch.ids], model.counts[batch.ids]
    assert counts.min() < 0.9 * counts.max()
    torch.manual_seed(0)
    for scale in (1.0, 1e4):
        logits = (torch.randn(len(batch.ids), CLASSES) * scale).requires_grad_()
        loss = model.losses(batch, logits, {})["propagated"]
        (gradient,) = torch.autograd.grad(loss, logits)
        expected = 3.0 * counts.unsqueeze(1) * (torch.softmax(logits, dim=1) - shares) / len(batch.ids)
        assert loss.isfinite()
        assert torch.allclose(gradient, expected, atol=1e-6)


def test_weight_zero_is_scratch_bit_for_bit():
    plain, _ = run("scratch", steps=8)
    spread, parts = run("propagate", source(), steps=8, weight=0.0)
    assert parts[0]["propagated"] == 0
    for name, value in plain.export().state_dict().items():
        assert torch.equal(value, spread.export().state_dict()[name]), name


def test_labels_that_do_not_spread_are_the_labels():
    model = method("propagate", source(), alpha=0.0, weight=1.0, learn_from="labelled")
    model.train(mode=True)
    parts = model.step(feed(training(), sources=[source()]).batch(0))
    assert parts["propagated"].item() == pytest.approx(parts["primary"].item(), rel=1e-5)


def test_images_that_no_label_reaches_count_only_without_certainty():
    sure, all_alike = (method("propagate", source(), alpha=0.0, certainty=choice) for choice in (True, False))
    hidden = image_set().labels[:POOL] < 0
    assert hidden.any()
    assert sure.counts[hidden].abs().max() < 1e-6
    assert sure.counts[~hidden].tolist() == pytest.approx([1] * int((~hidden).sum()))
    assert all_alike.counts.tolist() == [1] * POOL


@pytest.mark.parametrize("options", [{}, {"certainty": False}, {"learn_from": "labelled"}])
def test_the_graph_changes_what_is_learnt(options):
    plain, _ = run("scratch")
    taught, _ = run("propagate", source(), **options)
    other, _ = run("propagate", source(classes=7), **options)
    weights = [torch.cat([value.flatten() for value in one.export().parameters()]) for one in (plain, taught, other)]
    assert not torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2])


def test_batches_need_no_outputs():
    assert Propagate.needs(PropagateOptions()).outputs == ()
    assert Propagate.needs(PropagateOptions(neighbours=7)).graph == 7
    assert Propagate.needs(PropagateOptions()).pool
    assert not Propagate.needs(PropagateOptions(weight=0.0)).pool
    model = method("propagate", source())
    assert model.step(feed(training(), outputs={}, pool=True).batch(0))["propagated"] > 0


def test_what_has_spread_is_derived_and_not_saved():
    model = method("propagate", source())
    assert set(model.state_dict()) == set(method("scratch").state_dict())
    saved = sum(value.numel() for value in model.target.state_dict().values())
    assert saved == sum(value.numel() for value in method("scratch").target.state_dict().values())


def test_the_order_of_the_batch_does_not_matter():
    torch.manual_seed(0)
    model = method("propagate", source())
    batch = feed(training(), sources=[source()], pool=True).batch(0)
    order = torch.randperm(len(batch.ids))
    moved = type(batch)(batch.images[order], batch.labels[order], batch.ids[order], batch.views[order])
    logits = torch.randn(len(order), CLASSES)
    mine, its = model.losses(batch, logits, {}), model.losses(moved, logits[order], {})
    assert mine["propagated"].item() == pytest.approx(its["propagated"].item(), rel=1e-6)
    assert mine["propagated"].item() != pytest.approx(model.losses(moved, logits, {})["propagated"].item(), rel=1e-3)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"weight": -0.1}, "weight is -0.1; it has to be at least 0"),
        ({"weight": float("nan")}, "weight is nan; it has to be at least 0"),
        ({"neighbours": 0}, "neighbours is 0; it has to be at least 1"),
        ({"iterations": 0}, "iterations is 0; it has to be at least 1"),
        ({"alpha": 1.0}, "alpha is 1.0; it has to be at least 0 and below 1"),
        ({"alpha": -0.5}, "alpha is -0.5; it has to be at least 0 and below 1"),
        ({"gamma": 0.0}, "gamma is 0.0; it has to be above 0"),
    ],
)
def test_options_out_of_range_are_refused(options, says):
    with pytest.raises(InputError, match=says):
        PropagateOptions(**options)


def test_one_source_and_enough_images_are_asked_for():
    with pytest.raises(InputError, match=r"sources are \[\]; this method needs exactly 1"):
        method("propagate")
    with pytest.raises(InputError, match=r"sources are \['a', 'bb'\]; this method needs exactly 1"):
        method("propagate", source("a"), source("bb"))
    with pytest.raises(InputError, match="36 neighbours of every image are asked for; there are 36 images"):
        method("propagate", source(), neighbours=POOL)
