import numpy as np
import pytest
import torch

from sskt import whitening as module
from sskt.embedding_losses import node_matching
from sskt.feeds import Pool
from sskt.whitening import RIDGE, THRESHOLD, centring, moments, pool_embeddings, unit_variance, whitening


def some_rows(count: int, width: int, *, seed: int = 0) -> torch.Tensor:
    """Correlated, of uneven variances, far from zero."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=generator) * torch.logspace(0, -1, width)
    return torch.randn(count, width, generator=generator) @ mixing + 5 * torch.randn(width, generator=generator)


def slow_moments(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    count, width = rows.shape
    mean = np.array([sum(rows[:, d]) / count for d in range(width)])
    covariance = [
        [sum((row[a] - mean[a]) * (row[b] - mean[b]) for row in rows) / count for b in range(width)]
        for a in range(width)
    ]
    return mean, np.array(covariance)


def slow_whitening(rows: np.ndarray, others: np.ndarray) -> np.ndarray:
    """By singular values instead of the covariance, an axis at a time."""
    mean = rows.mean(axis=0)
    _, lengths, axes = np.linalg.svd(rows - mean, full_matrices=False)
    variances = lengths**2 / len(rows)
    whitened = np.zeros_like(others)
    for variance, axis in zip(variances, axes, strict=True):
        if variance > THRESHOLD * variances.max():
            along = (others - mean) @ axis
            whitened += np.outer(along, axis) / np.sqrt(variance + RIDGE * variances.max())
    return whitened


@pytest.mark.parametrize("chunk", [1, 3, 10, 64])
@pytest.mark.parametrize(("count", "width"), [(10, 4), (3, 7), (1, 2), (25, 1)])
def test_moments_are_those_of_all_rows(chunk, count, width):
    rows = some_rows(count, width)
    known, (mean, covariance) = moments(torch.split(rows, chunk)), slow_moments(rows.double().numpy())
    assert known.mean.dtype == known.covariance.dtype == torch.float64
    assert np.allclose(known.mean.numpy(), mean, rtol=1e-12)
    assert np.allclose(known.covariance.numpy(), covariance, atol=1e-12)


def test_a_direction_that_all_rows_share_costs_no_digits():
    small = torch.randn(50, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    far = moments([small + 1e9]).covariance
    assert torch.allclose(far, moments([small + 1e9 - 1e9]).covariance, rtol=1e-6)


def test_the_pool_is_asked_for_first_views_in_chunks(monkeypatch):
    asked = []

    def ask(source, ids, *, view=0, quarters=0):
        asked.append((source, ids.tolist(), view, quarters))
        return {"embedding": torch.stack([ids.float(), -ids.float()], dim=1)}

    monkeypatch.setattr(module, "CHUNK", 4)
    rows = torch.cat(list(pool_embeddings(Pool(torch.zeros(10).long(), ask), "wise")))
    assert torch.equal(rows[:, 0], torch.arange(10.0))
    assert asked == [("wise", ids, 0, 0) for ids in ([0, 1, 2, 3], [4, 5, 6, 7], [8, 9])]


def test_centring_is_the_subtraction_of_the_mean():
    rows, others = some_rows(20, 6), some_rows(5, 6, seed=1)
    mapped = centring(moments([rows]))
    assert torch.allclose(mapped(others), others - rows.mean(dim=0), atol=1e-5)
    assert mapped(others).dtype == torch.float32


@pytest.mark.parametrize(("count", "width"), [(40, 6), (7, 7), (5, 12), (2, 3), (30, 1)])
def test_whitening_is_that_of_the_formula(count, width):
    rows, others = some_rows(count, width), some_rows(9, width, seed=1)
    mine = whitening(moments([rows]))(others)
    its = slow_whitening(rows.double().numpy(), others.double().numpy())
    assert np.allclose(mine.numpy(), its, atol=1e-3 * np.abs(its).max())


@pytest.mark.parametrize(("count", "width"), [(60, 6), (5, 12)])
def test_what_is_whitened_is_uncorrelated_over_the_pool(count, width):
    """A covariance of ones along as many axes as there can be, of zeros along the rest."""
    rows = some_rows(count, width)
    covariance = moments([whitening(moments([rows]))(rows)]).covariance
    variances = torch.linalg.eigvalsh(covariance)
    rank = min(width, count - 1)
    assert variances[-rank:].tolist() == pytest.approx([1.0] * rank, abs=0.05)
    assert variances[:-rank].abs().max().item() < 1e-6 if rank < width else covariance.diagonal().min() > 0.95


def test_an_axis_below_the_threshold_is_dropped_and_a_weak_one_is_held_back():
    axes = torch.linalg.qr(torch.randn(3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))).Q
    variances = torch.tensor([1.0, 3 * RIDGE, 0.3 * THRESHOLD], dtype=torch.float64)
    known = module.Moments(torch.zeros(3).double(), axes @ variances.diag() @ axes.T)
    along = whitening(known)(axes.T.float() * variances.sqrt().float().unsqueeze(1)).norm(dim=1)
    assert along.tolist() == pytest.approx([1.0, 0.75**0.5, 0.0], abs=1e-4)


def test_whitening_turns_with_the_rows():
    """It knows no axes of its own: turned rows are whitened to turned ones, whichever way the axes were found."""
    rows = some_rows(30, 5)
    turn = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(1))).Q
    left, right = whitening(moments([rows @ turn]))(rows @ turn), whitening(moments([rows]))(rows) @ turn
    assert torch.allclose(left, right, atol=1e-2)


HARD = {
    "one row": torch.randn(1, 4),
    "identical rows": torch.randn(1, 4).repeat(6, 1),
    "zeros": torch.zeros(3, 4),
    "huge": torch.randn(9, 4) * 1e25,
    "tiny": torch.randn(9, 4) * 1e-25,
    "one dead dimension": torch.randn(9, 4) * torch.tensor([1.0, 1, 1, 0]),
}


@pytest.mark.parametrize("hard", HARD)
def test_degenerate_pools_give_finite_rows(hard):
    rows = HARD[hard]
    for mapped in (centring(moments([rows])), whitening(moments([rows])), unit_variance(rows, noise=torch.zeros(()))):
        assert mapped(rows).isfinite().all()
    if len(rows.unique(dim=0)) == 1:
        assert not whitening(moments([rows]))(rows).any()


def test_one_number_gives_unit_variance_and_keeps_proportions():
    rows = some_rows(200, 5)
    mapped = unit_variance(rows, noise=torch.tensor(0.0))(rows).double().numpy()
    deviation = rows.double().numpy() - slow_moments(rows.double().numpy())[0]
    size = np.mean([value**2 for value in deviation.flat]) ** 0.5
    assert np.allclose(mapped, deviation / size, atol=1e-5)
    assert np.mean(mapped.var(axis=0)) == pytest.approx(1, rel=1e-5)
    assert not unit_variance(rows, noise=torch.tensor(2 * size))(rows).any()


def cone(count: int, width: int) -> torch.Tensor:
    """Clusters around a direction that all rows share: a mean correlation of about two thirds."""
    generator = torch.Generator().manual_seed(0)
    common, clusters = torch.randn(1, width, generator=generator), torch.randn(20, width, generator=generator)
    member = torch.randint(20, (count,), generator=generator)
    return 1.6 * common + 0.6 * clusters[member] + torch.randn(count, width, generator=generator)


def test_node_matching_knows_a_copy_of_an_anisotropic_source_once_it_is_centred_or_whitened():
    """As cached, a perfect copy looks worse than a random network; the pool's mean, and more so its axes, mend that."""
    pool, width, batch = cone(2000, 256), 256, 64
    stranger = torch.randn(batch, width, generator=torch.Generator().manual_seed(1))

    def node(prepare) -> tuple[float, float]:
        mine = prepare(pool[:batch])
        return tuple(node_matching(one, mine, reduction="frobenius").item() for one in (mine, stranger))

    known = moments(torch.split(pool, 512))
    (raw, _), (centred, _), (white, random) = (
        node(prepare) for prepare in (lambda rows: rows, centring(known), whitening(known))
    )
    assert raw > 3 * random
    assert centred < 0.8 * random
    assert white < 0.6 * random
    assert white < centred
