import math

import pytest
import torch

from sskt.optim import make_optimizer, rate_factor
from sskt.settings import TrainingSettings


def test_cosine_goes_from_one_to_zero():
    training = TrainingSettings(epochs=10)
    assert rate_factor(0, training=training, steps_per_epoch=5) == 1
    assert rate_factor(25, training=training, steps_per_epoch=5) == pytest.approx(0.5)
    assert rate_factor(10, training=training, steps_per_epoch=5) == pytest.approx((1 + math.cos(math.pi / 5)) / 2)
    assert rate_factor(50, training=training, steps_per_epoch=5) == pytest.approx(0)


def test_steps_fall_at_their_milestones():
    training = TrainingSettings(epochs=10, schedule="steps", milestones=(2, 4), gamma=0.1)
    factors = [rate_factor(step, training=training, steps_per_epoch=3) for step in (5, 6, 11, 12, 29)]
    assert factors == pytest.approx([1, 0.1, 0.1, 0.01, 0.01])


def test_the_optimizer_has_the_settings_and_moves_by_the_schedule():
    training = TrainingSettings(epochs=2, lr=0.4, momentum=0.8, weight_decay=1e-3, nesterov=True)
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer, schedule = make_optimizer([weight], training=training, steps_per_epoch=1)
    group = optimizer.param_groups[0]
    assert (group["momentum"], group["weight_decay"], group["nesterov"]) == (0.8, 1e-3, True)
    optimizer.step()
    schedule.step()
    assert group["lr"] == pytest.approx(0.2)
