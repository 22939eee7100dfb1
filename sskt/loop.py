"""The training loop. It knows neither the method it trains nor the machine it runs on."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sskt.datasets import Split
from sskt.errors import DivergedError
from sskt.feeds import ResidentFeed
from sskt.methods import Method
from sskt.metrics import scores
from sskt.seeds import derive

Metrics = dict[str, float]


@dataclass(frozen=True, kw_only=True)
class Context:
    """How the surroundings take part: where results go and where a training continues."""

    device: torch.device
    report: Callable[[Metrics], None] = lambda metrics: None
    """Told the metrics of every finished epoch."""
    save: Callable[[dict[str, Any]], None] = lambda state: None
    """Given the whole state after every epoch, before `report`."""
    load: Callable[[], dict[str, Any] | None] = lambda: None
    """Returns the newest saved state, if there is one."""
    average: Callable[[Tensor], Tensor] = lambda means: means
    """Averages a tensor over the processes of a training, so that all of them see the same losses."""
    beat: Callable[[], None] = lambda: None
    """Called after every training step and every batch of an evaluation: the training is alive."""


@dataclass
class Progress:
    """What has happened so far in a training."""

    epoch: int = 0
    seconds: float = 0.0
    label_rows: int = 0
    history: list[Metrics] = field(default_factory=list)


def fit(method: Method, feed: ResidentFeed, *, epochs: int, seed: int, context: Context) -> Progress:
    """Train to the last epoch, from the newest saved state if there is one."""
    torch.manual_seed(derive(seed, "training"))
    progress = _resume(method, context)
    feed.label_rows = progress.label_rows
    while progress.epoch < epochs:
        began = time.perf_counter()
        try:
            metrics = _train_epoch(method, feed, epoch=progress.epoch, context=context)
            held_out = evaluate(method, feed, "validation", beat=context.beat)
        except DivergedError as error:
            error.last = progress.history[-1] if progress.history else None
            raise
        metrics |= {f"validation_{name}": score for name, score in held_out.items()}
        progress.epoch += 1
        progress.seconds += time.perf_counter() - began
        progress.label_rows = feed.label_rows
        progress.history.append({"epoch": progress.epoch} | metrics)
        context.save({"method": method.state_dict(), "random": _random_state(context.device)} | vars(progress))
        context.report(progress.history[-1])
    return progress


def evaluate(method: Method, feed: ResidentFeed, split: Split, *, beat: Callable[[], None]) -> Metrics:
    """The figures of a held-out split, with a sign of life after every batch."""

    def predict(images: Tensor) -> Tensor:
        logits = method.predict(images)
        beat()
        return logits

    method.train(mode=False)
    return scores(predict, feed.evaluation(split), multi_label=feed.multi_label)


def _train_epoch(method: Method, feed: ResidentFeed, *, epoch: int, context: Context) -> Metrics:
    """One epoch; returns the mean of every part of the loss."""
    method.train(mode=True)
    sums: dict[str, Tensor] = {}
    steps = range(epoch * feed.steps_per_epoch, (epoch + 1) * feed.steps_per_epoch)
    for step in steps:
        for name, part in method.step(feed.batch(step)).items():
            sums[name] = sums[name] + part if name in sums else part
        context.beat()
    means = dict(zip(sums, (context.average(torch.stack(list(sums.values()))) / len(steps)).tolist(), strict=True))
    # Looked at once an epoch: a look at every step would make the device wait for the host.
    bad = [name for name, mean in means.items() if not math.isfinite(mean)]
    if bad:
        raise DivergedError(f"the loss is no longer finite in epoch {epoch + 1} ({', '.join(bad)}); lower training.lr")
    return means


def _resume(method: Method, context: Context) -> Progress:
    state = context.load()
    if state is None:
        return Progress()
    method.load_state_dict(state["method"])
    torch.set_rng_state(state["random"]["cpu"])
    if context.device.type == "cuda":
        torch.cuda.set_rng_state(state["random"]["cuda"], context.device)
    return Progress(**{name: state[name] for name in ("epoch", "seconds", "label_rows", "history")})


def _random_state(device: torch.device) -> dict[str, Tensor]:
    """Dropout and the like draw from these while training."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state
