"""Structure among neighbours, beside its formula in NumPy, a number at a time, and finite differences."""

import math

import numpy as np
import pytest
import torch

from sskt.neighbour_losses import KERNELS, cosine, local_structure, rbf

SHAPES = [(1, 3, 4, 4), (2, 8, 5, 3), (5, 4, 1, 6), (3, 2, 6, 2)]
"""Groups, images in each, width of the target and of the source."""


def slow_kernel(kind, groups):
    images = [(group[0], group[1:]) for group in groups]
    squares = [[sum((image - other) ** 2) for other in others] for image, others in images]
    if kind == "rbf":
        return [[math.exp(-square / (sum(row) / len(row))) for square in row] for row in squares]
    return [
        [float(image @ other) / math.sqrt((image @ image) * (other @ other)) for other in others]
        for image, others in images
    ]


def slow_structure(kind, target, source, temperature):
    total = 0.0
    for mine, its in zip(slow_kernel(kind, target), slow_kernel(kind, source), strict=True):
        p, q = ([math.exp(k / temperature) for k in row] for row in (its, mine))
        p, q = ([value / sum(row) for value in row] for row in (p, q))
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    return total / len(target)


def spaces(groups, images, width, source_width, *, seed=0):
    generator = np.random.default_rng(seed)
    return generator.normal(size=(groups, images, width)), generator.normal(size=(groups, images, source_width)) * 4


def value_of(kernel, target, source, temperature=0.2):
    target, source = torch.as_tensor(target), torch.as_tensor(source)
    return local_structure(target, source, kernel=kernel, temperature=temperature).item()


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("temperature", [0.1, 1.0])
def test_value_is_the_formula(kernel, shape, temperature):
    target, source = spaces(*shape)
    wanted = slow_structure(kernel, target, source, temperature)
    assert value_of(kernel, target, source, temperature) == pytest.approx(wanted, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("shape", SHAPES[:2])
def test_gradient_is_that_of_the_formula(kernel, shape):
    (target, source), step = spaces(*shape, seed=1), 1e-6
    learner = torch.tensor(target, requires_grad=True)
    local_structure(learner, torch.tensor(source), kernel=kernel, temperature=0.2).backward()
    # The bandwidth of `rbf` takes part too, but for the scale by which huge numbers are kept in range: a loss that is
    # blind to scale does not see it.
    assert learner.grad.abs().max() > 1e-3
    for index in np.ndindex(target.shape):
        up, down = target.copy(), target.copy()
        up[index] += step
        down[index] -= step
        slope = (slow_structure(kernel, up, source, 0.2) - slow_structure(kernel, down, source, 0.2)) / (2 * step)
        assert learner.grad[index].item() == pytest.approx(slope, rel=1e-5, abs=1e-7)


def test_kernels_worked_out_by_hand():
    # From the origin to 1, 1 and 2 along a line: squares 1, 1, 4, of mean 2.
    line = torch.tensor([[[0.0], [1.0], [-1.0], [2.0]]])
    assert rbf(line)[0].tolist() == pytest.approx([math.exp(-0.5), math.exp(-0.5), math.exp(-2)])
    corners = torch.tensor([[[2.0, 0.0], [0.0, 5.0], [3.0, 3.0], [-1.0, 0.0]]])
    assert cosine(corners)[0].tolist() == pytest.approx([0, math.sqrt(0.5), -1])


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_perfect_copy_is_the_minimum_zero(kernel):
    target, source = spaces(4, 8, 6, 5)
    rotation = np.linalg.qr(np.random.default_rng(5).normal(size=(5, 5)))[0]
    learner = torch.tensor(source @ rotation * 0.03, requires_grad=True)
    value = local_structure(learner, torch.tensor(source), kernel=kernel, temperature=0.1)
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-12)
    assert learner.grad.abs().max() < 1e-6
    assert value_of(kernel, target, source) > 0.01


@pytest.mark.parametrize("kernel", KERNELS)
def test_the_order_of_groups_and_of_neighbours_does_not_matter(kernel):
    target, source = spaces(4, 6, 3, 5)
    before = value_of(kernel, target, source)
    groups, near = np.random.default_rng(0).permutation(4), np.array([0, 3, 1, 5, 4, 2])
    assert value_of(kernel, target[groups], source[groups]) == pytest.approx(before, rel=1e-9)
    assert value_of(kernel, target[:, near], source[:, near]) == pytest.approx(before, rel=1e-9)
    assert value_of(kernel, target[:, near], source) != pytest.approx(before, rel=1e-3)
    assert value_of(kernel, target[:, ::-1].copy(), source[:, ::-1].copy()) != pytest.approx(before, rel=1e-3)


def degenerate(kind):
    plain = torch.randn(3, 8, 5, generator=torch.Generator().manual_seed(0))
    return {
        "ordinary": plain,
        "zero": torch.zeros(3, 8, 5),
        "identical": plain[:1, :1].repeat(3, 8, 1),
        "one group identical": torch.cat([plain[:1, :1].repeat(1, 8, 1), plain[1:]]),
        "huge": plain * 1e30,
        "tiny": plain * 1e-30,
        "one group": plain[:1],
    }[kind]


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("kind", ["zero", "identical", "one group identical", "huge", "tiny", "one group"])
@pytest.mark.parametrize("temperature", [1e-3, 0.1])
def test_degenerate_groups_stay_finite(kernel, kind, temperature):
    other = degenerate("ordinary")[: len(degenerate(kind))]
    for mine, its in ((degenerate(kind), other), (other, degenerate(kind)), (degenerate(kind), degenerate(kind))):
        learner = mine.clone().requires_grad_()
        value = local_structure(learner, its, kernel=kernel, temperature=temperature)
        value.backward()
        assert value.isfinite()
        assert value >= -1e-5
        assert learner.grad.isfinite().all()


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("factor", [1e-30, 1e30])
def test_huge_and_tiny_embeddings_keep_their_structure(kernel, factor):
    plain, source = degenerate("ordinary"), degenerate("ordinary").flip(0)
    assert value_of(kernel, plain * factor, source) == pytest.approx(value_of(kernel, plain, source), rel=1e-4)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_group_does_not_see_the_others(kernel):
    target, source = spaces(4, 6, 3, 5)
    alone = [value_of(kernel, target[[group]], source[[group]]) for group in range(4)]
    assert value_of(kernel, target, source) == pytest.approx(sum(alone) / 4, rel=1e-9)


@pytest.mark.parametrize("kernel", KERNELS)
def test_gradient_descent_finds_the_sources_structure(kernel):
    generator = torch.Generator().manual_seed(0)
    source = torch.randn(4, 8, 3, generator=generator)
    learner = torch.randn(4, 8, 5, generator=generator).requires_grad_()
    optimizer, values = torch.optim.Adam([learner], lr=0.02), []
    for _ in range(100):
        value = local_structure(learner, source, kernel=kernel, temperature=0.1)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < 0.1 * values[0]
