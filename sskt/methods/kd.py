"""Knowledge distillation (Hinton 2015): the primary head learns the soft labels of a teacher with the same classes."""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from sskt.errors import InputError
from sskt.feeds import Batch
from sskt.losses import soft_kl
from sskt.methods.base import Facts, LearnFrom, Needs, SingleTarget, learns_from_all, require_sources


@dataclass(frozen=True, kw_only=True)
class KDOptions:
    """Defaults are those that comparisons on CIFAR-100 use."""

    weight: float = 0.9
    """Weight of the soft labels; the labels get 1 - weight."""
    temperature: float = 4.0
    """Hinton tried up to 20; the loss carries T^2, so its gradient keeps its scale."""
    learn_from: LearnFrom = "labelled"
    """`all` adds the unlabelled images of the pool to the soft part."""

    def __post_init__(self) -> None:
        if not 0 <= self.weight <= 1:
            raise InputError(f"weight is {self.weight}; it has to be between 0 and 1")
        if self.temperature <= 0:
            raise InputError(f"temperature is {self.temperature}; it has to be above 0")


class KD(SingleTarget):
    """The target's own head learns the soft labels of teachers that share its classes, in their order."""

    Options: ClassVar[type[Any]] = KDOptions
    options: KDOptions
    multi_label: ClassVar[bool] = False
    mixable: ClassVar[bool] = True

    @classmethod
    def needs(cls, options: KDOptions) -> Needs:
        """Logits; and the pool, where the soft loss has a weight and learns from all images."""
        pool = learns_from_all(options.learn_from, options.weight)
        return Needs(outputs=("logits",), pool=pool, tempered=options.temperature != 1)

    @classmethod
    def check(cls, options: KDOptions, facts: Facts) -> None:
        """Teachers with the target's number of classes."""
        require_sources(facts)
        for name, source in facts.sources.items():
            if source.classes != facts.classes:
                raise InputError(
                    f"source {name!r} has {source.classes} classes and the target {facts.classes}; "
                    "kd needs the same ones (sskt takes any)"
                )

    def losses(self, batch: Batch, logits: Tensor, heads: dict[str, Tensor]) -> dict[str, Tensor]:
        """(1 - w) CE + w T^2 KL; several teachers speak by their mean probability at T."""
        options = self.options
        softened = [F.softmax(output["logits"] / options.temperature, dim=1) for output in batch.outputs.values()]
        # Back to logits at T, so that one loss serves both one teacher and several.
        teacher = torch.stack(softened).mean(dim=0).clamp(min=1e-30).log() * options.temperature
        return {
            "primary": (1 - options.weight) * self.task.primary_loss(logits, batch.labels),
            "soft": options.weight * soft_kl(logits, teacher, temperature=options.temperature),
        }
