"""The training loop. It knows neither the method it trains nor the machine it runs on, nor what trains beside it."""

import copy
import math
import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor

from sskt.datasets import Split
from sskt.errors import DivergedError, LeavingError
from sskt.feeds import Batch, Feed
from sskt.methods import Method
from sskt.metrics import ByClass, Predict, by_class, scores
from sskt.seeds import derive

Metrics = dict[str, float]
Parts = dict[str, Tensor]
"""What a step returns: `loss` and its parts, a number each."""
T = TypeVar("T")


class Step(NamedTuple):
    """What a training asks for before it goes on."""

    method: Method
    batch: Batch


Steps = Generator[Step, Parts | None, T]
"""A training that stops at every step, to be sent what the step returned; sent None, it takes the step by itself."""


@dataclass(frozen=True, kw_only=True)
class Context:
    """How the surroundings take part: where results go and where a training continues."""

    device: torch.device
    report: Callable[[Metrics], None] = lambda metrics: None
    """Told the metrics of every finished epoch."""
    save: Callable[[dict[str, Any]], None] = lambda state: None
    """Given the whole state after every epoch, before `report`, and where the training leaves in the midst of one."""
    load: Callable[[], dict[str, Any] | None] = lambda: None
    """Returns the newest saved state, if there is one."""
    gather: Callable[[Tensor], Tensor] = lambda own: own.unsqueeze(0)
    """Stacks a tensor [n] of every process of a training to [processes, n], so that all of them see the same losses."""
    leaving: Callable[[], bool] = lambda: False
    """Asked before every step: whether to save what there is and to end. All processes have to hear the same."""
    beat: Callable[[], None] = lambda: None
    """Called after every training step and every batch of an evaluation: the training is alive."""
    learned: Callable[[int, float, float], None] = lambda samples, waited, seconds: None
    """Told of every training step: how many images it learned from, how many seconds of the host it waited for them,
    and how many it took with that. A device may still be at work then."""

    share: float = 1.0
    """The part of its process's time that is its own, where others train there too: what is told of seconds is that."""

    def since(self, began: float) -> float:
        """Seconds of its own after a moment of `time.perf_counter`."""
        return (time.perf_counter() - began) * self.share


@dataclass
class Progress:
    """What has happened so far in a training."""

    epoch: int = 0
    seconds: float = 0.0
    waited: float = 0.0
    """Seconds of these that the host waited for batches."""
    earlier: float = 0.0
    """Seconds of these that passed in processes before this one, which left, or were lost after a saved state."""
    label_rows: int = 0
    history: list[Metrics] = field(default_factory=list)
    step: int = 0
    """Steps of the next epoch that are behind it too."""
    sums: dict[str, Tensor] = field(default_factory=dict)
    """The parts of the loss, summed over those steps: a number each, in a saved state one of every process."""


def fit(method: Method, feed: Feed, *, epochs: int, seed: int, context: Context) -> Progress:
    """Train to the last epoch, from the newest saved state if there is one. A LeavingError ends it before."""
    return alone(training(method, feed, epochs=epochs, seed=seed, context=context))


def alone(steps: Steps[T]) -> T:
    """Let a training take its steps by itself."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            ended: T = end.value
            return ended


def training(method: Method, feed: Feed, *, epochs: int, seed: int, context: Context) -> Steps[Progress]:
    """What `fit` does, step by step."""
    torch.manual_seed(derive(seed, "training"))
    progress = _resume(method, feed, context)
    feed.label_rows = progress.label_rows
    while progress.epoch < epochs:
        began = time.perf_counter()
        try:
            metrics = yield from _train_epoch(method, feed, progress=progress, context=context)
            held_out = evaluate(method, feed, "validation", beat=context.beat)
        except DivergedError as error:
            error.last = progress.history[-1] if progress.history else None
            raise
        except LeavingError:
            progress.seconds += context.since(began)
            if progress.step:
                _save(method, feed, progress=progress, context=context)
            raise
        metrics |= {f"validation_{name}": score for name, score in held_out.items()}
        progress.epoch += 1
        progress.step, progress.sums = 0, {}
        progress.seconds += context.since(began)
        progress.history.append({"epoch": progress.epoch} | metrics)
        _save(method, feed, progress=progress, context=context)
        context.report(progress.history[-1])
    return progress


def evaluate(method: Method, feed: Feed, split: Split, *, beat: Callable[[], None]) -> Metrics:
    """The figures of a held-out split, with a sign of life after every batch."""
    return scores(_predicting(method, beat), feed.evaluation(split), multi_label=feed.multi_label)


def evaluate_classes(method: Method, feed: Feed, split: Split, *, classes: int, beat: Callable[[], None]) -> ByClass:
    """How the classes of a held-out split fare, with a sign of life after every batch."""
    batches = feed.evaluation(split)
    return by_class(_predicting(method, beat), batches, classes=classes, multi_label=feed.multi_label)


def _predicting(method: Method, beat: Callable[[], None]) -> Predict:
    """The logits of a method that does not train meanwhile."""

    def predict(images: Tensor) -> Tensor:
        logits = method.predict(images)
        beat()
        return logits

    method.train(mode=False)
    return predict


def _train_epoch(method: Method, feed: Feed, *, progress: Progress, context: Context) -> Steps[Metrics]:
    """What is left of an epoch; returns the mean of every part of the loss over all of it."""
    method.train(mode=True)
    epoch, sums, steps = progress.epoch, progress.sums, feed.steps_per_epoch
    while progress.step < steps:
        if context.leaving():
            raise LeavingError(f"after {epoch} epochs and {progress.step} of {steps} steps")
        began = time.perf_counter()
        batch = feed.batch(epoch * steps + progress.step)
        waited = time.perf_counter() - began
        parts = yield Step(method, batch)
        for name, part in (method.step(batch) if parts is None else parts).items():
            sums[name] = sums[name] + part if name in sums else part
        progress.step += 1
        progress.waited += waited
        context.beat()
        context.learned(len(batch.ids), waited, context.since(began))
    means = {name: float(by_process.mean() / steps) for name, by_process in _gathered(sums, context).items()}
    # Looked at once an epoch: a look at every step would make the device wait for the host.
    bad = [name for name, mean in means.items() if not math.isfinite(mean)]
    if bad:
        raise DivergedError(f"the loss is no longer finite in epoch {epoch + 1} ({', '.join(bad)}); lower training.lr")
    return means


def _gathered(sums: dict[str, Tensor], context: Context) -> dict[str, Tensor]:
    """The sums of every process, [processes] each, exchanged at once and brought to the CPU."""
    if not sums:
        return {}
    return dict(zip(sums, context.gather(torch.stack(list(sums.values()))).cpu().unbind(dim=1), strict=True))


def _save(method: Method, feed: Feed, *, progress: Progress, context: Context) -> None:
    progress.label_rows = feed.label_rows
    learnt = {"method": _by_itself(method.state_dict()), "random": random_state(context.device)}
    context.save(learnt | vars(progress) | {"sums": _gathered(progress.sums, context)})


def _by_itself(part: Any) -> Any:
    """The same, without what lies beside its tensors in memory: a file would hold all of what one is a part of."""
    if isinstance(part, dict):
        same = copy.copy(part)
        same.update({name: _by_itself(value) for name, value in part.items()})
        return same
    if isinstance(part, Tensor) and part.untyped_storage().nbytes() > part.nbytes:
        return part.clone()
    return part


def _resume(method: Method, feed: Feed, context: Context) -> Progress:
    state = context.load()
    if state is None:
        return Progress()
    method.load_state_dict(state["method"])
    set_random_state(state["random"], context.device)
    progress = Progress(**{name: state[name] for name in ("epoch", "seconds", "label_rows", "history")})
    progress.step, progress.waited = state.get("step", 0), state.get("waited", 0.0)  # older states: whole epochs
    progress.earlier = progress.seconds
    for name, by_process in state.get("sums", {}).items():
        mine = by_process[feed.share.rank] if len(by_process) == feed.share.world else by_process.mean()
        progress.sums[name] = mine.to(context.device)
    return progress


def random_state(device: torch.device) -> dict[str, Tensor]:
    """Dropout and the like draw from these while training."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict[str, Tensor], device: torch.device) -> None:
    """Go on drawing from there."""
    torch.set_rng_state(state["cpu"])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda"], device)
