"""What a sweep would do: its trials, what its caches will hold, how long it may take. Nothing is made for it."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean
from typing import Any

import torch

from cluster.resources import concurrency, local_limits
from cluster.session import is_local
from cluster.storage import Storage
from pipeline.caches.labels import record_key
from pipeline.caches.segments import segments_of
from pipeline.packing.packed import PackedDataset
from pipeline.planning.entries import compact
from pipeline.planning.experiment import Experiment, Trial
from pipeline.planning.plan import Plan, PlannedTrial, SourceCaches
from pipeline.planning.space import Axis
from pipeline.stages import NotMadeError, found_plan
from pipeline.sweeps.search import stopped_early, table_trials, tried_trials
from pipeline.sweeps.sweep import choose_runner
from pipeline.trials.checkpoints import newest_epochs
from pipeline.trials.results import Result, existing_results, read_results
from pipeline.trials.runners import Demand

SHOWN = 20
"""Of a long list of trials."""


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How far trainings are, by run key."""

    done: set[str]
    """Those that have a result, or were stopped for good."""
    epochs: Mapping[str, int]
    """What those that were begun have behind them."""

    def words(self, planned: PlannedTrial) -> str:
        """Of one trial."""
        if planned.run_key in self.done:
            return "done"
        epoch = self.epochs.get(planned.run_key, 0)
        return f"at epoch {epoch} of {planned.trial.training.epochs}" if epoch else "to do"

    def summary(self, trials: Sequence[PlannedTrial]) -> str:
        """Of many."""
        counts = Counter(self.words(planned).partition(" epoch")[0] for planned in trials)
        return f"{counts['done']} done, {counts['at']} begun, {counts['to do']} to do"

    def left(self, planned: PlannedTrial) -> float:
        """The share of one trial's epochs that is still to be trained."""
        if planned.run_key in self.done:
            return 0.0
        return 1 - self.epochs.get(planned.run_key, 0) / planned.trial.training.epochs


def forecast(experiment: Experiment, storage: Storage) -> Iterator[str]:
    """Say, line by line, what `sweep` would do now."""
    yield from search_lines(experiment)
    try:
        plan = found_plan(experiment, storage)
    except NotMadeError as error:
        trials = experiment.trials()
        yield from trial_lines(trials, [_name(trial) for trial in trials])
        yield f"packed  nothing yet, so keys, caches and time are not known: {error}"
        return
    existing = existing_results(storage)
    standing = Standing(done=existing | stopped_early(plan, storage).keys(), epochs=newest_epochs(storage))
    known = plan.trials or _once([*tried_trials(plan, storage), *table_trials(plan, storage)])
    named = [f"{planned.run_key[:12]}  {_name(planned.trial)}: {standing.words(planned)}" for planned in known]
    yield from trial_lines([planned.trial for planned in known], named)
    yield f"        {standing.summary(known)}"
    yield from cache_lines(plan.caches_for(), storage)
    left: Counter[str] = Counter()
    work = work_left(plan, known, standing)
    for planned, times in work:
        left[planned.trial.method] += times * steps_of(planned.spec["trial"]["training"], plan.packed)
    yield time_line(left, measured_paces(plan, storage, existing), at_once=_at_once(experiment))
    trainings = sum(math.ceil(times) for _, times in work)
    if trainings:
        runner, reason = choose_runner(experiment.resources, trials=trainings, local=is_local())
        yield f"runner  {runner}, {reason}"


def search_lines(experiment: Experiment) -> Iterator[str]:
    """What a search goes through."""
    search, seeds = experiment.search, experiment.seeds
    if search is None:
        return
    points = "every point" if search.trials is None else f"{search.trials} points"
    how = "" if experiment.scheduler.kind == "fifo" else f", {experiment.scheduler.kind}"
    after = f"with seed {seeds[0]}, then the best with {len(seeds)} seeds"
    if experiment.scheduler.kind == "pbt":
        after = f"in a population for each of {len(seeds)} seeds"
    yield f"search  {search.by}{how}: of each entry {points} {after}"
    for entry in experiment.entries:
        axes = "; ".join(_axis_words(axis) for axis in entry.axes) or "no axis"
        yield f"        {entry.label_at({})}: {axes}"


def trial_lines(trials: Sequence[Trial], named: Sequence[str]) -> Iterator[str]:
    """The first trials, and how many there are of each method. named: a line for each."""
    methods = ", ".join(f"{count} {name}" for name, count in Counter(trial.method for trial in trials).items())
    yield f"trials  {len(trials)}" + (f" ({methods})" if methods else "")
    yield from (f"        {line}" for line in named[:SHOWN])
    if len(named) > SHOWN:
        yield f"        and {len(named) - SHOWN} more"


def cache_lines(wanted: Mapping[str, SourceCaches], storage: Storage) -> Iterator[str]:
    """What the caches of each source will hold, how much of it is there, and what the source has still to see."""
    for source, caches in wanted.items():
        missing: set[tuple[Any, ...]] = set()
        for name, spec in caches.items():
            segments = segments_of(storage, spec)
            there = {key for segment in segments for key in storage.keys(segment.prefix)}
            every = [(segment, shard) for segment in segments for shard in range(segment.shards)]
            lacking = [(segment, shard) for segment, shard in every if record_key(segment, shard) not in there]
            missing |= {(segment.id_range(shard), segment.view_ids) for segment, shard in lacking}
            views, size = len(spec.labels.numbers) * spec.view_count, spec.labels.view_bytes
            held = f"{spec.rows} images x {views} views x {size} bytes = {spec.rows * views * size / 1e6:.2f} MB"
            yield f"cache   {source} {name}: {held}; {len(every) - len(lacking)} of {len(every)} shards there"
        # What a source says of the same views comes from one pass, whatever the outputs.
        yield f"cache   {source}: {sum(len(ids) * len(views) for ids, views in missing)} source passes to make"


def work_left(plan: Plan, known: Sequence[PlannedTrial], standing: Standing) -> list[tuple[PlannedTrial, float]]:
    """Trials, and how often each has still to be trained: a share of once, or for those of a search not known yet."""
    work = [(planned, standing.left(planned)) for planned in known]
    experiment, search = plan.experiment, plan.experiment.search
    if search is None or experiment.scheduler.kind == "pbt":
        return work
    for entry, example in {planned.trial.entry: planned for planned in plan.possible}.items():
        seeds = [planned.trial.seed for planned in known if planned.trial.entry == entry]
        tried = search.trials if search.by == "optuna" and example.trial.point else seeds.count(experiment.seeds[0])
        work.append((example, max(0, (tried or 0) + len(experiment.seeds) - 1 - len(seeds))))
    return work


def steps_of(training: Mapping[str, Any], packed: PackedDataset) -> int:
    """Steps of a whole training. training: its settings, as results keep them."""
    most = training["labels_per_class"] or packed.pool
    labelled = min(sum(min(there, most) for there in packed.labelled), packed.pool - packed.unlabelled)
    steps: int = training["epochs"] * (training["steps_per_epoch"] or -(-labelled // training["batch_size"]))
    return steps


def measured_paces(plan: Plan, storage: Storage, existing: set[str]) -> dict[str, list[float]]:
    """Seconds per step of each result of the same data, by method."""

    def pace(result: Result) -> tuple[str, float] | None:
        spec = result["spec"]
        if spec["dataset"] != plan.packed.fingerprint:
            return None
        return spec["trial"]["method"], result["seconds"] / steps_of(spec["trial"]["training"], plan.packed)

    paces: dict[str, list[float]] = {}
    for method, seconds in read_results(storage, sorted(existing), reduce=pace).values():
        paces.setdefault(method, []).append(seconds)
    return paces


def time_line(left: Mapping[str, float], paces: Mapping[str, Sequence[float]], *, at_once: int | None) -> str:
    """How long the training will take. left: steps by method. at_once: None where the cluster is not known."""
    if not any(left.values()):
        return "time    nothing is left to train"
    every = [pace for of_method in paces.values() for pace in of_method]
    if not every:
        return "time    unknown: nothing like it has been measured yet"
    seconds = sum(steps * mean(paces.get(method, every)) for method, steps in left.items())
    told = f"{spoken(seconds)} of training, going by {len(every)} results"
    if at_once is None:
        return f"time    {told}; divided by as many as fit the cluster side by side"
    return f"time    about {spoken(seconds / at_once)}: {told}, {at_once} side by side"


def spoken(seconds: float) -> str:
    """A duration in the unit that fits."""
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def _at_once(experiment: Experiment) -> int | None:
    """How many trials this machine holds; None where they run on another cluster, which is not asked."""
    resources = experiment.resources
    if not is_local():
        return None
    whole = Demand(need=resources.trial, workers=resources.workers).trial
    return concurrency(local_limits(gpus=torch.cuda.device_count()), whole)


def _once(trials: Sequence[PlannedTrial]) -> list[PlannedTrial]:
    return list({planned.run_key: planned for planned in trials}.values())


def _name(trial: Trial) -> str:
    return f"{trial.label}, seed {trial.seed}"


def _axis_words(axis: Axis) -> str:
    low_to_high = f"{axis.ends[0]} to {axis.ends[-1]}" + (" by factors" if axis.log else "")
    values = " or ".join(compact(value) for value in axis.values) or low_to_high
    when = " and ".join(f"{path} is {compact(wanted)}" for path, wanted in axis.when.items())
    return f"{axis.path} {values}" + (f" where {when}" if when else "")
