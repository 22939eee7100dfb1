import copy
import math

import pytest
import torch

from sskt.optim import make_optimizer, rate_factor, restore
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


def descend(parts, weight: torch.nn.Parameter, *, steps: int) -> list[float]:
    """Steps on the square of the weight; the rate of each."""
    rates = []
    for _ in range(steps):
        rates.append(parts[0].param_groups[0]["lr"])
        parts[0].zero_grad()
        weight.square().sum().backward()
        parts[0].step()
        parts[1].step()
    return rates


def restored(settings: TrainingSettings, saved, *, at: torch.Tensor):
    """A fresh optimiser and schedule that go on from saved states, and their weight."""
    weight = torch.nn.Parameter(at.clone())
    parts = make_optimizer([weight], training=settings, steps_per_epoch=2)
    for part, state in zip(parts, saved, strict=True):
        restore(part, copy.deepcopy(state))
    return parts, weight


SCHEDULES = [{"schedule": "cosine"}, {"schedule": "steps", "milestones": (1, 3)}, {"schedule": "constant"}]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("before", [0, 1, 5])
def test_a_restored_optimizer_goes_on_with_momentum_and_step_but_its_own_hyperparameters(schedule, before):
    old = TrainingSettings(epochs=4, lr=0.1, momentum=0.9, weight_decay=1e-3, **schedule)
    new = TrainingSettings(epochs=4, lr=0.02, momentum=0.5, weight_decay=1e-2, nesterov=True, gamma=0.5, **schedule)
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    parts = make_optimizer([weight], training=old, steps_per_epoch=2)
    descend(parts, weight, steps=before)
    saved = [copy.deepcopy(part.state_dict()) for part in parts]
    (optimizer, moved), resumed = restored(new, saved, at=weight.detach())
    group = optimizer.param_groups[0]
    assert (group["momentum"], group["weight_decay"], group["nesterov"]) == (0.5, 1e-2, True)
    assert moved.last_epoch == before
    assert moved.get_last_lr() == [group["lr"]]
    if before:
        assert torch.equal(optimizer.state[resumed]["momentum_buffer"], parts[0].state[weight]["momentum_buffer"])
    expected = [0.02 * rate_factor(step, training=new, steps_per_epoch=2) for step in range(before, 8)]
    assert descend((optimizer, moved), resumed, steps=8 - before) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_restored_with_equal_settings_it_ends_as_if_it_had_not_stopped(schedule):
    settings = TrainingSettings(epochs=4, lr=0.1, nesterov=True, **schedule)
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    parts = make_optimizer([weight], training=settings, steps_per_epoch=2)
    descend(parts, weight, steps=3)
    again, resumed = restored(settings, [part.state_dict() for part in parts], at=weight.detach())
    assert descend(parts, weight, steps=5) == descend(again, resumed, steps=5)
    assert torch.equal(weight, resumed)
    assert parts[0].state_dict()["param_groups"] == again[0].state_dict()["param_groups"]
    assert {**parts[1].state_dict(), "lr_lambdas": 0} == {**again[1].state_dict(), "lr_lambdas": 0}


def test_a_state_of_other_parameters_is_not_taken():
    weights = [torch.nn.Parameter(torch.ones(1)) for _ in range(2)]
    settings = TrainingSettings(epochs=1)
    one, _ = make_optimizer(weights[:1], training=settings, steps_per_epoch=1)
    two, _ = make_optimizer(weights, training=settings, steps_per_epoch=1)
    with pytest.raises(ValueError, match="doesn't match the size"):
        restore(one, two.state_dict())
