"""Deep Mutual Learning (Zhang 2018): peers teach each other; L_k = CE_k + w * mean over l != k of KL(p_l || p_k)."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from sskt.errors import InputError
from sskt.feeds import Batch
from sskt.losses import soft_kl
from sskt.methods.base import LearnFrom, Method, Needs, Task, labelled_cross_entropy
from sskt.networks import TappedNetwork, build_target
from sskt.optim import make_optimizer
from sskt.seeds import derive, seeded


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


class Peer:
    """A network with its own start, optimiser and schedule."""

    def __init__(self, task: Task, *, seed: int) -> None:
        with seeded(seed, "target"):
            self.target = build_target(task.target, classes=task.facts.classes, image=task.facts.image)
        self.student = task.prepare(self.target)
        self.optimizer, self.schedule = make_optimizer(
            self.student.parameters(), training=task.training, steps_per_epoch=task.steps_per_epoch
        )

    def descend(self, loss: Tensor) -> None:
        """One step of gradient descent on the peer's own loss."""
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        self.optimizer.step()
        self.schedule.step()


class DML(Method):
    """Peers of one architecture and different starts learn the labels and each other's predictions; no sources.

    Of the two variants in use this is the simultaneous one, that of the paper's equation: all peers predict, then all
    step. In the other a peer sees predictions of peers that have already stepped on the batch.
    """

    Options: ClassVar[type[Any]] = DMLOptions

    @classmethod
    def needs(cls, options: DMLOptions) -> Needs:
        """No outputs; and the pool, where there is a weighted comparison and it learns from all images."""
        return Needs(pool=options.learn_from == "all" and options.peers > 1 and options.weight > 0)

    def __init__(self, task: Task, options: DMLOptions) -> None:
        self.options = options
        # Peer 0, which is the target that predicts and is exported, starts like that of every other method.
        seeds = [task.seed, *(derive(task.seed, f"peer {number}") for number in range(1, options.peers))]
        self.peers = [Peer(task, seed=seed) for seed in seeds]

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """All peers predict, then each takes a step on its own loss; `loss` is the sum over the peers."""
        logits = [peer.student(batch.images).logits for peer in self.peers]
        losses = mutual_losses(logits, batch.labels, weight=self.options.weight)
        for peer, parts in zip(self.peers, losses, strict=True):
            peer.descend(torch.stack(list(parts.values())).sum())
        named = {
            f"peer{number}/{name}": part.detach() for number, parts in enumerate(losses) for name, part in parts.items()
        }
        return {"loss": torch.stack(list(named.values())).sum()} | named

    def predict(self, images: Tensor) -> Tensor:
        """Return the logits [B, C] of peer 0."""
        logits: Tensor = self.export()(images).logits
        return logits

    def export(self) -> TappedNetwork:
        """Return peer 0."""
        return self.peers[0].target

    def modules(self) -> dict[str, nn.Module]:
        """The peers."""
        return {f"peer{number}": peer.target for number, peer in enumerate(self.peers)}

    def optimizers(self) -> dict[str, Optimizer | LRScheduler]:
        """An optimiser and a schedule per peer."""
        parts: dict[str, Optimizer | LRScheduler] = {}
        for number, peer in enumerate(self.peers):
            parts |= {f"peer{number}/optimizer": peer.optimizer, f"peer{number}/schedule": peer.schedule}
        return parts


def mutual_losses(logits: Sequence[Tensor], labels: Tensor, *, weight: float) -> list[dict[str, Tensor]]:
    """Cross-entropy of each peer, and weight times its mean divergence from the others, which it does not move.

    logits: [B, C] per peer; labels: int64 [B]. A peer without others has a cross-entropy only.
    """
    losses = []
    for number, own in enumerate(logits):
        parts = {"primary": labelled_cross_entropy(own, labels)}
        others = [other.detach() for other in (*logits[:number], *logits[number + 1 :])]
        if others:
            divergences = [soft_kl(own, other, temperature=1.0) for other in others]
            parts["mutual"] = weight * torch.stack(divergences).mean()
        losses.append(parts)
    return losses
