"""What SSKD compares: which upright image of a batch each turned one came from, and a source's answers as it is right.

Rows are those of `Batch.turned`: all N images turned by one quarter, then by two, then by three.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from sskt.datasets import UNLABELLED
from sskt.embedding_losses import directions


def similarities(turned: Tensor, upright: Tensor) -> Tensor:
    """Return cos(turned_i, upright_j) as [3N, N], for embeddings [3N, D] and [N, D]; a zero row has the cosine 0."""
    return directions(turned) @ directions(upright).T


def parents(similarity: Tensor) -> Tensor:
    """The upright image each turned one shows: int64 [3N], for similarities [3N, N]."""
    turned, upright = similarity.shape
    return torch.arange(upright, device=similarity.device).repeat(turned // upright)


def parent_cross_entropy(similarity: Tensor) -> Tensor:
    """Mean over the turned images of -log softmax(similarity)[parent], without a temperature. similarity: [3N, N]."""
    return F.cross_entropy(similarity, parents(similarity))


def error_levels(scores: Tensor, truth: Tensor) -> Tensor:
    """How many answers score above the true one: int64 [R], 0 where it is the best or UNLABELLED. scores: [R, C]."""
    true = scores.gather(1, truth.clamp(min=0).unsqueeze(1))
    return (scores > true).sum(dim=1) * (truth != UNLABELLED)


def least_wrong(levels: Tensor, *, keep: float) -> Tensor:
    """All rows at level 0 and, of the others, the fraction `keep`, rounded down, with the lowest levels: bool [R].

    Equally wrong rows come in their order.
    """
    wrong = (levels > 0).sum()
    count = len(levels) - wrong + (keep * wrong).long()
    # A place per row and no list of rows: a device need not tell the host how many are kept.
    return levels.argsort(stable=True).argsort() < count


def kept_kl(logits: Tensor, wanted: Tensor, kept: Tensor, *, temperature: float) -> Tensor:
    """T^2 times the mean over the kept rows of KL(softmax(wanted / T) || softmax(logits / T)), 0 where none is kept.

    logits, wanted: [R, C]; kept: bool [R].
    """
    ours, theirs = (F.log_softmax(scores / temperature, dim=1) for scores in (logits, wanted))
    rows = F.kl_div(ours, theirs, reduction="none", log_target=True).sum(dim=1)
    return (rows * kept).sum() / kept.sum().clamp(min=1) * temperature**2
