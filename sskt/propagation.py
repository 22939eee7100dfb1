"""Signals over a graph of nearest neighbours: labels that spread along it, rows smoothed by it. Never [P, P]."""

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from sskt.datasets import UNLABELLED
from sskt.graphs import Graph


class _Edges(NamedTuple):
    """A sparse [P, P] matrix. columns: int64 [E], weights: float32 [E], row by row; starts: int64 [P], of each row."""

    columns: Tensor
    weights: Tensor
    starts: Tensor

    def __matmul__(self, rows: Tensor) -> Tensor:
        """Multiply with [P, C]. A bag is summed in one go: no [E, C] in between, and the same bits on every run."""
        summed: Tensor = F.embedding_bag(self.columns, rows, self.starts, mode="sum", per_sample_weights=self.weights)
        return summed


def propagate_labels(
    graph: Graph, labels: Tensor, *, classes: int, alpha: float, iterations: int, gamma: float = 1.0
) -> Tensor:
    """Spread labels (int64 [P], or UNLABELLED) over the graph; return each row's share of each class, float32 [P, C].

    F <- alpha S F + (1 - alpha) Y from F = Y (Zhou 2004), with Y the labels as one-hot rows, zero where unknown,
    S = D^-1/2 W D^-1/2, W = A + A^T and A[i, j] = max(cos, 0)^gamma for the neighbours j of i (Iscen 2019).
    A row that no label reaches within the iterations is uniform.
    """
    spread = _normalised(graph, gamma=gamma)
    known = (labels != UNLABELLED).unsqueeze(1)
    start = (F.one_hot(labels.clamp(min=0), classes) * known).to(torch.float32)
    share = start
    for _ in range(iterations):
        share = alpha * (spread @ share) + (1 - alpha) * start
    total = share.sum(dim=1, keepdim=True)
    return torch.where(total > 0, share / total, 1 / classes)


def certainty(shares: Tensor) -> Tensor:
    """1 - entropy / log C of each row of [P, C]: 1 for one class alone, 0 for all alike (Iscen 2019)."""
    entropy: Tensor = torch.special.entr(shares).sum(dim=1)
    return (1 - entropy / math.log(max(shares.shape[1], 2))).clamp(min=0)


def smooth(graph: Graph, rows: Tensor) -> Tensor:
    """Average each row of [P, D] with its neighbours', weighted by max(cos, 0), itself included with the weight 1.

    This is A_hat @ rows with the row-normalised graph with self loops; a row without a similar one stays as it is.
    """
    weights = graph.similarity.clamp(min=0)
    near: Tensor = F.embedding_bag(graph.ids, rows, mode="sum", per_sample_weights=weights)
    return (rows + near) / (1 + weights.sum(dim=1, keepdim=True))


def _normalised(graph: Graph, *, gamma: float) -> _Edges:
    """The graph with every edge in both directions, each divided by the root of the degrees of its two ends."""
    count, neighbours = graph.ids.shape
    everything = torch.arange(count, device=graph.ids.device)
    own, near = everything.repeat_interleave(neighbours), graph.ids.flatten()
    weights = (graph.similarity.clamp(min=0) ** gamma).flatten()
    rows, order = torch.cat([own, near]).sort(stable=True)
    # An edge that is there twice, of neighbours by turns, counts twice: that is A + A^T.
    columns, weights = torch.cat([near, own])[order], torch.cat([weights, weights])[order]
    both = _Edges(columns, weights, torch.searchsorted(rows, everything))
    degree = (both @ torch.ones(count, 1, device=weights.device)).squeeze(1)
    root = torch.where(degree > 0, degree, 1.0).rsqrt()
    return both._replace(weights=weights * root[rows] * root[columns])
