"""What kinds of trials take, measured with as many side by side as will run."""

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import count, pairwise
from statistics import mean
from typing import Any

import numpy as np
import torch

from cluster.storage import FolderStorage, Storage
from pipeline.caches.graphs import COLUMNS
from pipeline.forecasts.rates import Pace, Rates
from pipeline.forecasts.source_pilot import sample_file, wait_for
from pipeline.forecasts.work import kind_of
from pipeline.planning.plan import Plan, PlannedTrial
from pipeline.planning.specs import CacheSpec
from pipeline.trials.attempts import Ended, attempt
from pipeline.trials.checkpoints import Checkpoints
from pipeline.trials.runners import Demand, process_of
from pipeline.trials.streaming import hold_images
from pipeline.trials.trials import Materials, Process, make_feed, make_method, reset_process
from pipeline.trials.tuning import Fixed, final_report, place_of, tune_all
from sskt.errors import SsktError
from sskt.loop import evaluate

WARM, FEWEST, MANY = 2, 5, 1_000_000


def stand_in(plan: Plan, storage: Storage, folder: str, trials: list[PlannedTrial]) -> Materials:
    """What trials train from, with a few answers of each source in place of its caches."""
    held, pool = hold_images(plan, storage), plan.packed.pool
    generator = np.random.default_rng(0)

    def payload(source: str, spec: CacheSpec) -> np.ndarray:
        rows = np.load(sample_file(folder, source, spec.labels.output))
        views = len(spec.labels.numbers) * spec.view_count
        return rows[np.arange(pool * views) % len(rows)].reshape(pool, views, -1)

    def graph(neighbours: int) -> dict[str, np.ndarray]:
        ids = generator.integers(0, pool, (pool, neighbours)).astype(COLUMNS["ids"])
        return {"ids": ids, "similarity": np.ones((pool, neighbours), COLUMNS["similarity"])}

    wanted = plan.caches_for(trials)
    return Materials(
        images=held.images,
        labels=held.labels,
        splits=held.splits,
        payload={name: {cache: payload(name, spec) for cache, spec in specs.items()} for name, specs in wanted.items()},
        stored={name: {cache: spec.labels for cache, spec in specs.items()} for name, specs in wanted.items()},
        golden={},
        graphs={name: graph(spec.neighbours) for name, spec in plan.graphs_for(trials).items()},
        recipe=plan.recipe,
        edges=plan.packed.edges,
        sources={name: plan.experiment.sources[name] for name in plan.sources},
        experiment=plan.experiment.name,
        storage_uri=f"{folder}/trials",
    )


def copies(plan: Plan, trials: Sequence[PlannedTrial], demand: Demand) -> list[PlannedTrial]:
    """Every kind as often as trials run side by side, one step long, each with a key of its own.

    Those of the first kind stand there twice: the first of them warm up.
    """
    seeds = iter(range(MANY))

    def short(planned: PlannedTrial) -> PlannedTrial:
        settings = planned.trial.training
        training = replace(settings, epochs=1, steps_per_epoch=1, schedule="constant", milestones=())
        return plan.plan(replace(planned.trial, training=training, seed=next(seeds)))

    return [short(planned) for planned in (trials[0], *trials) for _ in range(demand.at_once)]


def measure_packed(trials: list[PlannedTrial], materials: Materials, demand: Demand, *, seconds: float) -> Rates:
    """By Ray Tune, as a sweep does."""
    from ray import tune  # only inside a session

    called = time.time()
    trainable = tune.with_parameters(_pilot_trial, materials=materials, demand=demand, seconds=seconds)
    failed: list[str] = []

    def hear(ended: Ended) -> None:
        failed.extend([ended.reason] if ended.state != "done" else [])

    place = place_of(demand.need)
    tune_all(Fixed(trials), trainable, resources=place, at_once=demand.at_once, tell=hear)
    if failed:
        raise SsktError(f"--measure: a trial of one step failed: {failed[0]}")
    storage = FolderStorage(materials.storage_uri)
    told = [json.loads(storage.read(_told_key(planned)) or b"") for planned in trials]
    worked = max(one["ended"] for one in told) - min(one["began"] for one in told)
    start = time.time() - called - worked
    return Rates(paces=_mean_paces(trials, told, demand), sweep_start=start, turn=mean(gaps(told)))


def measure_here(trials: list[PlannedTrial], materials: Materials, demand: Demand, *, seconds: float) -> Rates:
    """In this process."""
    process = replace(process_of(demand), hung_after=None)
    told = [{"pace": asdict(pilot(planned, materials, process, seconds=seconds))} for planned in trials]
    return Rates(paces=_mean_paces(trials, told, demand), sweep_start=0.0, turn=0.0)


def _pilot_trial(config: dict[str, Any], *, materials: Materials, demand: Demand, seconds: float) -> None:
    """What runs in an actor of Ray Tune."""
    from ray import tune  # only inside a session

    planned, began = config["planned"], time.time()
    pace = pilot(planned, materials, process_of(demand), seconds=seconds)
    told = {"began": began, "ended": time.time(), "process": os.getpid(), "pace": asdict(pace)}
    FolderStorage(materials.storage_uri).write(_told_key(planned), json.dumps(told).encode())
    tune.report(final_report(Ended(planned=planned, state="done")))


def pilot(planned: PlannedTrial, materials: Materials, process: Process, *, seconds: float) -> Pace:
    """What a kind of trial takes in this process. planned: one step of it."""
    began = time.perf_counter()
    ended = attempt(planned, materials, process)
    whole = time.perf_counter() - began
    if ended.state != "done":
        raise SsktError(ended.reason)
    reset_process(process.threads)
    training = replace(planned.trial.training, steps_per_epoch=MANY)
    longer = replace(planned, trial=replace(planned.trial, training=training))
    feed = make_feed(longer, materials, process)
    method = make_method(longer, materials, feed=feed, process=process)
    method.train(mode=True)

    numbers = count()

    def step() -> None:
        method.step(feed.batch(next(numbers)))
        wait_for(process.device.type)

    for _ in range(WARM):
        step()
    took = _repeated(step, seconds=seconds)
    evaluation = _repeated(lambda: evaluate(method, feed, "validation", beat=process.beat))
    checkpoints = Checkpoints(FolderStorage(materials.storage_uri), planned.run_key)
    state = {"method": method.state_dict(), "random": {"cpu": torch.get_rng_state()}, "epoch": 1}
    checkpoint = _repeated(lambda: checkpoints.save(state))
    feed.close()
    (saved,) = checkpoints.storage.objects(checkpoints.prefix)
    checkpoints.clear()
    trial = max(0.0, whole - took - evaluation - checkpoint)
    return Pace(step=took, evaluation=evaluation, checkpoint=checkpoint, trial=trial, checkpoint_bytes=saved.bytes)


def _repeated(work: Callable[[], object], *, seconds: float = 0.0) -> float:
    """Mean seconds of a piece of work."""
    began, times = time.perf_counter(), 0
    while times < FEWEST or time.perf_counter() - began < seconds:
        work()
        times += 1
    return (time.perf_counter() - began) / times


def _mean_paces(trials: Sequence[PlannedTrial], told: Sequence[Mapping[str, Any]], demand: Demand) -> dict[str, Pace]:
    """Of the copies of every kind, those that warmed up left out."""
    paces: dict[str, list[dict[str, float]]] = {}
    for planned, one in list(zip(trials, told, strict=True))[demand.at_once :]:
        paces.setdefault(kind_of(planned.spec["trial"]), []).append(one["pace"])
    means = {kind: {part: mean(one[part] for one in some) for part in some[0]} for kind, some in paces.items()}
    return {kind: Pace(**parts | {"checkpoint_bytes": int(parts["checkpoint_bytes"])}) for kind, parts in means.items()}


def gaps(told: Sequence[Mapping[str, Any]]) -> list[float]:
    """Seconds between two trials of each process."""
    ordered = sorted(told, key=lambda one: (one["process"], one["began"]))
    return [after["began"] - one["ended"] for one, after in pairwise(ordered) if one["process"] == after["process"]]


def _told_key(planned: PlannedTrial) -> str:
    return f"told/{planned.run_key}.json"
