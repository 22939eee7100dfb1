"""Deep Mutual Learning (Zhang 2018): peers teach each other; L_k = CE_k + w * mean over l != k of KL(p_l || p_k)."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from torch import Tensor

from sskt.errors import InputError
from sskt.feeds import Batch
from sskt.losses import PrimaryLoss, SoftLoss, soft_bernoulli_kl, soft_kl
from sskt.methods.base import LearnFrom, Needs, learns_from_all
from sskt.methods.peers import PeerMethod, mutual_parts


@dataclass(frozen=True, kw_only=True)
class DMLOptions:
    """Defaults are the paper's: two peers, unit weight; T is 1."""

    peers: int = 2
    """Networks that learn together, the target among them; 2 is the paper's main setting, 1 is scratch."""
    weight: float = 1.0
    """Weight of the mean divergence from the other peers; the paper's equation has none, which is 1."""
    learn_from: LearnFrom = "labelled"
    """Images the peers are compared on; the paper has labels for all of its images."""

    def __post_init__(self) -> None:
        if self.peers < 1:
            raise InputError(f"peers is {self.peers}; it has to be at least 1")
        if self.weight < 0:
            raise InputError(f"weight is {self.weight}; it has to be at least 0")


class DML(PeerMethod):
    """Peers of one architecture and different starts learn the labels and each other's predictions; no sources.

    Of the two variants in use this is the simultaneous one, that of the paper's equation: all peers predict, then all
    step. In the other a peer sees predictions of peers that have already stepped on the batch.
    """

    Options: ClassVar[type[Any]] = DMLOptions
    options: DMLOptions
    mixable: ClassVar[bool] = True

    @classmethod
    def needs(cls, options: DMLOptions) -> Needs:
        """No outputs; and the pool, where there is a weighted comparison and it learns from all images."""
        return Needs(pool=options.peers > 1 and learns_from_all(options.learn_from, options.weight))

    def losses(self, batch: Batch) -> list[dict[str, Tensor]]:
        """All peers predict on all images; the primary losses are those of the labelled ones."""
        return mutual_losses(
            [peer.student(batch.images)[0] for peer in self.peers],
            batch.labels,
            weight=self.options.weight,
            primary=self.task.primary_loss,
            divergence=soft_bernoulli_kl if self.task.facts.multi_label else soft_kl,
        )


def mutual_losses(
    logits: Sequence[Tensor], labels: Tensor, *, weight: float, primary: PrimaryLoss, divergence: SoftLoss
) -> list[dict[str, Tensor]]:
    """Primary loss of each peer, and weight times its mean divergence from the others, which it does not move.

    logits: [B, C] per peer; labels: as `primary` wants them. A peer without others has a primary loss only.
    """
    mutual = mutual_parts(logits, partial(divergence, temperature=1.0), weight=weight)
    return [{"primary": primary(own, labels)} | parts for own, parts in zip(logits, mutual, strict=True)]
