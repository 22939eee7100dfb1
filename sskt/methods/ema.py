"""Mean teacher (Tarvainen 2017, after IGSD's): L = CE + ramp(t) * weight * consistency(target, its own average)."""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from sskt.errors import InputError
from sskt.feeds import Batch
from sskt.losses import soft_kl
from sskt.methods.base import LearnFrom, Needs, SingleTarget, Task, learns_from_all
from sskt.networks import TappedNetwork


@dataclass(frozen=True, kw_only=True)
class EMAOptions:
    """Loss and decay are published ones; weight and ramp are ours and untuned."""

    weight: float = 1.0
    """After the ramp; ours, untuned. The mean teacher's CIFAR-10 run: 100 on a mean over 10 classes, so 10 here."""
    loss: Literal["kl", "mse"] = "mse"
    """On softmax outputs; `mse`, as in the mean teacher's own experiments, sums over the classes."""
    temperature: float = 1.0
    """Of `kl` only; 1 compares the predictions as they are."""
    decay: float = 0.99
    """What the average keeps of itself at a step; 0.99 is IGSD's (the mean teacher's CIFAR-10 run: 0.97)."""
    ramp: float = 0.2
    """Fraction of the training over which the weight grows linearly from 0.

    Our choice: that a ramp is needed is the mean teacher's practice, its length there was 5 of 180 epochs.
    """
    export: Literal["student", "teacher"] = "teacher"
    """Which network predicts and is exported; the mean teacher's practice is the average."""
    learn_from: LearnFrom = "all"
    """Consistency needs no labels; learning from unlabelled images is what it was published for."""

    def __post_init__(self) -> None:
        if self.weight < 0:
            raise InputError(f"weight is {self.weight}; it has to be at least 0")
        if self.temperature <= 0:
            raise InputError(f"temperature is {self.temperature}; it has to be above 0")
        if self.loss == "mse" and self.temperature != 1:
            raise InputError(f"temperature is {self.temperature} with loss 'mse'; it goes with loss 'kl' only")
        for name in ("decay", "ramp"):
            value = getattr(self, name)
            if not 0 <= value <= 1:
                raise InputError(f"{name} is {value}; it has to be between 0 and 1")


class EMA(SingleTarget):
    """The target learns to agree with an exponential moving average of itself; no sources.

    Both see the same view: they differ by the average, and by the teacher's batch normalisation being in evaluation
    mode. Published mean teachers draw a second, independent view, which a feed does not give.
    """

    Options: ClassVar[type[Any]] = EMAOptions
    options: EMAOptions
    multi_label: ClassVar[bool] = False
    mixable: ClassVar[bool] = True

    @classmethod
    def needs(cls, options: EMAOptions) -> Needs:
        """No outputs; and the pool, where the consistency has a weight and learns from all images."""
        return Needs(pool=learns_from_all(options.learn_from, options.weight))

    def __init__(self, task: Task, options: EMAOptions) -> None:
        super().__init__(task, options)
        # A copy on the target's device: its parameters are averaged, its buffers follow those of the target.
        average = get_ema_multi_avg_fn(options.decay)  # type: ignore[no-untyped-call]  # torch leaves it without types
        self.teacher = AveragedModel(self.target, multi_avg_fn=average)
        self.teacher.requires_grad_(requires_grad=False).eval()
        # The first update copies. Done here, so that the average begins with the start and not after a step.
        self.teacher.update_parameters(self.target)

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """One step of gradient descent, which the average then follows."""
        parts = super().step(batch)
        self.teacher.update_parameters(self.target)
        return parts

    def losses(self, batch: Batch, logits: Tensor, heads: dict[str, Tensor]) -> dict[str, Tensor]:
        """Cross-entropy on the labels, consistency on all images of the batch."""
        with torch.no_grad():
            wanted = self.teacher(batch.images).logits
        if self.options.loss == "kl":
            consistency = soft_kl(logits, wanted, temperature=self.options.temperature)
        else:
            consistency = squared_difference(logits, wanted)
        return {
            "primary": self.task.primary_loss(logits, batch.labels),
            "consistency": self.options.weight * self.ramp() * consistency,
        }

    def ramp(self) -> float:
        """Share of the weight that counts at this step."""
        length = self.options.ramp * self.task.training.epochs * self.task.steps_per_epoch
        # The schedule counts the steps, and is saved.
        return min(1.0, self.schedule.last_epoch / length) if length else 1.0

    def train(self, mode: bool) -> None:  # noqa: FBT001 (nn.Module's own signature)
        """Switch the target; the teacher speaks in evaluation mode, whatever the target does."""
        super().train(mode)
        self.teacher.eval()

    def predict(self, images: Tensor) -> Tensor:
        """Return the logits [B, C] of the network that is exported."""
        logits: Tensor = self.export()(images).logits
        return logits

    def export(self) -> TappedNetwork:
        """Return the average, or the target itself."""
        if self.options.export == "student":
            return self.target
        average = self.teacher.module
        assert isinstance(average, TappedNetwork)  # noqa: S101 (a copy of the target)
        return average

    def modules(self) -> dict[str, nn.Module]:
        """Target, heads and teacher."""
        return super().modules() | {"teacher": self.teacher}


def squared_difference(logits: Tensor, teacher_logits: Tensor) -> Tensor:
    """Mean over the batch of the squared distance of the probabilities, summed over the classes. Both: [B, C]."""
    difference = F.softmax(logits, dim=1) - F.softmax(teacher_logits, dim=1)
    return difference.square().sum(dim=1).mean()
