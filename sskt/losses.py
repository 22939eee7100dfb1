"""Losses between a network's logits and soft labels; each is a mean over the batch, in nats."""

from torch import Tensor
from torch.nn import functional as F


def soft_cross_entropy(logits: Tensor, source_logits: Tensor, *, temperature: float) -> Tensor:
    """T^2 times the mean over the batch of the cross-entropy against softmax(source / T). Both: [B, C]."""
    targets = F.softmax(source_logits / temperature, dim=1)
    return -(targets * F.log_softmax(logits / temperature, dim=1)).sum(dim=1).mean() * temperature**2


def soft_kl(logits: Tensor, source_logits: Tensor, *, temperature: float) -> Tensor:
    """T^2 times the mean over the batch of KL(softmax(source / T) || softmax(logits / T)). Both: [B, C].

    It differs from the cross-entropy by the entropy of the source, so both have the same gradient. The reduction is
    `batchmean`: a mean over batch and classes would be C times weaker.
    """
    targets = F.log_softmax(source_logits / temperature, dim=1)
    divergence = F.kl_div(F.log_softmax(logits / temperature, dim=1), targets, reduction="batchmean", log_target=True)
    return divergence * temperature**2


SOFT_LOSSES = {"ce": soft_cross_entropy, "kl": soft_kl}
