"""What methods share in which several networks learn together, each by its own optimiser."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from sskt.feeds import Batch
from sskt.methods.base import Method, StudentWithHeads, Task
from sskt.networks import TappedNetwork, build_target
from sskt.optim import make_optimizer
from sskt.seeds import derive, seeded


class Peer:
    """A network with its own start, heads, optimiser and schedule."""

    def __init__(self, task: Task, *, seed: int, build_heads: Callable[[TappedNetwork], nn.ModuleDict]) -> None:
        with seeded(seed, "target"):
            self.target = build_target(task.target, classes=task.facts.classes, image=task.facts.image)
        with seeded(seed, "heads"):
            self.heads = build_heads(self.target)
        self.student = task.prepare(StudentWithHeads(self.target, self.heads))
        self.optimizer, self.schedule = make_optimizer(
            self.student.parameters(), training=task.training, steps_per_epoch=task.steps_per_epoch
        )

    def descend(self, loss: Tensor) -> None:
        """One step of gradient descent on the peer's own loss."""
        self.optimizer.zero_grad()
        torch.autograd.backward(loss)
        self.optimizer.step()
        self.schedule.step()


class PeerMethod(Method):
    """Networks of one architecture that learn together; peer 0 is the target, which predicts and is exported."""

    def __init__(self, task: Task, options: Any) -> None:
        self.task = task
        self.options = options
        self.peers = [Peer(task, seed=seed, build_heads=self.build_heads) for seed in self.seeds()]

    @abstractmethod
    def losses(self, batch: Batch) -> Iterable[dict[str, Tensor]]:
        """Give, peer by peer, the weighted parts that its loss is the sum of.

        In a list, all are there before anyone moves; in a generator, a peer's are made after the steps of those before.
        """

    def seeds(self) -> list[int]:
        """Where the peers start: peer 0 like the target of every other method, the others elsewhere."""
        return [self.task.seed, *(derive(self.task.seed, f"peer {number}") for number in range(1, self.options.peers))]

    def build_heads(self, target: TappedNetwork) -> nn.ModuleDict:
        """Build what hangs on a peer in training only."""
        return nn.ModuleDict()

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """Each peer takes a step on its own loss; `loss` is the sum over the peers."""
        named: dict[str, Tensor] = {}
        for number, (peer, parts) in enumerate(zip(self.peers, self.losses(batch), strict=True)):
            peer.descend(torch.stack(list(parts.values())).sum())
            named |= {f"peer{number}/{name}": part.detach() for name, part in parts.items()}
        return {"loss": torch.stack(list(named.values())).sum()} | named

    def predict(self, images: Tensor) -> Tensor:
        """Return the logits [B, C] of peer 0."""
        logits: Tensor = self.export()(images, with_taps=False).logits
        return logits

    def export(self) -> TappedNetwork:
        """Return peer 0."""
        return self.peers[0].target

    def modules(self) -> dict[str, nn.Module]:
        """The peers, and the heads of those that have some."""
        parts: dict[str, nn.Module] = {}
        for number, peer in enumerate(self.peers):
            parts |= {f"peer{number}": peer.target} | ({f"peer{number}/heads": peer.heads} if peer.heads else {})
        return parts

    def optimizers(self) -> dict[str, Optimizer | LambdaLR]:
        """An optimiser and a schedule per peer."""
        parts: dict[str, Optimizer | LambdaLR] = {}
        for number, peer in enumerate(self.peers):
            parts |= {f"peer{number}/optimizer": peer.optimizer, f"peer{number}/schedule": peer.schedule}
        return parts


def mutual_parts(
    spaces: Sequence[Tensor], divergence: Callable[[Tensor, Tensor], Tensor], *, weight: float
) -> list[dict[str, Tensor]]:
    """Weight times each peer's mean divergence(own, other) from the others, which it does not move; none if alone."""
    parts = []
    for number, own in enumerate(spaces):
        others = (*spaces[:number], *spaces[number + 1 :])
        divergences = [divergence(own, other.detach()) for other in others]
        parts.append({"mutual": weight * torch.stack(divergences).mean()} if others else {})
    return parts
