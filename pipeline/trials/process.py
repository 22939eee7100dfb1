"""The process a trial runs on, and what it does for its targets."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.computing import compute_here
from sskt.compiling import arrange
from sskt.feeds import Feed
from sskt.loop import Metrics


@dataclass(frozen=True, kw_only=True)
class Process:
    """The process a trial runs on, and how it is tied to its peers."""

    device: torch.device
    threads: int
    rank: int = 0
    world: int = 1
    prepare: Callable[[nn.Module], nn.Module] | None = None
    """Wraps a module for training over several processes; None moves it to the device."""
    gather: Callable[[Tensor], Tensor] = lambda own: own.unsqueeze(0)
    leaving: Callable[[], bool] = lambda: False
    """Whether the trial has to leave its node; its peers have to hear the same at the same step."""
    report: Callable[[Metrics], None] = lambda metrics: None
    """Told the metrics of every epoch."""
    beat: Callable[[], None] = lambda: None
    """Called at every sign of life."""
    waiting: Callable[[Callable[..., None]], Callable[..., None]] = lambda call: call
    """Wraps what waits for a storage, that may be away for a while, and gives no sign of life meanwhile."""
    saved: Callable[[], None] = lambda: None
    """Called after every state that was saved; raises where somebody else goes on from it."""
    hung_after: float | None = None
    """Seconds without one after which the process ends itself, to be started anew; None where nobody would start it."""
    errand: str = ""
    """What it is started for, again and again where it dies: claims of earlier tries are dead."""
    carried: dict[str, Any] = field(default_factory=dict)
    """Plain values that go along with every saved state, and into the result."""
    profiled: bool = False
    """Whether to look where the time goes; the result says it."""
    compile: str = "none"
    channels_last: bool = False
    side_by_side: int = 1
    """How many trials share the cluster with this one: speeds are comparable where it is the same."""
    fused: int = 1
    """How many of these step together in this process."""
    placed: dict[int, Tensor] = field(default_factory=dict)
    """What of the materials is on the device, by the id of the array that it was: one copy for all of its trials."""


def reset_process(threads: int) -> None:
    """Forget what an earlier trial in the same process may have set."""
    compute_here(threads)
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


def prepared(module: nn.Module, *, process: Process, feed: Feed, rows: int) -> nn.Module:
    """A trainable module on its device, laid out and compiled as asked, and tied to its peers."""

    def images() -> Tensor:
        return feed.set.images[torch.arange(rows, device=process.device) % len(feed.set.labels)]

    arrange(module.to(process.device), images, mode=process.compile, channels_last=process.channels_last)
    return process.prepare(module) if process.prepare else module
