"""Losses between embeddings of the same images, row against row or as graphs of correlations.

All take float [B, D] of the target, already in the source's space, and of the source, and return a scalar; each names
its reduction.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from sskt.relations import Relation, frobenius, mean_square, unit_rows

EPSILON = 1e-6
"""Relative to a row's largest entry: a deviation from a mean that is no larger is rounding in float32, and none."""


def euclidean(target: Tensor, source: Tensor) -> Tensor:
    """Mean over the batch of ||source_i - target_i||, not squared. At a perfect match the gradient is 0."""
    distances: Tensor = torch.linalg.vector_norm(source - target, dim=1)
    return distances.mean()


def cosine(target: Tensor, source: Tensor) -> Tensor:
    """Mean over the batch of 1 - cos(source_i, target_i); a zero row has the cosine 0 with anything."""
    return (1 - (directions(source) * directions(target)).sum(dim=1)).mean()


def feature_mse(target: Tensor, source: Tensor) -> Tensor:
    """Mean over batch and dimensions of the squared difference."""
    return F.mse_loss(target, source)


DISTANCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"l2": euclidean, "cosine": cosine, "mse": feature_mse}


def score_kl(target: Tensor, source: Tensor, *, temperature: float) -> Tensor:
    """KL(source || target) of softmaxes, over the other rows j, of cos(x_i, x_j) / T; mean over the batch."""
    relation = Relation(
        kernel="cosine", pairs="others", temperature=temperature, normalise="row_softmax", divergence="kl"
    )
    return _scores(target, source, relation=relation)


def score_mse(target: Tensor, source: Tensor, *, temperature: float) -> Tensor:
    """Mean over the pairs of two rows of the squared difference of cos(x_i, x_j) / T."""
    relation = Relation(kernel="cosine", pairs="others", temperature=temperature, divergence="mean_square")
    return _scores(target, source, relation=relation)


SCORE_LOSSES = {"kl": score_kl, "mse": score_mse}


def node_matching(target: Tensor, source: Tensor, *, reduction: str) -> Tensor:
    """Compare r(source_i, target_j) with the identity: its Frobenius norm, or its mean square over B^2."""
    nodes = correlations(source, target)
    return REDUCTIONS[reduction](nodes, torch.eye(len(nodes), dtype=nodes.dtype, device=nodes.device))


def edge_matching(target: Tensor, source: Tensor, *, reduction: str) -> Tensor:
    """Compare r(target_i, target_j) with r(source_i, source_j): Frobenius norm, or mean square over B^2."""
    return REDUCTIONS[reduction](correlations(target, target), correlations(source, source))


REDUCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"frobenius": frobenius, "mean_square": mean_square}


def correlations(left: Tensor, right: Tensor) -> Tensor:
    """Pearson's r over the dimensions, of every row of one with every row of the other: [B, B].

    A row without variance (see EPSILON) correlates 0 with anything, itself too, and gets no gradient.
    """
    return _standardised(left) @ _standardised(right).T


def batch_centred(embedding: Tensor) -> Tensor:
    """Subtract the mean of the batch, and with it the direction all rows of an anisotropic space share."""
    return _deviation(embedding, embedding.mean(dim=0, keepdim=True))


def directions(embedding: Tensor) -> Tensor:
    """Rows of length 1. A zero row stays zero, without a gradient."""
    size = embedding.detach().abs().amax(dim=1, keepdim=True)
    # The length is lost anyway; without it the squares of huge or tiny numbers stay in range.
    return unit_rows(embedding / torch.where(size > 0, size, 1.0))


def _standardised(embedding: Tensor) -> Tensor:
    return directions(_deviation(embedding, embedding.mean(dim=1, keepdim=True)))


def _deviation(embedding: Tensor, mean: Tensor) -> Tensor:
    difference = embedding - mean
    # Rounding has a direction too: scaled to length 1 it would pass for a correlation, with a gradient of 1 / rounding.
    noise = EPSILON * embedding.abs().amax(dim=1, keepdim=True)
    return torch.where(difference.abs().amax(dim=1, keepdim=True) > noise, difference, 0.0)


def _scores(target: Tensor, source: Tensor, *, relation: Relation) -> Tensor:
    if len(target) < 2:  # one row has no others to be compared with
        return target.new_zeros(())
    return relation(directions(target), directions(source))
