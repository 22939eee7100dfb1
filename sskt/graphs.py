"""The graph of nearest neighbours among a source's embeddings of the whole pool."""

from typing import NamedTuple

import torch
from torch import Tensor

from sskt.embedding_losses import directions

CHUNK = 1024
"""Rows compared with all others at a time: memory stays at CHUNK * P similarities."""


class Graph(NamedTuple):
    """ids: int64 [P, k], nearest first, never the image itself; similarity: float32 [P, k], their cosines."""

    ids: Tensor
    similarity: Tensor


def nearest_neighbours(embeddings: Tensor, count: int) -> Graph:
    """Find each row's nearest rows by cosine, exactly. embeddings: float32 [P, D], P above `count`.

    A zero row has the cosine 0 with all others. Which of equally near rows come first, or at all, is left open.
    """
    rows = directions(embeddings)
    found = [_nearest(rows, start=start, count=count) for start in range(0, len(rows), CHUNK)]
    return Graph(torch.cat([ids for ids, _ in found]), torch.cat([similarity for _, similarity in found]))


def _nearest(rows: Tensor, *, start: int, count: int) -> tuple[Tensor, Tensor]:
    some = rows[start : start + CHUNK]
    similarity = some @ rows.T
    own = torch.arange(start, start + len(some), device=rows.device)
    similarity[torch.arange(len(some), device=rows.device), own] = -torch.inf
    best = similarity.topk(count, dim=1)
    return best.indices, best.values
