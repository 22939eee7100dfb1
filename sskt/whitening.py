"""A source's embedding over the whole pool: its mean, scale and correlations, and rows freed of them."""

from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from sskt.feeds import Pool

CHUNK = 1024
"""Images asked about at a time."""
THRESHOLD = 1e-6
"""Share of the largest variance below which an axis is dropped: a cache in float16 is rounded by about that."""
RIDGE = 1e-5
"""Added to every variance, as a share of the largest; our choice, it keeps the weakest axes from being mostly noise."""

RowMap = Callable[[Tensor], Tensor]
"""[B, D] -> [B, D], each row by itself."""


class Moments(NamedTuple):
    """mean: float64 [D]; covariance: float64 [D, D], over P and not P - 1."""

    mean: Tensor
    covariance: Tensor


def pool_embeddings(pool: Pool, source: str) -> Iterator[Tensor]:
    """Ask for the embedding of the first view of every image: float32 [CHUNK, D] and a rest."""
    for ids in torch.split(torch.arange(len(pool.labels), device=pool.labels.device), CHUNK):
        yield pool.ask(source, ids)["embedding"]


def moments(chunks: Iterable[Tensor]) -> Moments:
    """Mean and covariance of all rows, in one pass over chunks [n, D]."""
    count, origin, total, products = 0, None, torch.zeros(()), torch.zeros(())
    for chunk in chunks:
        # From the first row, so that a direction all rows share costs no digits and equal rows have no variance.
        origin = chunk[0].double() if origin is None else origin
        rows = chunk.double() - origin
        count, total, products = count + len(rows), total + rows.sum(dim=0), products + rows.T @ rows
    assert origin is not None  # noqa: S101 (a pool has images)
    mean = total / count
    return Moments(origin + mean, products / count - torch.outer(mean, mean))


def centring(known: Moments) -> RowMap:
    """Subtract the mean."""
    mean = known.mean.float()
    return lambda rows: rows - mean


def whitening(known: Moments) -> RowMap:
    """Subtract the mean and give every principal axis v the variance l / (l + ridge), l its own: about 1.

    rows -> (rows - mean) @ sum over axes of v v^T / sqrt(l + ridge). Axes below THRESHOLD are dropped, so at most
    min(D, P - 1) remain. Turned back to the old coordinates, the map does not depend on the signs and the order in
    which a machine finds the axes, and a training may go on elsewhere.
    """
    variances, axes = torch.linalg.eigh(known.covariance)
    largest = variances[-1]
    kept = variances > THRESHOLD * largest
    scales = torch.where(kept, variances + RIDGE * largest, 1.0).rsqrt() * kept
    centred, matrix = centring(known), ((axes * scales) @ axes.T).float()
    return lambda rows: centred(rows) @ matrix


def unit_variance(all_rows: Tensor, *, noise: Tensor) -> RowMap:
    """Subtract the mean of [P, D] and divide by one number, so that the variances have the mean 1 over the dimensions.

    noise: a scalar; rows that deviate by no more are taken not to vary, and become 0.
    """
    mean = all_rows.mean(dim=0)
    size = (all_rows - mean).square().mean().sqrt()
    size = torch.where(size > noise, size, torch.inf)
    return lambda rows: (rows - mean) / size
