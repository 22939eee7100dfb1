"""When trials leave nodes that go: how the processes of one agree on the step, and what is said of it."""

import time
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from cluster.notices import ASK_SECONDS
from cluster.resources import Resources
from pipeline.trials.attempts import Ended


class Agreed:
    """Lets all processes of a training hear at the same step that one of them has to leave.

    They exchange what they know every few seconds: each says how many steps that is, and the least of them counts.
    """

    def __init__(
        self,
        given: Callable[[], bool],
        gather: Callable[[Tensor], Tensor],
        *,
        device: torch.device,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._given, self._gather, self._device, self._clock = given, gather, device, clock
        self._exchanged, self._ahead, self._done = clock(), 0, -1

    def __call__(self) -> bool:
        """Whether to leave; asked once a step by every process."""
        self._done += 1
        if self._done < self._ahead:
            return False
        now = self._clock()
        # At most twice as many as before: a device that only queues its first steps seems fast.
        steps = max(1.0, min(ASK_SECONDS * self._done / max(now - self._exchanged, 1e-6), 2.0 * self._done))
        told = self._gather(torch.tensor([float(self._given()), steps], device=self._device)).cpu()
        self._exchanged, self._ahead, self._done = now, int(told[:, 1].min()), 0
        return bool(told[:, 0].any())


def leaving_line(ended: Ended, *, nodes: Sequence[Resources], need: Resources) -> str:
    """What to say of a trial that leaves its node.

    nodes: what those have that stay; need: what one process of the trial takes.
    """
    trial = ended.planned.trial
    room = any(node.holds(need) for node in nodes)
    then = "it goes on elsewhere" if room else "no other node can hold it: it waits for one"
    return f"{trial.label}, seed {trial.seed}, leaves {ended.reason}; {then}"
