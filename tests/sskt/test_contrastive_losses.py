"""The losses between two views against their formulas in NumPy, a pair of images at a time."""

import math

import numpy as np
import pytest
import torch

from sskt.contrastive_losses import cross_view_kl, nt_xent


def slow_cosine(a, b):
    return float(a @ b / math.sqrt(a @ a) / math.sqrt(b @ b))


def slow_nt_xent(first, second, temperature):
    rows, images, total = [*first, *second], len(first), 0.0
    for i in range(2 * images):
        partner = i + images if i < images else i - images
        mass = {j: math.exp(slow_cosine(rows[i], rows[j]) / temperature) for j in range(2 * images) if j != i}
        total -= math.log(mass[partner] / sum(mass.values()))
    return total / (2 * images)


def slow_cross_view_kl(own, other, temperature):
    images, total = len(own) // 2, 0.0

    def shares(space, i):
        mass = [math.exp(slow_cosine(space[i], space[images + j]) / temperature) for j in range(images)]
        return [value / sum(mass) for value in mass]

    for i in range(images):
        for q, p in zip(shares(own, i), shares(other, i), strict=True):
            total += p * math.log(p / q)
    return total / images


def two(rows, width, other_width=None, *, seed=0):
    generator = np.random.default_rng(seed)
    return generator.normal(size=(rows, width)) + 0.3, generator.normal(size=(rows, other_width or width)) * 3


def slope_of(slow, rows, index, step=1e-6):
    ends = []
    for sign in (1, -1):
        moved = rows.copy()
        moved[index] += sign * step
        ends.append(slow(moved))
    return (ends[0] - ends[1]) / (2 * step)


@pytest.mark.parametrize("temperature", [0.5, 0.1])
@pytest.mark.parametrize("shape", [(1, 3), (2, 4), (5, 3), (7, 16)])
def test_nt_xent_is_the_formula(shape, temperature):
    first, second = two(*shape)
    leaves = [torch.tensor(rows, requires_grad=True) for rows in (first, second)]
    loss = nt_xent(*leaves, temperature=temperature)
    loss.backward()
    assert loss.item() == pytest.approx(slow_nt_xent(first, second, temperature), rel=1e-9, abs=1e-12)
    for index in np.ndindex(first.shape):
        slope = slope_of(lambda rows: slow_nt_xent(rows, second, temperature), first, index)
        assert leaves[0].grad[index].item() == pytest.approx(slope, rel=1e-5, abs=1e-7)
        slope = slope_of(lambda rows: slow_nt_xent(first, rows, temperature), second, index)
        assert leaves[1].grad[index].item() == pytest.approx(slope, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("temperature", [0.5, 0.1])
@pytest.mark.parametrize("shape", [(2, 3, 3), (4, 4, 2), (10, 3, 6)])
def test_the_cross_view_divergence_is_the_formula(shape, temperature):
    own, other = two(*shape)
    leaf = torch.tensor(own, requires_grad=True)
    loss = cross_view_kl(leaf, torch.tensor(other), temperature=temperature)
    loss.backward()
    assert loss.item() == pytest.approx(slow_cross_view_kl(own, other, temperature), rel=1e-8, abs=1e-12)
    for index in np.ndindex(own.shape):
        slope = slope_of(lambda rows: slow_cross_view_kl(rows, other, temperature), own, index)
        assert leaf.grad[index].item() == pytest.approx(slope, rel=1e-5, abs=1e-6)


def test_views_that_tell_nothing_cost_the_logarithm_of_the_choice():
    same = torch.ones(6, 4)
    assert nt_xent(same, same, temperature=0.5).item() == pytest.approx(math.log(11), rel=1e-6)


def test_views_that_tell_everything_cost_next_to_nothing():
    first = torch.eye(4)
    assert nt_xent(first, first * 3, temperature=0.05).item() == pytest.approx(0, abs=1e-6)
    assert nt_xent(first, first.roll(1, 0), temperature=0.05).item() == pytest.approx(20, abs=1e-3)


def test_the_views_are_on_a_par():
    first, second = (torch.tensor(rows) for rows in two(5, 3))
    straight, turned = nt_xent(first, second, temperature=0.5), nt_xent(second, first, temperature=0.5)
    assert straight.item() == pytest.approx(turned.item(), rel=1e-12)


def test_a_perfect_copy_has_no_divergence():
    own, other = (torch.tensor(rows) for rows in two(8, 5))
    assert cross_view_kl(other, other, temperature=0.1).item() == pytest.approx(0, abs=1e-12)
    assert cross_view_kl(own, other, temperature=0.1).item() > 0.01


def test_the_divergence_runs_from_the_first_view_to_the_second():
    own, other = (torch.tensor(rows) for rows in two(8, 5))
    swapped = [torch.cat(rows.chunk(2)[::-1]) for rows in (own, other)]
    straight, turned = (cross_view_kl(*pair, temperature=0.1).item() for pair in ((own, other), swapped))
    assert turned != pytest.approx(straight, rel=1e-3)


def test_a_rows_mean_is_not_an_entrys():
    """The release's weight of 100 is that of a mean over B x B entries, and 100 / B of this one."""
    own, other = (torch.tensor(rows) for rows in two(12, 5))

    def log_p(rows):
        first, second = (torch.nn.functional.normalize(view, dim=1) for view in rows.chunk(2))
        return torch.log_softmax(first @ second.T / 0.1, dim=1)

    entries = torch.nn.functional.kl_div(log_p(own), log_p(other), reduction="none", log_target=True).mean()
    assert 100 / 6 * cross_view_kl(own, other, temperature=0.1).item() == pytest.approx(100 * entries.item(), rel=1e-9)


HARD = {
    "one image": torch.randn(2, 6),
    "two images": torch.randn(4, 6),
    "identical rows": torch.randn(1, 6).repeat(6, 1),
    "zero rows": torch.zeros(6, 6),
    "a zero row": torch.cat([torch.zeros(1, 6), torch.randn(5, 6)]),
    "huge": torch.randn(6, 6) * 1e30,
    "tiny": torch.randn(6, 6) * 1e-30,
}


@pytest.mark.parametrize("temperature", [0.5, 1e-3])
@pytest.mark.parametrize("hard", HARD)
def test_degenerate_views_are_finite(hard, temperature):
    rows = HARD[hard]
    for own, other in ((rows, torch.randn_like(rows)), (torch.randn_like(rows), rows)):
        leaf = own.clone().requires_grad_()
        contrast = nt_xent(*leaf.chunk(2), temperature=temperature)
        loss = contrast + cross_view_kl(leaf, other, temperature=temperature)
        loss.backward()
        assert loss.isfinite()
        assert leaf.grad.isfinite().all()


@pytest.mark.parametrize("size", [2.0**90, 2.0**-90])
def test_a_scale_changes_nothing(size):
    own, other = (torch.tensor(rows, dtype=torch.float32) for rows in two(6, 5))
    plain = nt_xent(*own.chunk(2), temperature=0.5), cross_view_kl(own, other, temperature=0.1)
    scaled = nt_xent(*(own * size).chunk(2), temperature=0.5), cross_view_kl(own * size, other, temperature=0.1)
    for left, right in zip(plain, scaled, strict=True):
        assert left.item() == pytest.approx(right.item(), rel=1e-5)
