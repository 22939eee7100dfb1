"""What a sweep would do: its trials, what its caches will hold, how long it may take. Nothing is made for it."""

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from statistics import mean

import torch

from cluster.resources import concurrency, local_limits
from cluster.session import is_local
from cluster.storage import Storage
from pipeline.forecasts.holdings import holdings, passes_to_make
from pipeline.forecasts.rates import result_paces
from pipeline.forecasts.work import kind_of, known_trials, standing_of, steps_of, work_left
from pipeline.planning.entries import compact
from pipeline.planning.experiment import Experiment, Trial
from pipeline.planning.plan import SourceCaches
from pipeline.planning.space import Axis
from pipeline.stages import NotMadeError, found_plan
from pipeline.sweeps.sweep import choose_runner

SHOWN = 20
"""Of a long list of trials."""


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
    standing, known = standing_of(plan, storage), known_trials(plan, storage)
    named = [f"{planned.run_key[:12]}  {_name(planned.trial)}: {standing.words(planned)}" for planned in known]
    yield from trial_lines([planned.trial for planned in known], named)
    yield f"        {standing.summary(known)}"
    yield from cache_lines(plan.caches_for(), storage)
    left: Counter[str] = Counter()
    work = work_left(plan, known, standing)
    for planned, times in work:
        trial = planned.spec["trial"]
        left[kind_of(trial)] += times * steps_of(trial["training"], plan.packed)
    yield time_line(left, result_paces(plan, storage), at_once=_at_once(experiment))
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
    held = holdings(wanted, storage)
    for source, caches in held.items():
        for one in caches:
            said = f"{one.rows} images x {one.views} views x {one.view_bytes} bytes = {one.payload / 1e6:.2f} MB"
            yield f"cache   {source} {one.name}: {said}; {one.shards - len(one.lacking)} of {one.shards} shards there"
        yield f"cache   {source}: {passes_to_make(caches)} source passes to make"


def time_line(left: Mapping[str, float], paces: Mapping[str, Sequence[float]], *, at_once: int | None) -> str:
    """How long the training will take. left: steps by kind of trial. at_once: None where the cluster is not known."""
    if not any(left.values()):
        return "time    nothing is left to train"
    every = [pace for of_kind in paces.values() for pace in of_kind]
    if not every:
        return "time    unknown: nothing like it has been measured yet"
    seconds = sum(steps * mean(paces.get(kind, every)) for kind, steps in left.items())
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
    return concurrency(local_limits(gpus=torch.cuda.device_count()), resources.trial, workers=resources.workers)


def _name(trial: Trial) -> str:
    return f"{trial.label}, seed {trial.seed}"


def _axis_words(axis: Axis) -> str:
    low_to_high = f"{axis.ends[0]} to {axis.ends[-1]}" + (" by factors" if axis.log else "")
    values = " or ".join(compact(value) for value in axis.values) or low_to_high
    when = " and ".join(f"{path} is {compact(wanted)}" for path, wanted in axis.when.items())
    return f"{axis.path} {values}" + (f" where {when}" if when else "")
