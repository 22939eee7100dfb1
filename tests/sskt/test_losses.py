import numpy as np
import pytest
import torch

from sskt.losses import SOFT_LOSSES, soft_cross_entropy, soft_kl


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
