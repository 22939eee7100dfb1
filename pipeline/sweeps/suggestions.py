"""What a search trains next: what is known beforehand, or what Optuna proposes from the scores so far.

Optuna is asked and told here rather than through Tune's OptunaSearch: that takes no scores from before where axes have
conditions, and its points are only kept in the state of a Tune that nobody reads again.
"""

import itertools
from collections import deque
from collections.abc import Iterable, Sequence
from typing import Any

import optuna
from optuna.trial import TrialState

from cluster.storage import Storage
from pipeline.canonical import canonical
from pipeline.planning.plan import Plan, PlannedTrial
from pipeline.planning.space import Axis, Point
from pipeline.sweeps.search import Tried, record_point, recorded_points, search_id, standing, tried
from pipeline.trials.attempts import Ended
from pipeline.trials.populations import members, where_it_was
from pipeline.trials.tuning import Fixed, Supply
from sskt.seeds import derive


def search_supply(plan: Plan, storage: Storage) -> Supply:
    """What a search has still to train, of all entries in turn."""
    entries = range(len(plan.experiment.methods))
    if plan.experiment.search.by == "optuna":
        return Proposed([Proposals(plan, storage, entry) for entry in entries])
    return Fixed(_in_turn([_unfinished(tried(plan, storage, entry)) for entry in entries]))


def population_supply(plan: Plan, storage: Storage) -> Fixed:
    """The members of all populations that have still to be trained, each where it was."""
    experiment = plan.experiment
    every = [
        member
        for entry in range(len(experiment.methods))
        for seed in experiment.seeds
        for member in _unfinished(standing(members(plan, entry, seed), storage, stopped={}))
    ]
    return Fixed([where_it_was(member, storage) for member in every])


def _unfinished(trials: Iterable[Tried]) -> list[PlannedTrial]:
    return [one.planned for one in trials if one.state in ("open", "failed")]


def _in_turn(groups: Iterable[Iterable[PlannedTrial]]) -> list[PlannedTrial]:
    """One of each group, then the next of each."""
    return [one for row in itertools.zip_longest(*groups) for one in row if one is not None]


class Proposed:
    """The proposals of several searches, in turn."""

    def __init__(self, searches: Iterable["Proposals"]) -> None:
        self._searches = list(searches)
        self._turns = deque(self._searches)

    @property
    def left(self) -> int:
        """How many more there may be; a point that is proposed twice is trained once."""
        return sum(search.left for search in self._turns)

    def next(self) -> PlannedTrial | None:
        """Return the next trial; None where there is no more."""
        while self._turns:
            search = self._turns.popleft()
            planned = search.next()
            if planned is not None:
                self._turns.append(search)
                return planned
        return None

    def learn(self, ended: Ended) -> None:
        """Tell the search whose trial it is."""
        for search in self._searches:
            search.learn(ended)


class Proposals:
    """The points of one entry's search, proposed by Optuna's tree-structured Parzen estimator.

    Each is recorded before it is trained, and drawn from a seed of its own number, so that a search that was cut short
    goes on with all that it knew, and draws nothing a second time.
    """

    def __init__(self, plan: Plan, storage: Storage, entry: int) -> None:
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._plan, self._storage, self._entry = plan, storage, entry
        self._search, self._axes = search_id(plan, entry), plan.experiment.axes_of(entry)
        self._study = optuna.create_study(direction="maximize")
        self._asked: dict[str, list[Any]] = {}
        """Optuna's trials that have not ended, by run key."""
        self._ended: dict[str, Tried] = {}
        self._number = 0
        self._waiting = deque(self._recall())

    def _recall(self) -> list[PlannedTrial]:
        """Tell Optuna of every point that was proposed before; return the trials that have still to be trained."""
        before = tried(self._plan, self._storage, self._entry)
        unfinished = _unfinished(before)
        open_keys = {planned.run_key for planned in unfinished}
        self._ended = {key: one for one in before if (key := one.planned.run_key) not in open_keys}
        for point in recorded_points(self._storage, self._search)[: self._plan.experiment.search.trials]:
            self._enter(self._again(point), self._planned(point))
            self._number += 1
        return unfinished

    @property
    def left(self) -> int:
        """How many more there may be."""
        return len(self._waiting) + self._plan.experiment.search.trials - self._number

    def next(self) -> PlannedTrial | None:
        """Return the next trial; None where there is no more."""
        while not self._waiting and self.left:
            planned = self._propose()
            if planned is not None:
                return planned
        return self._waiting.popleft() if self._waiting else None

    def learn(self, ended: Ended) -> None:
        """Tell Optuna how a trial ended. One that ended for now only is still as good as running."""
        key = ended.planned.run_key
        if ended.state in ("done", "stopped", "failed"):
            self._ended[key] = Tried(planned=ended.planned, state=ended.state, score=ended.score, epoch=ended.epoch)
            for asked in self._asked.pop(key, []):
                self._tell(asked, self._ended[key])

    def _propose(self) -> PlannedTrial | None:
        """The trial of a new point; None where its point was proposed before."""
        seed = derive(self._plan.experiment.search.seed, f"proposal/{self._number}") % 2**32
        self._study.sampler = optuna.samplers.TPESampler(seed=seed)
        asked = self._study.ask()
        point = _choose(asked, self._axes)
        self._study.tell(asked, state=TrialState.FAIL)  # what counts is what is recorded
        stands = record_point(self._storage, self._search, self._number, point)
        self._number += 1
        planned = self._planned(stands)
        known = planned.run_key in self._ended or planned.run_key in self._asked
        self._enter(self._again(stands), planned)
        return None if known else planned

    def _again(self, point: Point) -> Any:
        """Optuna's trial of a point that is recorded."""
        names = {axis.path for axis in self._axes if axis.values}
        self._study.enqueue_trial({path: canonical(value) if path in names else value for path, value in point.items()})
        asked = self._study.ask()
        _choose(asked, self._axes)
        return asked

    def _enter(self, asked: Any, planned: PlannedTrial) -> None:
        """Keep Optuna's trial until it has ended, or tell it at once."""
        if planned.run_key in self._ended:
            self._tell(asked, self._ended[planned.run_key])
        else:
            self._asked.setdefault(planned.run_key, []).append(asked)

    def _tell(self, asked: Any, ended: Tried) -> None:
        if ended.state == "stopped" and ended.score is not None:
            asked.report(ended.score, step=ended.epoch)
            self._study.tell(asked, state=TrialState.PRUNED)
        elif ended.score is None:
            self._study.tell(asked, state=TrialState.FAIL)
        else:
            self._study.tell(asked, ended.score)

    def _planned(self, point: Point) -> PlannedTrial:
        experiment = self._plan.experiment
        return self._plan.plan(experiment.at(self._entry, point, seed=experiment.seeds[0]))


def _choose(asked: Any, axes: Sequence[Axis]) -> Point:
    """Let Optuna choose a value on each axis whose conditions hold."""
    point: Point = {}
    for axis in axes:
        if axis.holds(point):
            point[axis.path] = _value(asked, axis)
    return point


def _value(asked: Any, axis: Axis) -> Any:
    if axis.values:
        by_name = {canonical(value): value for value in axis.values}  # Optuna knows neither lists nor mappings
        return by_name[asked.suggest_categorical(axis.path, list(by_name))]
    if axis.whole:
        return asked.suggest_int(axis.path, *axis.ends, log=axis.log)
    return axis.rounded(asked.suggest_float(axis.path, *axis.ends, log=axis.log))
