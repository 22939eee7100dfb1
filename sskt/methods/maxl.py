"""MAXL: a label network invents the auxiliary task that helps the target most (Liu 2019, arXiv 1901.08933).

The target theta has a primary head over C classes and an auxiliary one over C * psi subclasses. The label network phi
says which of its class's psi subclasses an image belongs to: q = softmax of its logits within the block of the true
class, 0 outside. With the focal loss F(p, q) = -sum_k q_k (1 - p_k)^gamma log p_k, a step on a batch is

    1.  theta <- optimiser(grad of L_pri + L_aux),  L_pri = F(p_pri, y),  L_aux = F(p_aux, q), q constant
    2.  theta+ = theta - lr * grad(L_pri + L_aux);  phi <- SGD(grad over phi of L_pri(theta+) + w * sum_k m_k log m_k)

where lr is the rate of step 1 and m the batch mean of q; its entropy keeps subclasses from falling empty. The lookahead
is plain gradient descent, whatever momentum and weight decay the target's optimiser has.

The published code runs an epoch of step 1 and then an epoch of step 2 over the same images; here step 2 follows step 1
on each batch. Either way each network takes one step per batch, both losses of step 2 are taken on one batch, and the
rate is the same. What differs is only how far the target has come when the label network looks ahead from it.

One process only: gradients are synchronised by hooks on the module that was prepared, which calls with other parameters
than its own do not pass through, and the mean over processes would have to be taken inside the lookahead.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from sskt.errors import InputError
from sskt.feeds import Batch
from sskt.heads import LinearHead
from sskt.maxl_losses import (
    exact_lookahead,
    first_order_lookahead,
    focal_loss,
    masked_softmax,
    negative_entropy,
)
from sskt.methods.base import Facts, SingleTarget, Task
from sskt.networks import TappedNetwork, build_target
from sskt.optim import make_optimizer
from sskt.seeds import seeded

LABELS = "label network"
"""Where its soft labels stand among a batch's outputs."""


@dataclass(frozen=True, kw_only=True)
class MAXLOptions:
    """Defaults are those of the published code."""

    subclasses: int = 5
    """psi, the subclasses of every class; 5 as published, and as in the follow-up for CIFAR-10."""
    focal: float = 2.0
    """gamma of both focal losses, as published; 0 is cross-entropy."""
    entropy_weight: float = 0.2
    """Weight of the negative entropy in the label network's loss, as published."""
    label_lr: float = 1e-3
    """Learning rate of the label network, as published; it follows the schedule of the training."""
    label_weight_decay: float = 5e-4
    """Weight decay of the label network, as published; its SGD has no momentum."""
    second_order: bool = True
    """The exact gradient, as in the paper; false takes a finite difference, quicker and in less memory."""

    def __post_init__(self) -> None:
        if self.subclasses < 1:
            raise InputError(f"subclasses is {self.subclasses}; it has to be at least 1")
        if self.label_lr <= 0:
            raise InputError(f"label_lr is {self.label_lr}; it has to be above 0")
        for name in ("focal", "entropy_weight", "label_weight_decay"):
            value = getattr(self, name)
            if value < 0:
                raise InputError(f"{name} is {value}; it has to be at least 0")


class MAXL(SingleTarget):
    """An auxiliary head learns subclasses that a second network invents for what they do to the target's own loss."""

    Options: ClassVar[type[Any]] = MAXLOptions
    options: MAXLOptions
    multi_label: ClassVar[bool] = False

    @classmethod
    def check(cls, options: MAXLOptions, facts: Facts) -> None:
        """No sources, and one process."""
        super().check(options, facts)
        if facts.workers > 1:
            raise InputError(f"resources.workers is {facts.workers}; maxl trains in one process, so it has to be 1")

    def __init__(self, task: Task, options: MAXLOptions) -> None:
        super().__init__(task, options)
        with seeded(task.seed, LABELS):
            network = build_target(task.target, classes=self.subclasses, image=task.facts.image)
        label_network = task.prepare(network)
        assert isinstance(label_network, TappedNetwork)  # noqa: S101 (in one process nothing is wrapped)
        self.label_network = label_network
        training = replace(
            task.training,
            lr=options.label_lr,
            weight_decay=options.label_weight_decay,
            momentum=0.0,
            nesterov=False,
        )
        self.label_optimizer, self.label_schedule = make_optimizer(
            label_network.parameters(), training=training, steps_per_epoch=task.steps_per_epoch
        )

    @property
    def subclasses(self) -> int:
        """Subclasses of all classes together."""
        return self.task.facts.classes * self.options.subclasses

    def build_heads(self) -> nn.ModuleDict:
        """One head over all subclasses."""
        return nn.ModuleDict({"auxiliary": LinearHead(self.target.embedding_dim, self.subclasses)})

    def losses(self, batch: Batch, logits: Tensor, heads: dict[str, Tensor]) -> dict[str, Tensor]:
        """Both tasks weigh the same."""
        gamma = self.options.focal
        classes = F.one_hot(batch.labels, self.task.facts.classes).to(logits.dtype)
        return {
            "primary": focal_loss(logits, classes, gamma=gamma),
            "auxiliary": focal_loss(heads["auxiliary"], batch.outputs[LABELS]["soft"], gamma=gamma),
        }

    def soft_labels(self, batch: Batch) -> Tensor:
        """Return the auxiliary labels [B, C * psi], with the graph to the label network."""
        logits = self.label_network(batch.images).logits
        return masked_softmax(logits, batch.labels, subclasses=self.options.subclasses)

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """The target learns from the soft labels, then the label network from what they would do to it next."""
        soft = self.soft_labels(batch)  # for both steps: the first one changes nothing they depend on
        rate: float = self.optimizer.param_groups[0]["lr"]
        parts = super().step(_labelled(batch, soft.detach()))
        return parts | self._teach(_labelled(batch, soft), soft, rate=rate)

    def label_loss(self, batch: Batch, soft: Tensor, *, rate: float) -> tuple[Tensor, Tensor]:
        """L_pri(theta+), and the negative entropy of the soft labels: what the label network learns from."""
        lookahead = exact_lookahead if self.options.second_order else first_order_lookahead
        parameters = {name: value for name, value in self.student.named_parameters() if value.requires_grad}
        return lookahead(partial(self._losses_at, batch), parameters, rate=rate), negative_entropy(soft)

    def _teach(self, batch: Batch, soft: Tensor, *, rate: float) -> dict[str, Tensor]:
        primary, negentropy = self.label_loss(batch, soft, rate=rate)
        weights = [weight for weight in self.label_network.parameters() if weight.requires_grad]
        loss = primary + self.options.entropy_weight * negentropy
        # Not backward(): the target's own gradients are none of the label network's business.
        gradients = torch.autograd.grad(loss, weights, materialize_grads=True)
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient
        self.label_optimizer.step()
        self.label_schedule.step()
        return {"watch/lookahead": primary.detach(), "watch/label_entropy": -negentropy.detach()}

    def _losses_at(self, batch: Batch, parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The target's losses at other parameters than its own."""
        # BatchNorm uses the batch's statistics, and writes its running ones into copies: a step counts once.
        buffers = {name: buffer.clone() for name, buffer in self.student.named_buffers()}
        logits, heads = functional_call(self.student, {**parameters, **buffers}, (batch.images,))
        return self.losses(batch, logits, heads)

    def modules(self) -> dict[str, nn.Module]:
        """Target, heads and the label network."""
        return super().modules() | {"label_network": self.label_network}

    def optimizers(self) -> dict[str, Optimizer | LambdaLR]:
        """An optimiser and a schedule for the target, and for the label network."""
        return super().optimizers() | {"label_optimizer": self.label_optimizer, "label_schedule": self.label_schedule}


def _labelled(batch: Batch, soft: Tensor) -> Batch:
    """Put soft labels where those of sources stand."""
    return replace(batch, outputs={LABELS: {"soft": soft}})
