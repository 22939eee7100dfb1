"""Stacked targets: what they give, how they descend, and that nothing passes from one to another."""

import pytest
import torch

from sskt.networks import build_target
from sskt.settings import TargetSettings
from sskt.stacks import Stack, apart, forward
from tests.sskt.learning import CLASSES, IMAGE, SIZE, TARGET, feed, method, training
from tests.sskt.test_fused import nearly

SETTINGS = (
    training(lr=0.1),
    training(lr=0.02, momentum=0.0, weight_decay=0.0),
    training(lr=0.5, momentum=0.5, nesterov=True, weight_decay=0.1, schedule="constant"),
)


def methods(target=TARGET, *, settings=SETTINGS):
    return [method("scratch", settings=one, target=target, seed=seed) for seed, one in enumerate(settings)]


def batches(step=0, *, settings=SETTINGS):
    return [feed(one, seed=seed).batch(step) for seed, one in enumerate(settings)]


def weights(one):
    return {name: value.clone() for name, value in one.target.state_dict().items()}


@pytest.mark.parametrize("target", [TARGET, TargetSettings(architecture="resnet20")])
@pytest.mark.parametrize("mode", [True, False])
def test_a_stack_gives_what_each_gives(target, mode):
    networks = [build_target(target, classes=CLASSES, image=IMAGE).train(mode) for _ in range(3)]
    images = torch.randint(0, 256, (3, 4, 1, SIZE, SIZE), dtype=torch.uint8)
    parameters = [dict(network.named_parameters()) for network in networks]
    buffers = [{name: buffer.clone() for name, buffer in network.named_buffers()} for network in networks]
    joined = ({name: torch.stack([one[name] for one in lanes]) for name in lanes[0]} for lanes in (parameters, buffers))
    for network, own, given in zip(networks, images, apart(forward(networks[0], *joined, images)), strict=True):
        expected = network(own)
        for one, other in zip((*given.taps, *given[1:]), (*expected.taps, *expected[1:]), strict=True):
            torch.testing.assert_close(one, other)


def test_steps_of_all_settings_are_those_alone():
    ours, theirs = methods(), methods()
    stack = Stack(ours)
    for step in range(6):
        told = stack.step(batches(step))
        for said, one, batch in zip(told, theirs, batches(step), strict=True):
            torch.testing.assert_close(said, one.step(batch))
    for one, other in zip(ours, theirs, strict=True):
        nearly(one.state_dict(), other.state_dict(), relative=1e-4)
        assert one.schedule.last_epoch == 6


def test_methods_see_their_own_part_at_any_time():
    ours = methods()
    before = [weights(one) for one in ours]
    stack = Stack(ours)
    for one, was in zip(ours, before, strict=True):
        torch.testing.assert_close(weights(one), was, rtol=0, atol=0)
    stack.step(batches())
    for one, was in zip(ours, before, strict=True):
        assert not torch.equal(weights(one)["network.fc.weight"], was["network.fc.weight"])
    # One that goes on alone, in a stack of its own, moves nobody else.
    still = weights(ours[1])
    ours[0].step(batches()[0])
    Stack(ours[1:])
    torch.testing.assert_close(weights(ours[1]), still, rtol=0, atol=0)


@pytest.mark.parametrize("target", [TARGET, TargetSettings(architecture="resnet20")])
@pytest.mark.parametrize("bad", range(3))
def test_no_number_of_one_is_a_matter_of_the_others(target, bad):
    """To the bit, for stacks of one size: what is beside them has no part in any of their sums."""
    runs = []
    for spoil in (False, True):
        ours = methods(target)
        stack = Stack(ours)
        if spoil:
            with torch.no_grad():
                first = next(ours[bad].target.parameters())
                first.view(-1)[0], first.view(-1)[-1] = torch.nan, torch.inf
        for step in range(3):
            told = stack.step(batches(step))
        runs.append(([weights(one) for one in ours], told))
    (calm, calm_told), (spoiled, spoiled_told) = runs
    for number in range(3):
        if number == bad:
            assert spoiled_told[number]["loss"].isnan()
            continue
        torch.testing.assert_close(spoiled[number], calm[number], rtol=0, atol=0)
        assert spoiled_told[number] == calm_told[number]
