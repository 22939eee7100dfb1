"""Whether the trials of a sweep step together in one process, how many of them, and why."""

import time
from collections.abc import Callable, Sequence

import torch

from pipeline.planning.plan import PlannedTrial
from pipeline.planning.settings import ResourceSettings
from pipeline.trials.attempts import is_out_of_memory
from pipeline.trials.lanes import stacks
from pipeline.trials.runners import Demand, RunnerName, process_of
from pipeline.trials.trials import Materials, make_feed, make_method, reset_process
from pipeline.trials.tuning import bundle_of, last_line
from sskt.errors import SsktError
from sskt.methods.base import SingleTarget
from sskt.stacks import Stack

SECONDS = 1.0
"""How long each side is measured, after a first step."""

MARGIN = 1.1
"""How many times as fast together has to be: what shares a process shares its death."""

Pace = Callable[[Sequence[PlannedTrial]], tuple[float, float]]
"""Measures trials alone and together: images a second in one process."""


def choose_lanes(
    trials: Sequence[PlannedTrial],
    resources: ResourceSettings,
    *,
    against: str | None,
    pace: Pace,
) -> tuple[int, str]:
    """How many of some trials step together, 1 for none, and why.

    against: what speaks against any of it, whatever the trials are.
    """
    if resources.packing == "processes":
        return 1, "as resources.packing says"
    if resources.compile != "none":
        against = "resources.compile is for networks by themselves"
    if against:
        return 1, f"for {against}"
    alike, reasons = stacks(trials)
    most = max(alike, key=len)
    lanes = min(len(most), resources.lanes)
    others = "".join(f"; {reason}" for reason in reasons)
    if lanes == 1:
        return 1, f"for no two trials have equal targets and batches{others}"
    if resources.packing == "fused":
        return lanes, f"as resources.packing says{others}"
    alone, together = pace(most[:lanes])
    figures = f"by {together:.0f} images/s of {lanes} together against {alone:.0f} of one alone in a process{others}"
    return (lanes if together >= MARGIN * alone else 1), figures


def why_processes(runner: RunnerName, *, known: bool, logged: bool, streamed: bool) -> str | None:
    """What speaks against trials that step together, whatever they are; None where nothing does.

    known: whether all trials are known beforehand; logged: whether somebody hears of their epochs; streamed: whether
    their images are.
    """
    if runner not in ("plain", "packed"):
        return f"runner {runner!r} has processes of its own for each"
    if not known:
        return "a search hears of each before it says what comes next"
    if streamed:
        return "images are streamed, and each would hold parts of its own"
    return "log_to hears of the epochs of one trial a process" if logged else None


def paces(group: Sequence[PlannedTrial], materials: Materials, demand: Demand) -> tuple[float, float]:
    """Images a second that the first of a group learns from alone, and that all of them do together; 0 without memory.

    It trains nothing that is kept.
    """
    process = process_of(demand)
    reset_process(process.threads)
    feeds = [make_feed(planned, materials, process) for planned in group]
    methods: list[SingleTarget] = []
    for planned, feed in zip(group, feeds, strict=True):
        method = make_method(planned, materials, feed=feed, process=process)
        assert isinstance(method, SingleTarget)  # noqa: S101 (a group that may step together)
        method.train(mode=True)
        methods.append(method)
    rows = len(feeds[0].batch(0).images)
    alone = _rate(lambda step: methods[0].step(feeds[0].batch(step)), process.device) * rows
    try:
        stack = Stack(methods)
        steps = _rate(lambda step: stack.step([feed.batch(step) for feed in feeds]), process.device)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return alone, 0.0
    return alone, steps * rows * len(group)


def paces_on_cluster(group: Sequence[PlannedTrial], materials: Materials, demand: Demand) -> tuple[float, float]:
    """The same where a trial would run. A session has to be open."""
    import ray  # only inside a session

    bundle = bundle_of(demand.need)
    options = {"num_cpus": bundle.pop("CPU", 0), "num_gpus": bundle.pop("GPU", 0), "memory": bundle.pop("memory", None)}
    task = ray.remote(paces).options(**options, label_selector=dict(demand.need.labels) or None, max_retries=0)
    try:
        found: tuple[float, float] = ray.get(task.remote(group, materials, demand))
    except ray.exceptions.RayError as error:
        raise SsktError(f"resources.packing 'auto' could not be measured: {last_line(str(error))}") from error
    return found


def _rate(step: Callable[[int], object], device: torch.device) -> float:
    """Steps a second, the first one left out."""
    step(0)
    _finish(device)
    began, count = time.perf_counter(), 0
    while count < 3 or time.perf_counter() - began < SECONDS:
        count += 1
        step(count)
        _finish(device)
    return count / (time.perf_counter() - began)


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()
