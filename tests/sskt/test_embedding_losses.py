"""Every loss against its formula in NumPy, a number at a time, and its gradient against finite differences."""

from functools import partial

import numpy as np
import pytest
import torch

from sskt.embedding_losses import (
    DISTANCES,
    REDUCTIONS,
    SCORE_LOSSES,
    batch_centred,
    correlations,
    edge_matching,
    node_matching,
)


def slow_distance(kind: str, target: np.ndarray, source: np.ndarray) -> float:
    total = 0.0
    for row, wanted in zip(target, source, strict=True):
        squares = [(t - s) ** 2 for t, s in zip(row, wanted, strict=True)]
        dot = sum(t * s for t, s in zip(row, wanted, strict=True))
        cosine = dot / (sum(t * t for t in row) * sum(s * s for s in wanted)) ** 0.5
        total += {"l2": sum(squares) ** 0.5, "cosine": 1 - cosine, "mse": sum(squares) / len(row)}[kind]
    return total / len(target)


def slow_score(kind: str, target: np.ndarray, source: np.ndarray, temperature: float) -> float:
    rows, total = len(target), 0.0

    def scores(space: np.ndarray, i: int) -> np.ndarray:
        norms = np.sqrt((space**2).sum(axis=1))
        return np.array([space[i] @ space[j] / norms[i] / norms[j] / temperature for j in range(rows) if j != i])

    for i in range(rows):
        mine, its = scores(target, i), scores(source, i)
        p, q = np.exp(its) / np.exp(its).sum(), np.exp(mine) / np.exp(mine).sum()
        total += float((p * np.log(p / q)).sum()) if kind == "kl" else float(((mine - its) ** 2).mean())
    return total / rows


def slow_correlations(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    return np.array([[np.corrcoef(a, b)[0, 1] for b in right] for a in left])


def slow_graph(kind: str, reduction: str, target: np.ndarray, source: np.ndarray) -> float:
    if kind == "node":
        difference = slow_correlations(source, target) - np.eye(len(target))
    else:
        difference = slow_correlations(source, source) - slow_correlations(target, target)
    squares = sum(float(value) ** 2 for value in difference.flat)
    return squares**0.5 if reduction == "frobenius" else squares / difference.size


GRAPHS = {"node": node_matching, "edge": edge_matching}
LOSSES = (
    {kind: (loss, partial(slow_distance, kind)) for kind, loss in DISTANCES.items()}
    | {
        f"score {kind}": (partial(loss, temperature=0.3), partial(slow_score, kind, temperature=0.3))
        for kind, loss in SCORE_LOSSES.items()
    }
    | {
        f"{kind} {reduction}": (partial(loss, reduction=reduction), partial(slow_graph, kind, reduction))
        for kind, loss in GRAPHS.items()
        for reduction in REDUCTIONS
    }
)
PEARSON = [name for name in LOSSES if name.startswith(("node", "edge"))]
SCALE_FREE = [name for name in LOSSES if name not in ("l2", "mse")]


def pair(rows: int, width: int, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    return generator.normal(size=(rows, width)), generator.normal(size=(rows, width)) * 3 + 1


def value_of(name: str, target: np.ndarray, source: np.ndarray) -> float:
    return LOSSES[name][0](torch.tensor(target), torch.tensor(source)).item()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("shape", [(2, 3), (3, 2), (7, 16), (16, 5)])
def test_value_is_the_formula(name, shape):
    target, source = pair(*shape)
    assert value_of(name, target, source) == pytest.approx(LOSSES[name][1](target, source), rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("shape", [(2, 5), (4, 3)])
def test_gradient_is_that_of_the_formula(name, shape):
    target, source = pair(*shape, seed=1)
    loss, slow = LOSSES[name]
    learner, step = torch.tensor(target, requires_grad=True), 1e-6
    loss(learner, torch.tensor(source)).backward()
    for index in np.ndindex(target.shape):
        up, down = target.copy(), target.copy()
        up[index] += step
        down[index] -= step
        slope = (slow(up, source) - slow(down, source)) / (2 * step)
        assert learner.grad[index].item() == pytest.approx(slope, rel=1e-5, abs=1e-7)


HARD = {
    "one row": torch.randn(1, 6),
    "two rows": torch.randn(2, 6),
    "identical rows": torch.randn(1, 6).repeat(4, 1),
    "zero rows": torch.zeros(4, 6),
    "no variance": torch.tensor([0.1, -7.3, 1e4, 3e-9]).view(4, 1).repeat(1, 6),
    "a row without variance": torch.cat([torch.randn(3, 6), torch.full((1, 6), 0.3)]),
    "huge": torch.randn(4, 6) * 1e15,
    "tiny": torch.randn(4, 6) * 1e-25,
}


@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("hard", HARD)
def test_degenerate_batches_are_finite(name, hard, centred):
    prepare = batch_centred if centred else lambda rows: rows
    torch.manual_seed(0)
    for target, source in ((HARD[hard], torch.randn_like(HARD[hard])), (torch.randn_like(HARD[hard]), HARD[hard])):
        learner = target.clone().requires_grad_()
        loss = LOSSES[name][0](prepare(learner), prepare(source))
        (loss + 0 * learner.sum()).backward()
        assert loss.isfinite()
        assert learner.grad.isfinite().all()


@pytest.mark.parametrize("name", SCALE_FREE)
def test_beyond_the_range_of_squares_a_scale_changes_nothing(name):
    target, source = (torch.tensor(one, dtype=torch.float32) for one in pair(5, 8))
    loss = LOSSES[name][0]
    assert loss(target * 2.0**90, source * 2.0**-90).item() == pytest.approx(loss(target, source).item(), rel=1e-5)


def test_a_row_without_variance_has_no_correlation_and_no_gradient():
    constant = torch.full((1, 11), 0.1)
    assert (constant - constant.mean()).abs().max() > 0  # the mean is rounded, and what is left is no variance
    rows = torch.cat([torch.randn(2, 11), constant]).requires_grad_()
    matrix = correlations(rows, rows)
    assert matrix[2].abs().max() == 0
    assert matrix.diagonal()[:2].tolist() == pytest.approx([1, 1], abs=1e-6)
    edge_matching(rows, torch.randn(3, 11), reduction="frobenius").backward()
    assert rows.grad[2].abs().max() == 0
    assert rows.grad[0].abs().max() > 0


@pytest.mark.parametrize("name", PEARSON)
def test_scale_and_shift_of_a_row_change_no_correlation(name):
    target, source = pair(6, 9)
    generator = np.random.default_rng(2)
    moved = source * generator.uniform(0.1, 50, size=(6, 1)) + generator.normal(size=(6, 1)) * 20
    assert value_of(name, target, moved) == pytest.approx(value_of(name, target, source), rel=1e-9)
    assert value_of(name, moved, source) == pytest.approx(value_of(name, source, source), abs=1e-7)


@pytest.mark.parametrize("name", LOSSES)
def test_the_order_of_the_rows_does_not_matter(name):
    target, source = pair(7, 5)
    order = np.random.default_rng(3).permutation(7)
    assert value_of(name, target[order], source[order]) == pytest.approx(value_of(name, target, source), rel=1e-9)
    assert value_of(name, target[order], source) != pytest.approx(value_of(name, target, source), rel=1e-3)


@pytest.mark.parametrize("name", [name for name in LOSSES if not name.startswith("node")])
def test_a_perfect_copy_has_no_loss(name):
    target, source = pair(8, 16)
    assert value_of(name, source, source) == pytest.approx(0, abs=1e-7)
    assert value_of(name, target, source) > 0.01


def test_reductions_are_powers_of_one_another():
    for kind in GRAPHS:
        target, source = pair(5, 7)
        norm, mean = value_of(f"{kind} frobenius", target, source), value_of(f"{kind} mean_square", target, source)
        assert norm**2 / 25 == pytest.approx(mean, rel=1e-9)


def test_centring_mends_node_matching_with_a_source_whose_rows_share_a_direction():
    generator = torch.Generator().manual_seed(0)
    common = torch.randn(1, 64, generator=generator)
    cone = torch.randn(32, 64, generator=generator) + 1.4 * common
    stranger = torch.randn(32, 64, generator=generator)

    def node(target, source):
        return node_matching(target, source, reduction="frobenius").item()

    assert node(cone, cone) > node(stranger, cone)
    assert node(batch_centred(cone), batch_centred(cone)) < node(batch_centred(stranger), batch_centred(cone))


def test_centring_is_the_subtraction_of_the_mean():
    rows = torch.tensor(pair(5, 3)[1])
    assert torch.allclose(batch_centred(rows), torch.tensor(rows.numpy() - rows.numpy().mean(axis=0)), atol=1e-14)
    assert batch_centred(torch.full((3, 4), 0.1)).abs().max() == 0
