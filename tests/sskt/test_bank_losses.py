"""Losses against a bank, beside their formulas in NumPy, a number at a time, and finite differences."""

import math

import numpy as np
import pytest
import torch

from sskt.bank_losses import CONTRASTS, bank_kl, contrast_scores, infonce, nce
from sskt.embedding_losses import directions

SHAPES = [(1, 3, 1), (2, 3, 5), (5, 2, 3), (4, 7, 12)]
"""Rows of the batch, width, rows of the bank."""


def slow_cosine(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True)) / math.sqrt(sum(a * a) * sum(b * b))


def slow_softmax(scores):
    total = sum(math.exp(score) for score in scores)
    return [math.exp(score) / total for score in scores]


def slow_bank_kl(target, source, bank, temperature, source_temperature):
    total = 0.0
    for mine, its in zip(target, source, strict=True):
        others = [its, *bank]
        q = slow_softmax([slow_cosine(mine, other) / temperature for other in others])
        p = slow_softmax([slow_cosine(its, other) / source_temperature for other in others])
        total += sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    return total / len(target)


def slow_contrast(kind, target, source, negatives, usable, temperature):
    total = 0.0
    for mine, its, row in zip(target, source, usable, strict=True):
        own = math.exp(slow_cosine(mine, its) / temperature)
        others = [math.exp(slow_cosine(mine, negatives[k]) / temperature) for k in np.flatnonzero(row)]
        if kind == "infonce":
            total -= math.log(own / (own + sum(others)))
        else:
            noise = max(len(others), 1)
            total -= math.log(own / (own + noise)) + sum(math.log(1 - other / (other + noise)) for other in others)
    return total / len(target)


def spaces(rows, width, others, *, seed=0):
    generator = np.random.default_rng(seed)
    return tuple(generator.normal(size=(count, width)) * 2 + 0.2 for count in (rows, rows, others))


def mask(rows, others):
    """Some left out, none of them where there is but one."""
    return (np.arange(rows)[:, None] + np.arange(others)) % 3 != 1


def fast_kl(target, source, bank):
    return bank_kl(target, source, directions(bank), temperature=0.5, source_temperature=0.2)


def fast_contrast(kind):
    def loss(target, source, negatives):
        usable = torch.tensor(mask(len(target), len(negatives)))
        return CONTRASTS[kind](contrast_scores(target, source, negatives, usable=usable) / 0.3)

    return loss


def slow_contrast_of(kind):
    return lambda target, source, negatives: slow_contrast(
        kind, target, source, negatives, mask(len(target), len(negatives)), 0.3
    )


LOSSES = {"bank": (fast_kl, lambda *rows: slow_bank_kl(*rows, 0.5, 0.2))} | {
    kind: (fast_contrast(kind), slow_contrast_of(kind)) for kind in CONTRASTS
}


def value_of(name, *rows):
    return LOSSES[name][0](*(torch.as_tensor(one) for one in rows)).item()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("shape", SHAPES)
def test_value_is_the_formula(name, shape):
    rows = spaces(*shape)
    assert value_of(name, *rows) == pytest.approx(LOSSES[name][1](*rows), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("shape", SHAPES[1:])
def test_gradient_is_that_of_the_formula(name, shape):
    """In the target; in a contrast, whose sources are projected by a layer that learns, in all three."""
    rows, step = spaces(*shape, seed=1), 1e-6
    fast, slow = LOSSES[name]
    learners = [torch.tensor(one, requires_grad=True) for one in rows]
    fast(*learners).backward()
    for number in range(1 if name == "bank" else 3):
        assert learners[number].grad.abs().max() > 1e-4
        for index in np.ndindex(rows[number].shape):
            up, down = ([one.copy() for one in rows] for _ in range(2))
            up[number][index] += step
            down[number][index] -= step
            slope = (slow(*up) - slow(*down)) / (2 * step)
            assert learners[number].grad[index].item() == pytest.approx(slope, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("temperature", [0.01, 0.2, 3.0])
def test_the_sources_own_space_at_its_temperature_is_the_minimum_zero(temperature):
    target, source, bank = (torch.tensor(one) for one in spaces(6, 4, 9))
    both = {"temperature": temperature, "source_temperature": temperature}
    learner = (source * 3.7).requires_grad_()  # the cosine does not see a scale
    value = bank_kl(learner, source, directions(bank), **both)
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-12)
    assert learner.grad.abs().max() < 1e-9
    assert bank_kl(target, source, directions(bank), **both) > 0.01


def test_infonce_is_the_cross_entropy_of_the_first_of_explicit_scores():
    target, source, negatives = (torch.tensor(one) for one in spaces(5, 4, 8))
    matrix = torch.stack(
        [
            torch.stack([torch.cosine_similarity(row, other, dim=0) for other in (own, *negatives)])
            for row, own in zip(target, source, strict=True)
        ]
    )
    scores = contrast_scores(target, source, negatives, usable=torch.ones(5, 8, dtype=torch.bool))
    assert torch.allclose(scores, matrix, atol=1e-14)
    wanted = torch.nn.functional.cross_entropy(matrix / 0.07, torch.zeros(5, dtype=torch.int64))
    assert infonce(scores / 0.07).item() == pytest.approx(wanted.item(), rel=1e-12)


@pytest.mark.parametrize("kind", CONTRASTS)
def test_a_negative_left_out_is_as_good_as_none(kind):
    target, source, negatives = (torch.tensor(one) for one in spaces(5, 4, 8))
    usable = torch.ones(5, 8, dtype=torch.bool)
    usable[:, 2:5] = False
    fewer = negatives[[0, 1, 5, 6, 7]]
    some = CONTRASTS[kind](contrast_scores(target, source, negatives, usable=usable))
    alone = CONTRASTS[kind](contrast_scores(target, source, fewer, usable=usable[:, :5] | True))
    assert some.item() == pytest.approx(alone.item(), rel=1e-12)


def test_values_worked_out_by_hand():
    # Own score 1, two negatives of 0, orthogonal to all: e / (e + 2), and 1 - 1 / (1 + 2) twice.
    scores = torch.tensor([[1.0, 0.0, 0.0]], dtype=torch.float64)
    assert infonce(scores).item() == pytest.approx(math.log(1 + 2 / math.e))
    assert nce(scores).item() == pytest.approx(math.log(1 + 2 / math.e) - 2 * math.log(2 / 3))
    # However many orthogonal negatives there are, they cost about 1 together.
    many = torch.zeros(1, 5001, dtype=torch.float64)
    assert nce(many).item() - math.log(5001) == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("name", LOSSES)
def test_the_order_of_batch_and_bank_does_not_matter(name):
    target, source, bank = spaces(6, 4, 9)
    before = value_of(name, target, source, bank)
    order = np.random.default_rng(0).permutation(6)
    if name == "bank":  # the masks of the others go by position
        assert value_of(name, target[order], source[order], bank) == pytest.approx(before, rel=1e-9)
        assert value_of(name, target, source, bank[::-1].copy()) == pytest.approx(before, rel=1e-9)
    assert value_of(name, target[order], source, bank) != pytest.approx(before, rel=1e-3)


@pytest.mark.parametrize("kind", CONTRASTS)
def test_a_contrast_does_not_know_the_order_of_batch_and_negatives(kind):
    target, source, negatives = (torch.tensor(one) for one in spaces(6, 4, 9))
    usable = torch.tensor(mask(6, 9))
    rows, others = torch.randperm(6), torch.randperm(9)
    before = CONTRASTS[kind](contrast_scores(target, source, negatives, usable=usable))
    moved = contrast_scores(target[rows], source[rows], negatives[others], usable=usable[rows][:, others])
    assert CONTRASTS[kind](moved).item() == pytest.approx(before.item(), rel=1e-12)


def degenerate(kind, rows):
    plain = torch.randn(rows, 5, generator=torch.Generator().manual_seed(rows))
    return {
        "ordinary": plain,
        "zero": torch.zeros(rows, 5),
        "identical": plain[:1].repeat(rows, 1),
        "huge": plain * 1e30,
        "tiny": plain * 1e-30,
    }[kind]


@pytest.mark.parametrize("kind", ["ordinary", "zero", "identical", "huge", "tiny"])
@pytest.mark.parametrize("temperature", [1e-4, 0.07, 100.0])
def test_degenerate_rows_and_saturated_scores_stay_finite(kind, temperature):
    for mine, its in ((kind, "ordinary"), ("ordinary", kind), (kind, kind)):
        for usable in (torch.ones(4, 6, dtype=torch.bool), torch.zeros(4, 6, dtype=torch.bool)):
            learner, bank = degenerate(mine, 4).requires_grad_(), degenerate(its, 6)
            scores = contrast_scores(learner, degenerate(its, 4), bank, usable=usable) / temperature
            both = {"temperature": temperature, "source_temperature": 0.01}
            distance = bank_kl(learner, degenerate(its, 4), directions(bank), **both)
            for value in (infonce(scores), nce(scores), distance):
                learner.grad = None
                value.backward(retain_graph=True)
                assert value.isfinite(), (mine, its)
                assert value >= -1e-6, (mine, its)
                assert learner.grad.isfinite().all(), (mine, its)


def test_without_a_usable_negative_infonce_has_nothing_to_tell_apart():
    target, source, negatives = (torch.tensor(one) for one in spaces(3, 4, 2))
    scores = contrast_scores(target, source, negatives, usable=torch.zeros(3, 2, dtype=torch.bool))
    assert infonce(scores).item() == 0
