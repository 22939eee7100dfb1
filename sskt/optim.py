"""The optimiser every method shares, and how its learning rate moves."""

import math
from collections.abc import Iterable
from functools import partial

from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR

from sskt.settings import TrainingSettings


def make_optimizer(
    parameters: Iterable[nn.Parameter], *, training: TrainingSettings, steps_per_epoch: int
) -> tuple[SGD, LambdaLR]:
    """SGD and a schedule that is stepped once per training step."""
    optimizer = SGD(
        [parameter for parameter in parameters if parameter.requires_grad],
        lr=training.lr,
        momentum=training.momentum,
        nesterov=training.nesterov,
        weight_decay=training.weight_decay,
    )
    return optimizer, LambdaLR(optimizer, partial(rate_factor, training=training, steps_per_epoch=steps_per_epoch))


def rate_factor(step: int, *, training: TrainingSettings, steps_per_epoch: int) -> float:
    """What the learning rate is multiplied by at a step."""
    if training.schedule == "cosine":
        return 0.5 * (1 + math.cos(math.pi * min(1.0, step / (training.epochs * steps_per_epoch))))
    if training.schedule == "steps":
        return training.gamma ** sum(step >= epoch * steps_per_epoch for epoch in training.milestones)
    return 1.0
