import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

from sskt.losses import (
    SOFT_LOSSES,
    bernoulli_cross_entropy,
    focal_cross_entropy,
    labelled_cross_entropy,
    objective,
    soft_bernoulli_kl,
    soft_cross_entropy,
    soft_kl,
)
from sskt.maxl_losses import focal_loss


def slow_softmax(row: np.ndarray) -> np.ndarray:
    exponentials = np.exp(row - row.max())
    return exponentials / exponentials.sum()


def slow_soft_loss(kind: str, logits: np.ndarray, source: np.ndarray, temperature: float) -> float:
    """The formula, a class at a time, in float64."""
    total = 0.0
    for row, source_row in zip(logits, source, strict=True):
        q, p = slow_softmax(row / temperature), slow_softmax(source_row / temperature)
        for q_c, p_c in zip(q, p, strict=True):
            total += -p_c * np.log(q_c) + (p_c * np.log(p_c) if kind == "kl" and p_c > 0 else 0.0)
    return total / len(logits) * temperature**2


@pytest.mark.parametrize("kind", SOFT_LOSSES)
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("shape", [(1, 2), (5, 10), (3, 1000), (4, 1)])
def test_value_is_the_formula(kind, temperature, shape):
    generator = np.random.default_rng(0)
    logits, source = generator.normal(size=shape) * 3, generator.normal(size=shape) * 3
    value = SOFT_LOSSES[kind](torch.tensor(logits), torch.tensor(source), temperature=temperature)
    assert value.item() == pytest.approx(slow_soft_loss(kind, logits, source, temperature), rel=1e-10, abs=1e-10)


@pytest.mark.parametrize("kind", SOFT_LOSSES)
def test_gradient_is_that_of_the_formula(kind):
    generator = np.random.default_rng(1)
    logits, source, step = generator.normal(size=(3, 4)), generator.normal(size=(3, 4)), 1e-6
    student = torch.tensor(logits, requires_grad=True)
    SOFT_LOSSES[kind](student, torch.tensor(source), temperature=2.0).backward()
    for index in np.ndindex(logits.shape):
        up, down = logits.copy(), logits.copy()
        up[index] += step
        down[index] -= step
        slope = (slow_soft_loss(kind, up, source, 2.0) - slow_soft_loss(kind, down, source, 2.0)) / (2 * step)
        assert student.grad[index].item() == pytest.approx(slope, abs=1e-7)


@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_cross_entropy_and_kl_have_the_same_gradient(temperature):
    logits = torch.randn(16, 100, dtype=torch.float64)
    source = torch.randn(16, 100, dtype=torch.float64) * 4
    gradients = []
    for loss in (soft_cross_entropy, soft_kl):
        student = logits.clone().requires_grad_()
        loss(student, source, temperature=temperature).backward()
        gradients.append(student.grad)
    assert torch.allclose(*gradients, atol=1e-14)
    assert gradients[0].abs().max() > 1e-4


@pytest.mark.parametrize("kind", SOFT_LOSSES)
def test_saturated_logits_stay_finite(kind):
    student = (torch.eye(4) * 1e4).requires_grad_()
    loss = SOFT_LOSSES[kind](student, torch.eye(4).flip(0) * 1e4, temperature=1.0)
    loss.backward()
    assert loss.isfinite()
    assert student.grad.isfinite().all()


def test_a_network_that_agrees_has_no_divergence():
    logits = torch.randn(8, 10)
    assert soft_kl(logits, logits + 5.0, temperature=2.0).item() == pytest.approx(0, abs=1e-5)


def slow_sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def slow_bernoulli_kl(logits: np.ndarray, source: np.ndarray, temperature: float) -> float:
    total = 0.0
    for row, source_row in zip(logits, source, strict=True):
        for x, y in zip(row, source_row, strict=True):
            q, p = slow_sigmoid(x / temperature), slow_sigmoid(y / temperature)
            total += p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q))
    return total / len(logits) * temperature**2


def slow_bernoulli(logits: np.ndarray, labels: np.ndarray) -> float:
    known = [(slow_sigmoid(x), y) for x, y in zip(logits.flat, labels.flat, strict=True) if y != -1]
    return -sum(math.log(p if y == 1 else 1 - p) for p, y in known) / max(len(known), 1)


def slow_focal(logits: np.ndarray, labels: np.ndarray, gamma: float) -> float:
    known = [slow_softmax(row)[label] for row, label in zip(logits, labels, strict=True) if label != -1]
    return -sum((1 - p) ** gamma * math.log(p) for p in known) / max(len(known), 1)


def assert_gradient(loss: Callable[[torch.Tensor], torch.Tensor], slow: Callable[[np.ndarray], float], at: np.ndarray):
    """The gradient is the slope of the slow formula, entry by entry."""
    leaf, step = torch.tensor(at, requires_grad=True), 1e-6
    loss(leaf).backward()
    for index in np.ndindex(at.shape):
        up, down = at.copy(), at.copy()
        up[index] += step
        down[index] -= step
        assert leaf.grad[index].item() == pytest.approx((slow(up) - slow(down)) / (2 * step), abs=1e-7)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("shape", [(1, 2), (5, 10), (3, 200), (4, 1)])
def test_bernoulli_divergence_is_the_formula(temperature, shape):
    generator = np.random.default_rng(2)
    logits, source = generator.normal(size=shape) * 3, generator.normal(size=shape) * 3
    student = torch.tensor(logits, requires_grad=True)
    value = soft_bernoulli_kl(student, torch.tensor(source), temperature=temperature)
    value.backward()
    assert value.item() == pytest.approx(slow_bernoulli_kl(logits, source, temperature), rel=1e-9)
    for index in np.ndindex(shape):  # what a pencil gets: T times the difference of the probabilities, over the batch
        q, p = slow_sigmoid(logits[index] / temperature), slow_sigmoid(source[index] / temperature)
        assert student.grad[index].item() == pytest.approx(temperature * (q - p) / shape[0], rel=1e-9, abs=1e-15)


def test_a_coin_is_a_softmax_of_two_classes():
    logits, source = torch.randn(2, 6, 1, dtype=torch.float64) * 3
    value = soft_bernoulli_kl(logits, source, temperature=3.0)
    both = [torch.cat([each, torch.zeros_like(each)], dim=1) for each in (logits, source)]
    assert value.item() == pytest.approx(soft_kl(*both, temperature=3.0).item(), rel=1e-12)
    assert soft_bernoulli_kl(logits, logits, temperature=3.0).item() == pytest.approx(0, abs=1e-15)


@pytest.mark.parametrize("size", [50.0, 1e4, 1e30])
def test_saturated_coins_stay_finite(size):
    student = (torch.tensor([[1.0, -1.0, 1.0, 0.0]]) * size).requires_grad_()
    source = torch.tensor([[1.0, 1.0, -1.0, 1.0]]) * size
    loss = soft_bernoulli_kl(student, source, temperature=1.0)
    loss.backward()
    assert loss.item() == pytest.approx(2 * size + math.log(2), rel=1e-5)
    assert student.grad[0].tolist() == pytest.approx([0.0, -1.0, 1.0, -0.5], abs=1e-6)


@pytest.mark.parametrize("shape", [(1, 2), (5, 10), (3, 200), (4, 1)])
@pytest.mark.parametrize("kind", [torch.int8, torch.int64])
def test_bernoulli_cross_entropy_is_the_formula_over_what_is_known(shape, kind):
    generator = np.random.default_rng(3)
    logits, labels = generator.normal(size=shape) * 3, generator.integers(-1, 2, shape)
    value = bernoulli_cross_entropy(torch.tensor(logits), torch.tensor(labels, dtype=kind))
    assert value.item() == pytest.approx(slow_bernoulli(logits, labels), rel=1e-10)
    if shape[1] <= 10:
        assert_gradient(
            lambda x: bernoulli_cross_entropy(x, torch.tensor(labels, dtype=kind)),
            lambda x: slow_bernoulli(x, labels),
            logits,
        )


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0, 5.0])
@pytest.mark.parametrize("shape", [(1, 2), (5, 10), (3, 200), (4, 1)])
def test_focal_cross_entropy_is_the_formula_over_the_labelled_rows(gamma, shape):
    generator = np.random.default_rng(4)
    logits, labels = generator.normal(size=shape) * 3, generator.integers(-1, shape[1], shape[0])
    labels[0] = shape[1] - 1
    value = focal_cross_entropy(torch.tensor(logits), torch.tensor(labels), gamma=gamma)
    assert value.item() == pytest.approx(slow_focal(logits, labels, gamma), rel=1e-9, abs=1e-7)
    if 1 < shape[1] <= 10:  # of one class, p is 1: the slope is 0, and no power of 0 says so
        assert_gradient(
            lambda x: focal_cross_entropy(x, torch.tensor(labels), gamma=gamma),
            lambda x: slow_focal(x, labels, gamma),
            logits,
        )


def test_focal_cross_entropy_is_what_it_is_known_as():
    logits, labels = torch.randn(6, 5, dtype=torch.float64), torch.tensor([0, 4, -1, 2, 2, -1])
    plain = labelled_cross_entropy(logits, labels)
    assert focal_cross_entropy(logits, labels, gamma=0.0).item() == pytest.approx(plain.item(), rel=1e-12)
    known = labels >= 0
    soft = focal_loss(logits[known], torch.nn.functional.one_hot(labels[known], 5), gamma=2.0)
    assert focal_cross_entropy(logits, labels).item() == pytest.approx(soft.item(), rel=1e-12)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("size", [100.0, 1e4])
def test_saturated_logits_of_a_focal_loss_stay_finite(gamma, size):
    logits = (torch.eye(4) * size).requires_grad_()
    right, wrong = torch.arange(4), torch.arange(4).flip(0)
    assert focal_cross_entropy(logits, right, gamma=gamma).item() == 0
    loss = focal_cross_entropy(logits, wrong, gamma=gamma)
    assert loss.item() == pytest.approx(size)  # a certain mistake is not focused away
    (loss + focal_cross_entropy(logits, right, gamma=gamma)).backward()
    assert logits.grad.isfinite().all()
    assert logits.grad.abs().max() > 0.1


def test_saturated_logits_of_coins_cost_what_they_are_off_by():
    logits = torch.tensor([[1e4, -1e4, 1e4, -1e4]], requires_grad=True)
    loss = bernoulli_cross_entropy(logits, torch.tensor([[1, 0, 0, 1]], dtype=torch.int8))
    loss.backward()
    assert loss.item() == pytest.approx(5e3)
    assert logits.grad[0].tolist() == [0.0, 0.0, 0.25, -0.25]


@pytest.mark.parametrize(
    ("loss", "labels"),
    [
        (bernoulli_cross_entropy, torch.full((3, 4), -1, dtype=torch.int8)),
        (focal_cross_entropy, torch.full((3,), -1)),
    ],
)
def test_where_nothing_is_known_there_is_nothing_to_learn(loss, labels):
    logits = torch.randn(3, 4, requires_grad=True)
    value = loss(logits, labels)
    value.backward()
    assert value.item() == 0
    assert logits.grad.abs().max() == 0


def test_what_is_not_known_has_no_say():
    logits, labels = torch.randn(4, 3), torch.tensor([[1, 0, -1], [-1, -1, -1], [0, 0, 1], [-1, 1, 1]])
    changed = logits + (labels == -1) * 100
    assert bernoulli_cross_entropy(changed, labels) == bernoulli_cross_entropy(logits, labels)
    rows = torch.tensor([2, -1, 0, 1])
    hidden = logits + (rows == -1).unsqueeze(1) * torch.tensor([100.0, 0.0, 0.0])
    assert focal_cross_entropy(hidden, rows) == focal_cross_entropy(logits, rows)


def test_what_is_told_of_a_loss_is_detached_and_its_sum():
    parts = {"primary": torch.tensor(2.0, requires_grad=True), "other": torch.tensor(0.5, requires_grad=True)}
    loss, told = objective(parts)
    loss.backward()
    assert {name: part.item() for name, part in told.items()} == {"loss": 2.5, "primary": 2.0, "other": 0.5}
    assert not any(part.requires_grad for part in told.values())
    assert all(part.grad == 1 for part in parts.values())
