"""Several trainings in one process, whose targets are stacked and step as one network.

Each training stays what it is alone: its method, feed, losses, heads, schedule, epochs and saved states are its own.
What ends, well or not, leaves the stack, and the others go on in a smaller one; the last takes its steps by itself.
"""

from collections.abc import Iterator, Sequence
from typing import Generic

import torch
from torch import Tensor

from sskt.loop import Parts, Step, Steps, T, random_state, set_random_state
from sskt.methods import Method
from sskt.methods.base import SingleTarget
from sskt.networks import TappedNetwork
from sskt.stacks import Stack, forward

Answer = Parts | RuntimeError | MemoryError | None
"""To a training that asked for a step: what it returned, or how it failed; None leaves the step to the training."""


def why_not(method: type[Method]) -> str | None:
    """Why trainings by a method cannot be stacked, in one line; None where they can."""
    if not issubclass(method, SingleTarget):
        return "it trains several networks"
    if method.step is not SingleTarget.step:
        return "it takes its steps in its own way"
    return None if method.builds_target else "it trains a source's own network"


def why_not_network(target: TappedNetwork, images: Tensor) -> str | None:
    """Why networks like one cannot be stacked, found by trying it on images uint8 [B, c, S, S]; None where they can."""
    weights = {name: torch.stack([weight.detach()] * 2) for name, weight in target.named_parameters()}
    buffers = {name: torch.stack([buffer] * 2) for name, buffer in target.named_buffers()}
    leaves = [weights[name].requires_grad_() for name, weight in target.named_parameters() if weight.requires_grad]
    try:
        features = forward(target.train(), weights, buffers, torch.stack([images] * 2))
        gradients = torch.autograd.grad(features.logits.sum(), leaves, allow_unused=True)
    except (RuntimeError, ValueError) as error:  # what torch says to chance, and to what depends on single numbers
        return str(error).strip().partition("\n")[0].partition(". ")[0]
    missing = any(gradient is None for gradient in gradients)
    return "some of its weights take no part in its logits" if missing else None


def together(trainings: Sequence[Steps[T]], *, device: torch.device) -> Iterator[T]:
    """Take trainings to their ends, a step of each at a time; give what each of them returns, as it ends.

    They are of methods and networks that nothing speaks against, networks built alike, and batches of one size. What
    one of them raises ends all, but for what it was told itself.
    """
    lanes = [_Lane(steps, device) for steps in trainings]
    stack: Stack | None = None
    answers: list[Answer] = [None for _ in lanes]
    try:
        while lanes:
            for lane, answer in zip(lanes.copy(), answers, strict=True):
                if not lane.goes_on(answer):
                    lanes.remove(lane)
                    yield lane.value
            stack, answers = _answers(stack, [lane.asked for lane in lanes])
    finally:
        for lane in lanes:
            lane.close()


def _answers(stack: Stack | None, asked: Sequence[Step]) -> tuple[Stack | None, list[Answer]]:
    """Take the steps that are asked for; return the stack that did, and each one's answer."""
    if len(asked) < 2:
        return stack, [None for _ in asked]
    methods = [step.method for step in asked if isinstance(step.method, SingleTarget)]
    try:
        if stack is None or methods != stack.methods:
            stack = Stack(methods)
        return stack, list(stack.step([step.batch for step in asked]))
    except (RuntimeError, MemoryError) as error:
        # For each to say what follows, as from want of memory; without the frames, which hold tensors.
        return None, [error.with_traceback(None) for _ in asked]


class _Lane(Generic[T]):
    """A training among others, with random numbers of its own."""

    asked: Step
    value: T

    def __init__(self, steps: Steps[T], device: torch.device) -> None:
        self._steps, self._device = steps, device
        self._random = random_state(device)

    def goes_on(self, answer: Answer) -> bool:
        """Go on to the next step; say whether there is one, or else a value."""
        set_random_state(self._random, self._device)
        try:
            if isinstance(answer, BaseException):
                self.asked = self._steps.throw(answer)
            else:
                self.asked = self._steps.send(answer)
        except StopIteration as end:
            self.value = end.value
            return False
        finally:
            self._random = random_state(self._device)
        return True

    def close(self) -> None:
        """End it where it is."""
        self._steps.close()
