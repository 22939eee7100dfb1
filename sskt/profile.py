"""Where the time of a training goes, part by part, against the least that its target could take.

It works from outside: what a loop calls is replaced for as long as a profile is taken, and nothing is there otherwise.
"""

import copy
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from sskt.answers import LiveOutputs, SourceOutputs
from sskt.feeds import Feed
from sskt.loop import Context
from sskt.methods import Method
from sskt.optim import make_optimizer

P = ParamSpec("P")
T = TypeVar("T")

STEP_PARTS = {
    "input": "images and cached labels of the batch",
    "source": "what live sources say of it",
    "forward": "target, heads and losses",
    "backward": "gradients",
    "optimizer": "parameters",
    "report": "figures, signs of life",
}
OTHER_PARTS = {"save": "states and reports of epochs", "rest": "evaluations, and whatever else there is"}
BARE_STEPS = 20


@dataclass
class Profile:
    """The seconds of every part; where one runs inside another, they count for the inner one alone."""

    device: torch.device
    wanted: bool = True
    """Whether one is taken; if not, nothing here does anything."""
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys([*STEP_PARTS, *OTHER_PARTS], 0.0))
    steps: int = 0
    bare: float = 0.0
    """Seconds of a step of the plain target, forward, backward and optimiser, on images that lie there."""
    _open: list[str] = field(default_factory=lambda: ["rest"])
    _since: float = field(default_factory=time.perf_counter)

    def enter(self, part: str) -> None:
        """From now on it is that part, until it is left."""
        self._count()
        self._open.append(part)

    def leave(self) -> None:
        """The part before goes on."""
        self._count()
        self._open.pop()

    def timed(self, part: str, call: Callable[P, T]) -> Callable[P, T]:
        """The same call as a part."""

        def run(*arguments: P.args, **named: P.kwargs) -> T:
            self.enter(part)
            try:
                return call(*arguments, **named)
            finally:
                self.leave()

        return run

    def told(self, context: Context) -> Context:
        """The same context, with what it is told as parts."""
        if not self.wanted:
            return context
        return replace(
            context,
            save=self.timed("save", context.save),
            report=self.timed("save", context.report),
            learned=self.timed("report", context.learned),
        )

    @contextmanager
    def taking(self, method: Method, feed: Feed) -> Iterator[None]:
        """Look at a training meanwhile. A device is waited for between parts, so that its work counts where it was."""
        if not self.wanted:
            yield
            return

        def step(*arguments: Any) -> Any:
            self.steps += 1
            return inner(*arguments)

        inner, live = method.step, {name: self._source(read) for name, read in feed.outputs.items()}
        with ExitStack() as stack:
            stack.enter_context(_replaced(feed, "outputs", live))
            stack.enter_context(_replaced(feed, "batch", self.timed("input", feed.batch)))
            stack.enter_context(_replaced(method, "step", self.timed("forward", step)))
            for name in ("backward", "grad"):
                gradient = getattr(torch.autograd, name)
                stack.enter_context(_replaced(torch.autograd, name, self.timed("backward", gradient)))
            before = register_optimizer_step_pre_hook(lambda *_: self.enter("optimizer"))
            stack.callback(before.remove)
            after = register_optimizer_step_post_hook(lambda *_: self.leave())
            stack.callback(after.remove)
            self._since = time.perf_counter()
            yield
            self._count()
        self.bare = bare_seconds(method, feed)

    def kept(self) -> dict[str, Any]:
        """What a result keeps of it."""
        told = {"seconds": self.seconds, "steps": self.steps, "bare": self.bare}
        return {"profile": told} if self.wanted else {}

    def _source(self, read: SourceOutputs) -> SourceOutputs:
        return self.timed("source", read) if isinstance(read, LiveOutputs) else read

    def _count(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        now = time.perf_counter()
        self.seconds[self._open[-1]] += now - self._since
        self._since = now


@contextmanager
def _replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Another attribute meanwhile."""
    own = name in vars(owner)
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if own:
            setattr(owner, name, before)
        else:
            delattr(owner, name)


def bare_seconds(method: Method, feed: Feed) -> float:
    """Of a step that no training of this target can go below: no feed, no heads, no source; the median of some."""
    target, batch = copy.deepcopy(method.export()).train(), feed.batch(0)
    optimizer: Optimizer
    optimizer, _ = make_optimizer(target.parameters(), training=feed.training, steps_per_epoch=feed.steps_per_epoch)
    pixels: Tensor = target.preprocess(batch.images)
    classes = torch.zeros(len(pixels), dtype=torch.int64, device=pixels.device)
    times = []
    for _ in range(BARE_STEPS):
        began = time.perf_counter()
        loss = F.cross_entropy(target.network(pixels), classes)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        if pixels.device.type == "cuda":
            torch.cuda.synchronize(pixels.device)
        times.append(time.perf_counter() - began)
    return statistics.median(times[BARE_STEPS // 4 :])


def profile_lines(taken: dict[str, Any]) -> list[str]:
    """A table of what `kept` keeps."""
    seconds, steps = taken["seconds"], max(1, taken["steps"])
    step = sum(seconds[part] for part in STEP_PARTS) / steps
    lines = [f"{'part of a step':<16} {'ms':>9} {'%':>6}"]
    for part, what in STEP_PARTS.items():
        one = seconds[part] / steps
        lines.append(f"{part:<16} {1e3 * one:9.3f} {100 * one / (step or 1):6.1f}  {what}")
    lines.append(f"{'all of it':<16} {1e3 * step:9.3f} {100.0:6.1f}  of {taken['steps']} steps")
    share = 100 * taken["bare"] / (step or 1)
    lines.append(
        f"{'bare step':<16} {1e3 * taken['bare']:9.3f} {share:6.1f}  the plain target on images that lie there"
    )
    for part, what in OTHER_PARTS.items():
        lines.append(f"{'beside: ' + part:<16} {1e3 * seconds[part]:9.0f} {'':6}  in all: {what}")
    return lines
