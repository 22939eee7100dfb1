"""What a training tells while it runs: figures for operators, events for logs."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from cluster.logs import event
from cluster.metrics import count, counter, observe, put, working
from pipeline.planning.plan import PlannedTrial
from sskt.loop import Context, Metrics
from sskt.metrics import main_metric

STAGE = "train"
"""What all trainings count and log under, whichever verb asked for them."""
_RUNNING: set[str] = set()
"""Run keys of what this process trains now."""


@contextmanager
def training(planned: PlannedTrial, experiment: str, *, first: bool) -> Iterator[None]:
    """Around a training in one of its processes; only the first of them speaks for the trial."""
    with working(experiment=experiment, stage=STAGE):
        if first:
            event("trial_started", **named(planned))
            _RUNNING.add(planned.run_key)
            put("sskt_trials", len(_RUNNING), state="running")
        try:
            yield
        finally:
            if first:
                _RUNNING.discard(planned.run_key)
                put("sskt_trials", len(_RUNNING), state="running")


def told(context: Context, planned: PlannedTrial, *, first: bool) -> Context:
    """The same context, with what passes through it counted; of what all processes do alike the first tells."""
    step = counter("sskt_train_steps", "sskt_train_samples", "sskt_input_seconds", "sskt_train_seconds")
    context = replace(context, learned=lambda samples, waited, seconds: step(1, samples, waited, seconds))
    if not first:
        return context
    score, began = f"validation_{main_metric(multi_label=planned.facts.multi_label)}", time.monotonic()

    def load() -> dict[str, Any] | None:
        state = context.load()
        if state is not None:
            event("trial_resumed", **named(planned), epoch=state["epoch"])
        return state

    def save(state: dict[str, Any]) -> None:
        before = time.perf_counter()
        context.save(state)
        observe("sskt_checkpoint_seconds", time.perf_counter() - before)

    def report(metrics: Metrics) -> None:
        count("sskt_epochs")
        put("sskt_validation_score", metrics[score], method=planned.trial.method)
        passed = time.monotonic() - began
        event("trial_epoch", **named(planned), epoch=metrics["epoch"], score=metrics[score], seconds=passed)
        context.report(metrics)

    return replace(context, load=load, save=save, report=report)


def named(planned: PlannedTrial) -> dict[str, Any]:
    """What every event of a trial says of it."""
    return {"run_key": planned.run_key, "trial": planned.trial.label, "seed": planned.trial.seed}
