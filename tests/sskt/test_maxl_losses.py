import itertools

import numpy as np
import pytest
import torch

from sskt.maxl_losses import (
    exact_lookahead,
    first_order_lookahead,
    focal_loss,
    masked_softmax,
    negative_entropy,
)
from tests.sskt.test_losses import slow_softmax

CLASSES, SUBCLASSES, RATE = 3, 2, 0.3
LABELS = torch.tensor([0, 2, 1, 2, 0])


def slow_masked_softmax(logits, labels, subclasses):
    """A subclass at a time."""
    result = np.zeros_like(logits)
    for row, label in enumerate(labels):
        own = range(label * subclasses, (label + 1) * subclasses)
        largest = max(logits[row, k] for k in own)
        total = sum(np.exp(logits[row, k] - largest) for k in own)
        for k in own:
            result[row, k] = np.exp(logits[row, k] - largest) / total
    return result


def slow_focal(logits, targets, gamma):
    """A class at a time."""
    total = 0.0
    for row, target in zip(logits, targets, strict=True):
        for p, y in zip(slow_softmax(row), target, strict=True):
            total -= y * (1 - p) ** gamma * np.log(p)
    return total / len(logits)


@pytest.mark.parametrize("subclasses", [1, 2, 5])
def test_the_masked_softmax_is_that_of_the_own_class(subclasses):
    logits = np.random.default_rng(0).normal(size=(5, CLASSES * subclasses)) * 3
    soft = masked_softmax(torch.tensor(logits), LABELS, subclasses=subclasses)
    assert soft.numpy() == pytest.approx(slow_masked_softmax(logits, LABELS.tolist(), subclasses), abs=1e-12)


@pytest.mark.parametrize("scale", [1.0, 1e4, 1e30])
def test_all_mass_stays_within_the_class(scale):
    logits = (torch.randn(5, CLASSES * SUBCLASSES, generator=torch.Generator().manual_seed(0)) * scale).requires_grad_()
    soft = masked_softmax(logits, LABELS, subclasses=SUBCLASSES)
    blocks = soft.view(5, CLASSES, SUBCLASSES).sum(dim=2)
    assert torch.allclose(blocks, torch.nn.functional.one_hot(LABELS, CLASSES).float())
    assert torch.equal(blocks == 0, torch.nn.functional.one_hot(LABELS, CLASSES) == 0)
    negative_entropy(soft).backward()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("shape", [(1, 2), (4, 5), (3, 1)])
def test_the_focal_loss_is_the_formula(gamma, shape):
    generator = np.random.default_rng(1)
    logits, targets = generator.normal(size=shape) * 2, generator.dirichlet(np.ones(shape[1]), size=shape[0])
    loss = focal_loss(torch.tensor(logits), torch.tensor(targets), gamma=gamma)
    assert loss.item() == pytest.approx(slow_focal(logits, targets, gamma), rel=1e-9, abs=1e-12)


def test_gamma_zero_is_cross_entropy():
    logits, labels = torch.randn(5, CLASSES, dtype=torch.float64), torch.nn.functional.one_hot(LABELS, CLASSES).double()
    expected = torch.nn.functional.cross_entropy(logits, LABELS)
    assert torch.allclose(focal_loss(logits, labels, gamma=0.0), expected)


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_the_focal_loss_has_two_derivatives(gamma):
    generator = torch.Generator().manual_seed(2)
    logits = torch.randn(2, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    targets = torch.rand(2, 3, generator=generator, dtype=torch.float64, requires_grad=True)

    def loss(logits, targets):
        return focal_loss(logits, targets, gamma=gamma)

    assert torch.autograd.gradcheck(loss, (logits, targets))
    assert torch.autograd.gradgradcheck(loss, (logits, targets))


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 1.5, 2.0])
@pytest.mark.parametrize("classes", [1, 3])
def test_saturated_logits_keep_both_derivatives_finite(gamma, classes):
    logits = torch.zeros(2, classes)
    logits[:, 0] = 1e4
    logits.requires_grad_()
    targets = torch.zeros(2, classes)
    targets[0, 0] = targets[1, -1] = 1
    targets.requires_grad_()
    loss = focal_loss(logits, targets, gamma=gamma)
    (gradient,) = torch.autograd.grad(loss, logits, create_graph=True)
    second = torch.autograd.grad(gradient.square().sum(), (logits, targets), materialize_grads=True)
    assert all(value.isfinite().all() for value in (loss, gradient, *second))


def test_the_entropy_is_that_of_the_mean():
    targets = np.random.default_rng(3).dirichlet(np.ones(4), size=6)
    targets[:, 2] = 0
    mean = [sum(row[k] for row in targets) / len(targets) for k in range(4)]
    expected = sum(m * np.log(m) for m in mean if m > 0)
    assert negative_entropy(torch.tensor(targets)).item() == pytest.approx(expected, rel=1e-12)
    assert negative_entropy(torch.full((2, 8), 1 / 8)).item() == pytest.approx(-np.log(8), rel=1e-6)
    assert negative_entropy(torch.eye(4)[:1]).item() == 0


class Tiny:
    """A target of two layers with two heads, and a linear label network, in float64."""

    def __init__(self):
        generator = torch.Generator().manual_seed(4)

        def draw(*shape):
            return torch.randn(*shape, generator=generator, dtype=torch.float64, requires_grad=True)

        self.images = draw(5, 4).detach()
        self.target = {"trunk": draw(4, 6), "primary": draw(6, CLASSES), "auxiliary": draw(6, CLASSES * SUBCLASSES)}
        self.labeller = draw(4, CLASSES * SUBCLASSES)

    def soft(self):
        return masked_softmax(self.images @ self.labeller, LABELS, subclasses=SUBCLASSES)

    def losses_at(self, soft):
        def losses(parameters):
            hidden = torch.tanh(self.images @ parameters["trunk"])
            labels = torch.nn.functional.one_hot(LABELS, CLASSES).double()
            return {
                "primary": focal_loss(hidden @ parameters["primary"], labels, gamma=2.0),
                "auxiliary": focal_loss(hidden @ parameters["auxiliary"], soft, gamma=2.0),
            }

        return losses

    def ahead(self):
        """L_pri(theta+), by hand and without a graph."""
        losses = self.losses_at(self.soft().detach())
        gradients = torch.autograd.grad(sum(losses(self.target).values()), list(self.target.values()))
        pairs = zip(self.target.items(), gradients, strict=True)
        return losses({name: (value - RATE * slope).detach() for (name, value), slope in pairs})["primary"].item()

    def gradient(self, lookahead, **options):
        value = lookahead(self.losses_at(self.soft()), self.target, rate=RATE, **options)
        assert value.item() == pytest.approx(self.ahead(), rel=1e-12)
        return torch.autograd.grad(value, self.labeller)[0]


def test_the_exact_gradient_is_that_of_finite_differences():
    tiny, step = Tiny(), 1e-5
    gradient = tiny.gradient(exact_lookahead)
    assert gradient.abs().max() > 1e-5
    weights = tiny.labeller.data
    for index in np.ndindex(*weights.shape):
        was = weights[index].item()
        weights[index] = was + step
        up = tiny.ahead()
        weights[index] = was - step
        down = tiny.ahead()
        weights[index] = was
        assert gradient[index].item() == pytest.approx((up - down) / (2 * step), rel=1e-5, abs=1e-9)


def test_the_first_order_gradient_tends_to_the_exact_one():
    tiny = Tiny()
    exact = tiny.gradient(exact_lookahead)
    errors = [
        ((tiny.gradient(first_order_lookahead, distance=distance) - exact).norm() / exact.norm()).item()
        for distance in (1.0, 0.1, 0.01, 0.001)
    ]
    assert errors[2] < 1e-4
    for coarse, fine in itertools.pairwise(errors):
        assert fine < coarse / 20, "a central difference has an error of the order of the distance squared"


def test_the_first_order_leaves_no_gradients_behind():
    tiny = Tiny()
    tiny.gradient(first_order_lookahead)
    assert all(value.grad is None for value in tiny.target.values())


def test_both_sides_of_the_difference_draw_the_same():
    tiny = Tiny()
    soft = tiny.soft()

    def losses(parameters):
        noise = (soft * torch.rand(soft.shape, dtype=torch.float64)).sum()
        return {"primary": parameters["trunk"].square().sum(), "auxiliary": noise}

    value = first_order_lookahead(losses, {"trunk": tiny.target["trunk"]}, rate=RATE)
    assert torch.autograd.grad(value, tiny.labeller)[0].abs().max() == 0


@pytest.mark.parametrize("lookahead", [exact_lookahead, first_order_lookahead])
def test_a_flat_loss_teaches_nothing(lookahead):
    weight, soft = torch.ones(2, requires_grad=True), torch.ones(2, requires_grad=True)
    value = lookahead(
        lambda at: {"primary": 0 * at["weight"].sum(), "auxiliary": (soft * at["weight"]).sum()},
        {"weight": weight},
        rate=RATE,
    )
    assert torch.autograd.grad(value, soft)[0].abs().max() == 0


def test_attention_is_differentiated_twice():
    query = torch.randn(2, 1, 3, 4, generator=torch.Generator().manual_seed(5), requires_grad=True)
    soft = torch.ones((), requires_grad=True)

    def losses(parameters):
        attended = torch.nn.functional.scaled_dot_product_attention(*[parameters["query"]] * 3)
        return {"primary": attended.square().sum(), "auxiliary": soft * attended.sum()}

    value = exact_lookahead(losses, {"query": query}, rate=RATE)
    assert torch.autograd.grad(value, soft)[0] != 0
