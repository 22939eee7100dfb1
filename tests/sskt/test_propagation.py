"""Spreading and smoothing against dense matrices and loops in NumPy."""

import numpy as np
import pytest
import torch

from sskt.graphs import Graph, nearest_neighbours
from sskt.propagation import certainty, propagate_labels, smooth

CLASSES = 3


def random_graph(count: int = 20, neighbours: int = 3, *, seed: int = 0) -> Graph:
    generator = torch.Generator().manual_seed(seed)
    return nearest_neighbours(torch.randn(count, 5, generator=generator), neighbours)


def some_labels(count: int = 20) -> torch.Tensor:
    """Every third image has one."""
    numbers = torch.arange(count)
    return torch.where(numbers % 3 == 0, numbers // 3 % CLASSES, -1)


def slow_matrix(graph: Graph, gamma: float) -> np.ndarray:
    """S of the doc string, dense."""
    count = len(graph.ids)
    near = np.zeros((count, count))
    for own, (ids, cosines) in enumerate(zip(graph.ids.tolist(), graph.similarity.tolist(), strict=True)):
        for other, cosine in zip(ids, cosines, strict=True):
            near[own, other] = max(cosine, 0.0) ** gamma
    both = near + near.T
    degrees = both.sum(axis=1)
    for i in range(count):
        for j in range(count):
            both[i, j] = both[i, j] / (degrees[i] * degrees[j]) ** 0.5 if both[i, j] else 0.0
    return both


def slow_propagation(graph, labels, *, classes, alpha, iterations, gamma=1.0) -> np.ndarray:
    spread, start = slow_matrix(graph, gamma), np.zeros((len(labels), classes))
    for row, label in enumerate(labels.tolist()):
        if label >= 0:
            start[row, label] = 1
    share = start.copy()
    for _ in range(iterations):
        share = np.array(
            [
                [
                    alpha * sum(spread[i, j] * share[j, c] for j in range(len(labels))) + (1 - alpha) * start[i, c]
                    for c in range(classes)
                ]
                for i in range(len(labels))
            ]
        )
    return np.array([row / row.sum() if row.sum() else np.full(classes, 1 / classes) for row in share])


@pytest.mark.parametrize("alpha", [0.3, 0.99])
@pytest.mark.parametrize(("iterations", "gamma"), [(1, 1.0), (4, 3.0), (25, 0.5)])
@pytest.mark.parametrize(("count", "neighbours"), [(20, 3), (7, 6), (2, 1)])
def test_labels_spread_as_the_formula_says(alpha, iterations, gamma, count, neighbours):
    graph, labels = random_graph(count, neighbours), some_labels(count)
    options = {"classes": CLASSES, "alpha": alpha, "iterations": iterations, "gamma": gamma}
    found = propagate_labels(graph, labels, **options)
    assert found.shape == (count, CLASSES)
    assert np.allclose(found.numpy(), slow_propagation(graph, labels, **options), atol=1e-5)


def test_many_iterations_come_to_the_limit():
    """F = (1 - alpha) (I - alpha S)^-1 Y."""
    graph, labels = random_graph(), some_labels()
    start = np.eye(CLASSES)[labels.clamp(min=0)] * (labels >= 0).numpy()[:, None]
    limit = np.linalg.solve(np.eye(20) - 0.8 * slow_matrix(graph, 1.0), start)
    found = propagate_labels(graph, labels, classes=CLASSES, alpha=0.8, iterations=200)
    assert np.allclose(found.numpy(), limit / limit.sum(axis=1, keepdims=True), atol=1e-5)


def test_alpha_zero_returns_the_labels_themselves():
    labels = some_labels()
    found = propagate_labels(random_graph(), labels, classes=CLASSES, alpha=0.0, iterations=7)
    assert torch.equal(found[labels >= 0], torch.eye(CLASSES)[labels[labels >= 0]])
    assert torch.equal(found[labels < 0], torch.full((13, CLASSES), 1 / CLASSES))


def test_labels_of_one_class_spread_as_themselves_and_where_none_comes_rows_are_uniform():
    # A chain 0 - 1 - 2 - 3, and 4 - 5 by themselves.
    chain = Graph(torch.tensor([[1], [2], [3], [2], [5], [4]]), torch.full((6, 1), 0.5))
    labels = torch.tensor([1, -1, -1, -1, -1, -1])
    for iterations, reached in ((1, 2), (2, 3), (3, 4), (60, 4)):
        found = propagate_labels(chain, labels, classes=CLASSES, alpha=0.9, iterations=iterations)
        assert torch.equal(found[:reached], torch.tensor([[0.0, 1, 0]]).repeat(reached, 1))
        assert torch.equal(found[reached:], torch.full((6 - reached, CLASSES), 1 / CLASSES))


def test_labels_do_not_cross_what_is_not_similar():
    graph = random_graph(8, 2)
    against = graph._replace(similarity=-graph.similarity.abs())
    labels = some_labels(8)
    found = propagate_labels(against, labels, classes=CLASSES, alpha=0.9, iterations=5)
    assert torch.equal(found, propagate_labels(graph, labels, classes=CLASSES, alpha=0.0, iterations=5))
    assert torch.equal(smooth(against, torch.eye(8)), torch.eye(8))


def test_an_order_of_the_images_and_of_the_classes_carries_over():
    rows, labels = torch.randn(20, 5, generator=torch.Generator().manual_seed(0)), some_labels()
    order, classes = torch.randperm(20, generator=torch.Generator().manual_seed(1)), torch.tensor([2, 0, 1])
    options = {"classes": CLASSES, "alpha": 0.9, "iterations": 6}
    plain = propagate_labels(nearest_neighbours(rows, 3), labels, **options)
    moved = torch.where(labels >= 0, classes[labels.clamp(min=0)], -1)[order]
    mine = propagate_labels(nearest_neighbours(rows[order], 3), moved, **options)
    assert torch.allclose(mine[:, classes], plain[order], atol=1e-5)


@pytest.mark.parametrize("similarity", [0.0, 1e-12, 1e-30, 1.0])
@pytest.mark.parametrize("known", ["none", "all", "one class"])
def test_degenerate_graphs_and_labels_give_shares(similarity, known):
    graph = random_graph()._replace(similarity=torch.full((20, 3), similarity))
    labels = {"none": torch.full((20,), -1), "all": torch.arange(20) % CLASSES, "one class": torch.zeros(20).long()}
    classes = 1 if known == "one class" else CLASSES
    found = propagate_labels(graph, labels[known], classes=classes, alpha=0.99, iterations=30, gamma=3.0)
    assert torch.allclose(found.sum(dim=1), torch.ones(20))
    assert (found >= 0).all()
    if known != "all":
        assert torch.equal(found, torch.full_like(found, 1 / classes))


def test_what_came_a_long_way_is_tiny_and_still_shares():
    """Down to what float32 holds no more: there, rows are uniform like those that nothing reaches."""
    steps = torch.arange(1, 31).unsqueeze(1)
    chain = Graph(torch.cat([steps, torch.tensor([[29]])]), torch.cat([torch.full((30, 1), 1e-3), torch.ones(1, 1)]))
    labels = torch.full((31,), -1)
    labels[0] = 1
    found = propagate_labels(chain, labels, classes=2, alpha=0.05, iterations=30, gamma=1.0)
    assert torch.equal(found[:25], torch.tensor([[0.0, 1.0]]).repeat(25, 1))
    assert torch.allclose(found.sum(dim=1), torch.ones(31))
    assert found[30].tolist() == [0.5, 0.5]


def test_certainty_is_one_minus_the_share_of_the_entropy():
    shares = torch.tensor([[1.0, 0, 0, 0], [0.25] * 4, [0.5, 0.5, 0, 0], [0.7, 0.1, 0.1, 0.1]])
    slow = [1 + sum(p * np.log(p) for p in row if p > 0) / np.log(4) for row in shares.double().tolist()]
    assert certainty(shares).tolist() == pytest.approx(slow, abs=1e-6)
    assert slow[:3] == pytest.approx([1, 0, 0.5])
    assert certainty(torch.full((2, 7), 1 / 7)).min() >= 0
    assert certainty(torch.ones(2, 1)).tolist() == [1, 1]


def slow_smooth(graph: Graph, rows: np.ndarray) -> np.ndarray:
    smoothed = []
    for own, (ids, cosines) in enumerate(zip(graph.ids.tolist(), graph.similarity.tolist(), strict=True)):
        total, weight = rows[own].copy(), 1.0
        for other, cosine in zip(ids, cosines, strict=True):
            total += max(cosine, 0.0) * rows[other]
            weight += max(cosine, 0.0)
        smoothed.append(total / weight)
    return np.array(smoothed)


@pytest.mark.parametrize(("count", "neighbours", "width"), [(20, 3, 5), (7, 6, 1), (2, 1, 9)])
def test_smoothing_is_the_average_over_near_rows(count, neighbours, width):
    graph = random_graph(count, neighbours)
    rows = torch.randn(count, width, generator=torch.Generator().manual_seed(2))
    assert np.allclose(smooth(graph, rows).numpy(), slow_smooth(graph, rows.double().numpy()), atol=1e-6)


def test_smoothing_keeps_what_is_constant_and_lessens_what_is_not():
    graph, rows = random_graph(), torch.randn(20, 4, generator=torch.Generator().manual_seed(2))
    assert torch.allclose(smooth(graph, torch.full((20, 4), 3.0)), torch.full((20, 4), 3.0))
    assert smooth(graph, rows).var() < 0.8 * rows.var()
    assert torch.allclose(smooth(graph, 2 * rows + 1), 2 * smooth(graph, rows) + 1, atol=1e-6)
