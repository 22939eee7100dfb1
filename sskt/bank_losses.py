"""Losses that compare each image of a batch with a bank of source embeddings, far more of them than a batch holds.

Embeddings are compared by the cosine; each loss names its reduction.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from sskt.embedding_losses import directions
from sskt.relations import kl, row_softmax


def bank_kl(target: Tensor, source: Tensor, bank: Tensor, *, temperature: float, source_temperature: float) -> Tensor:
    """KL(source || target) of softmaxes of cosines to the source's own row and to the bank; mean over the batch.

    target, source: [B, D], of the same images in the source's space; bank: [N, D], unit rows.
    """
    target, source = directions(target), directions(source)
    mine = _with_own(target, source, bank) / temperature
    its = _with_own(source, source, bank) / source_temperature
    return kl(row_softmax(mine), row_softmax(its))


def contrast_scores(target: Tensor, source: Tensor, negatives: Tensor, *, usable: Tensor) -> Tensor:
    """Cosines of each target row with its own source row, first, and with negatives: [B, 1 + K].

    target, source: [B, D]; negatives: [K, D]; usable: bool [B, K], -inf stands where it is false.
    """
    scores = _with_own(directions(target), directions(source), directions(negatives))
    return scores.masked_fill(~F.pad(usable, (1, 0), value=True), -torch.inf)


def infonce(scores: Tensor) -> Tensor:
    """Cross-entropy of the first column, the positive: mean over the batch of -log softmax(scores)_0."""
    return F.cross_entropy(scores, torch.zeros(len(scores), dtype=torch.int64, device=scores.device))


def nce(scores: Tensor) -> Tensor:
    """Mean over the batch of -log h(s_0) - sum over its N usable negatives of log(1 - h(s_k)), h(s) = e^s / (e^s + N).

    The sum over the negatives is no mean: at orthogonal rows it is about 1 whatever N.
    """
    count = scores[:, 1:].isfinite().sum(dim=1, keepdim=True).clamp(min=1).to(scores.dtype)
    odds = scores - count.log()
    return -(F.logsigmoid(odds[:, 0]) + F.logsigmoid(-odds[:, 1:]).sum(dim=1)).mean()


CONTRASTS = {"infonce": infonce, "nce": nce}


def _with_own(rows: Tensor, own: Tensor, others: Tensor) -> Tensor:
    """<rows_i, own_i> first, then <rows_i, others_k>: [B, 1 + N]."""
    return torch.cat([(rows * own).sum(dim=1, keepdim=True), rows @ others.T], dim=1)
