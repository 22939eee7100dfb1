"""Searches: which points were tried for each method, how they ended, and which one was chosen.

searches/<id>/points/00007.json           a point that was proposed, recorded before it is trained
searches/<id>/stopped/<run key>.json      a trial that a scheduler ended early (pipeline/trials/results.py)

Each entry of `methods` is searched by itself, at the first seed; validation alone chooses. The best point of each is
then trained with all seeds: those are the rows of the report.
"""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from cluster.storage import Storage
from pipeline.canonical import canonical, digest
from pipeline.planning.plan import Plan, PlannedTrial
from pipeline.planning.space import Point, draw, grid_points
from pipeline.trials.populations import members, moved
from pipeline.trials.results import Result, Stopped, read_failures, read_results, stopped_trials
from sskt.errors import DamagedError

State = Literal["done", "stopped", "failed", "open"]

WORDS: dict[State, str] = {"stopped": "stopped early", "failed": "failed", "open": "not yet at an end"}
"""What a report calls the trials that could not be chosen."""


@dataclass(frozen=True, kw_only=True)
class Tried:
    """A trial of a search."""

    planned: PlannedTrial
    state: State
    score: float | None = None
    """Its validation metric in %, after the last epoch it trained; None where it failed or has not ended."""
    epoch: int = 0
    """Epochs it has behind it where it was stopped."""


def search_id(plan: Plan, entry: int) -> str:
    """Name of an entry's search: all that defines it but for the number of trials, which may be raised later."""
    experiment = plan.experiment
    return digest(
        {
            "by": experiment.search.by,
            "seed": experiment.search.seed,
            "axes": experiment.axes_of(entry),
            "scheduler": experiment.scheduler,
            "trial": next(planned.spec for planned in plan.possible if planned.trial.entry == entry),
        }
    )


def record_point(storage: Storage, search: str, number: int, point: Point) -> Point:
    """Record the point of a number before it is trained; return the one that stands, if another run was first."""
    key = f"{_points_folder(search)}/{number:05d}.json"
    if storage.create(key, canonical(point).encode()):
        return point
    return _read_point(storage, key)


def recorded_points(storage: Storage, search: str) -> list[Point]:
    """The points that were proposed so far, in their order."""
    return [_read_point(storage, key) for key in storage.keys(_points_folder(search))]


def tried(plan: Plan, storage: Storage, entry: int) -> list[Tried]:
    """The trials of an entry's search, each once: of a grid and of what is drawn all, else those proposed so far."""
    return standing(_planned(plan, storage, entry), storage, stopped=stopped_trials(storage, search_id(plan, entry)))


def standing(planned: Iterable[PlannedTrial], storage: Storage, *, stopped: Mapping[str, Stopped]) -> list[Tried]:
    """How trials have ended so far, each once, in their order."""
    once = {one.run_key: one for one in planned}
    scores = read_results(storage, once, reduce=_score)
    failed = read_failures(storage, once)

    def state(key: str) -> Tried:
        if key in scores:
            return Tried(planned=once[key], state="done", score=scores[key])
        if key in stopped:
            return Tried(planned=once[key], state="stopped", score=stopped[key].score, epoch=stopped[key].epoch)
        return Tried(planned=once[key], state="failed" if key in failed else "open")

    return [state(key) for key in once]


def best(trials: Sequence[Tried]) -> Tried | None:
    """The best of those that trained to the end, by validation alone; of equals the first."""
    return max((one for one in trials if one.state == "done"), key=lambda one: one.score, default=None)


def chosen(plan: Plan, storage: Storage, entry: int) -> Tried | None:
    """The best point that an entry's search has found so far."""
    return best(tried(plan, storage, entry))


def table_trials(plan: Plan, storage: Storage) -> list[PlannedTrial]:
    """The trials a report shows: all, or of a search the chosen point of every entry with all seeds.

    Of populations, which train every seed by themselves, the best member of each.
    """
    experiment = plan.experiment
    if experiment.search is None:
        return plan.trials
    found = [one.planned for trials in _searches(plan, storage) if (one := best(trials)) is not None]
    if experiment.scheduler.kind == "pbt":
        last = read_results(storage, (one.run_key for one in found), reduce=_last_point)
        return [moved(one, last[one.run_key]) for one in found]
    points = [(one.trial.entry, one.trial.point) for one in found]
    return [plan.plan(experiment.at(*where, seed=seed)) for where in points for seed in experiment.seeds]


def search_lines(plan: Plan, storage: Storage) -> list[str]:
    """What a report says of each search, such as `sskt mnist, lr 0.05: best of 24 by validation, 91.2 %`."""
    return [_line(plan, trials) for trials in _searches(plan, storage) if trials]


def tried_trials(plan: Plan, storage: Storage) -> list[PlannedTrial]:
    """The trials of all searches of an experiment, each once."""
    return list({planned.run_key: planned for group in _groups(plan, storage) for planned in group}.values())


def stopped_early(plan: Plan, storage: Storage) -> dict[str, Stopped]:
    """Those of them that a scheduler ended early, by run key."""
    entries = range(len(plan.experiment.methods)) if plan.experiment.search else ()
    return {key: one for entry in entries for key, one in stopped_trials(storage, search_id(plan, entry)).items()}


def _searches(plan: Plan, storage: Storage) -> list[list[Tried]]:
    """How the trials have ended of which one is chosen."""
    stopped = stopped_early(plan, storage)
    return [standing(group, storage, stopped=stopped) for group in _groups(plan, storage)]


def _groups(plan: Plan, storage: Storage) -> Iterator[Iterable[PlannedTrial]]:
    """The trials of which one is chosen: of each entry; of populations, of each entry and seed."""
    experiment = plan.experiment
    for entry in range(len(experiment.methods)) if experiment.search else ():
        if experiment.scheduler.kind == "pbt":
            yield from (members(plan, entry, seed) for seed in experiment.seeds)
        else:
            yield _planned(plan, storage, entry)


def _planned(plan: Plan, storage: Storage, entry: int) -> Iterator[PlannedTrial]:
    seed = plan.experiment.seeds[0]
    for point in _points(plan, storage, entry):
        yield plan.plan(plan.experiment.at(entry, point, seed=seed))


def _line(plan: Plan, trials: Sequence[Tried]) -> str:
    counts = Counter(one.state for one in trials)
    others = ", ".join(f"{counts[state]} {words}" for state, words in WORDS.items() if counts[state])
    found, trial = best(trials), trials[0].planned.trial
    seed = f", seed {trial.seed}" if plan.experiment.scheduler.kind == "pbt" else ""
    if found is None:
        name = plan.experiment.entries[trial.entry].label_at({})
        return f"{name}{seed}: none of {len(trials)} has ended well ({others})"
    told = f"{found.planned.trial.label}{seed}: best of {len(trials)} by validation, {found.score:.1f} %"
    return told + (f" ({others})" if others else "")


def _points(plan: Plan, storage: Storage, entry: int) -> list[Point]:
    search, axes = plan.experiment.search, plan.experiment.axes_of(entry)
    if search.by == "grid":
        return list(grid_points(axes))
    if search.by == "random":
        return [draw(axes, number=number, seed=search.seed) for number in range(search.trials)]
    return recorded_points(storage, search_id(plan, entry))[: search.trials]


def _score(result: Result) -> float:
    score: float = result["validation"][result["metric"]]
    return score


def _last_point(result: Result) -> Point:
    """Where a member of a population was when it ended."""
    point: Point = result["lineage"][-1]["point"]
    return point


def _points_folder(search: str) -> str:
    return f"searches/{search}/points"


def _read_point(storage: Storage, key: str) -> Point:
    try:
        point: Point = json.loads(storage.read(key) or b"")
    except ValueError as error:
        raise DamagedError(f"{key} is damaged ({error}); delete it and another point will be proposed") from error
    return point
