"""A bank: what the sources say of many images of the pool, kept to compare every batch with."""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from sskt.embedding_losses import directions
from sskt.feeds import Pool
from sskt.image_set import known
from sskt.seeds import derive
from sskt.views import bounded, hash_counters

CHUNK = 256
"""Images a source is asked about at a time."""


class Bank(NamedTuple):
    """ids: int64 [N], in order; rows: by source, unit rows of its embeddings of their first views, float32 [N, D]."""

    ids: Tensor
    rows: Mapping[str, Tensor]


def make_bank(pool: Pool, sources: Iterable[str], *, size: int, seed: int) -> Bank:
    """Ask the sources about a sample of the pool; about the whole pool where it holds no more than `size` images."""
    generator = torch.Generator().manual_seed(derive(seed, "bank"))
    sample = torch.randperm(len(pool.labels), generator=generator)[:size]
    ids = sample.sort().values.to(pool.labels.device)
    return Bank(ids, {name: _unit_embeddings(pool, name, ids) for name in sources})


def draw(count: int, *, among: int, step: int, device: torch.device) -> Tensor:
    """Row numbers below `among`, with repetition, int64 [count]: a function of the step alone, so nothing is saved.

    Every process and every seed draws the same ones; the batches they meet differ.
    """
    return bounded(hash_counters(derive(0, "negatives"), torch.arange(count, device=device), step), among)


def same_class(left: Tensor, right: Tensor) -> Tensor:
    """Which pairs are known to have a class in common: bool [A, B], for labels [A] and [B], or [., classes]."""
    if left.ndim == 2:
        return left.clamp(min=0).float() @ right.clamp(min=0).float().T > 0
    return (left.unsqueeze(1) == right) & known(left).unsqueeze(1)


def _unit_embeddings(pool: Pool, source: str, ids: Tensor) -> Tensor:
    return torch.cat([directions(pool.ask(source, some)["embedding"]) for some in torch.split(ids, CHUNK)])
