"""Losses between a network's logits and labels, hard or soft; in nats, and hard labels that are UNLABELLED left out."""

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from sskt.datasets import UNLABELLED


class PrimaryLoss(Protocol):
    """A loss of a target's own task."""

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """Compare logits [B, C] with labels, int64 [B] or int8 [B, C]."""


class SoftLoss(Protocol):
    """A loss against soft labels."""

    def __call__(self, logits: Tensor, source_logits: Tensor, *, temperature: float) -> Tensor:
        """Compare logits [B, C] with those of a source, [B, C]."""


def labelled_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy over the rows whose label is known. logits: [B, C]; labels: int64 [B]."""
    return F.cross_entropy(logits, labels, ignore_index=UNLABELLED)


def focal_cross_entropy(logits: Tensor, labels: Tensor, *, gamma: float = 2.0) -> Tensor:
    """Mean of -(1 - p_y)^gamma log p_y over the rows whose label is known, 0 where none is. labels: int64 [B]."""
    known = labels != UNLABELLED
    log_p = F.log_softmax(logits, dim=1).gather(1, labels.clamp(min=0).unsqueeze(1)).squeeze(1)
    # Kept off 0, where a power below 1 has no derivative; the loss itself does not notice.
    missing = (-torch.expm1(log_p)).clamp(min=torch.finfo(log_p.dtype).eps)
    return -(known * missing**gamma * log_p).sum() / known.sum().clamp(min=1)


def bernoulli_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over the known entries of -log p(label), a sigmoid a class; 0 where none is known. labels: int8 [B, C]."""
    known = labels != UNLABELLED
    targets = labels.clamp(min=0).to(logits.dtype)
    losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return (losses * known).sum() / known.sum().clamp(min=1)


PRIMARY_LOSSES: dict[str, PrimaryLoss] = {
    "ce": labelled_cross_entropy,
    "bce": bernoulli_cross_entropy,
    "focal": focal_cross_entropy,
}


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


def soft_bernoulli_kl(logits: Tensor, source_logits: Tensor, *, temperature: float) -> Tensor:
    """T^2 times the mean over the batch of the sum over classes of KL(sigmoid(source / T) || sigmoid(logits / T))."""
    ours, theirs = logits / temperature, source_logits / temperature
    holds = theirs.sigmoid() * (F.logsigmoid(theirs) - F.logsigmoid(ours))
    fails = (-theirs).sigmoid() * (F.logsigmoid(-theirs) - F.logsigmoid(-ours))
    return (holds + fails).sum(dim=1).mean() * temperature**2


SOFT_LOSSES = {"ce": soft_cross_entropy, "kl": soft_kl}


def objective(parts: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """The sum of the parts of a loss, to descend on, and what is told of it: detached, `loss` and its parts."""
    first, *others = parts.values()
    loss: Tensor = sum(others, start=first)
    return loss, {"loss": loss.detach()} | {name: part.detach() for name, part in parts.items()}
