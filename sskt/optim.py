"""The optimiser every method shares, and how its learning rate moves."""

import math
from collections.abc import Iterable
from functools import partial
from typing import Any

from torch import nn
from torch.optim import SGD, Optimizer
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


def restore(part: Optimizer | LambdaLR, state: dict[str, Any]) -> None:
    """Bring back momentum, or the step, and no hyperparameter. A schedule comes after its optimiser."""
    if isinstance(part, Optimizer):
        own = part.state_dict()["param_groups"]
        groups = [mine | {"params": its["params"]} for mine, its in zip(own, state["param_groups"], strict=True)]
        part.load_state_dict(state | {"param_groups": groups})
        return
    factors = [factor(state["last_epoch"]) for factor in part.lr_lambdas]
    rates = [rate * factor for rate, factor in zip(part.base_lrs, factors, strict=True)]
    part.load_state_dict(state | {"base_lrs": part.base_lrs, "_last_lr": rates})
    for group, rate in zip(part.optimizer.param_groups, rates, strict=True):
        group["lr"] = rate
