"""Tune's schedulers for searches, one for each group of trials that may be compared. To be imported in a session."""

import logging
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from ray import tune
from ray.tune.schedulers import AsyncHyperBandScheduler, FIFOScheduler, PopulationBasedTraining, TrialScheduler
from ray.tune.search.sample import Domain

from cluster.storage import Storage
from pipeline.planning.plan import Plan, PlannedTrial
from pipeline.planning.space import Axis, Point
from pipeline.sweeps.search import search_id, tried
from pipeline.trials.results import Result, Stopped, read_results, write_stopped

Group = tuple[int, int]
"""Trials that may be compared: number of the entry of `methods`, and seed."""

Curve = list[tuple[int, float]]
"""Epochs and scores of a trial."""


def make_scheduler(plan: Plan, storage: Storage) -> "Grouped | None":
    """The scheduler of an experiment's search; None where every trial trains to its end."""
    kind = plan.experiment.scheduler.kind
    if kind == "asha":
        return Grouped(lambda group: Halving(plan, storage, entry=group[0]))
    if kind == "pbt":
        return Grouped(lambda group: make_population(plan, entry=group[0]))
    return None


class Grouped(FIFOScheduler):
    """Hands each trial to the scheduler of its group, so that methods never compete with each other for epochs."""

    def __init__(self, make: Callable[[Group], TrialScheduler]) -> None:
        super().__init__()
        self._make = make
        self._groups: dict[Group, tuple[TrialScheduler, Members]] = {}

    def on_trial_add(self, tune_controller: Any, trial: Any) -> None:
        """Begin the trial's group if it is the first of it."""
        group = group_of(trial)
        if group not in self._groups:
            self._groups[group] = (self._make(group), Members())
        scheduler, members = self._groups[group]
        members.trials.append(trial)
        scheduler.on_trial_add(members.seen_by(tune_controller), trial)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """What becomes of a trial after an epoch; its last report comes when it has ended by itself."""
        if "state" in result:
            return TrialScheduler.CONTINUE
        scheduler, members = self._groups[group_of(trial)]
        planned = trial.config["planned"]
        decision = scheduler.on_trial_result(members.seen_by(tune_controller), trial, result)
        if (
            trial.config["planned"] is not planned
        ):  # it was given a copy of another's settings, whose name is not its own
            trial.set_config(trial.config | {"planned": planned})
        return decision

    def on_trial_complete(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> None:
        """Its last epoch is known already."""

    def on_trial_remove(self, tune_controller: Any, trial: Any) -> None:
        """What is known of it stays."""

    def choose_trial_to_run(self, tune_controller: Any) -> Any:
        """Of the first group that has one that waits, the trial with the fewest epochs."""
        for _, members in self._groups.values():
            waiting = [trial for trial in members.trials if trial.status in ("PENDING", "PAUSED")]
            if waiting:
                return min(waiting, key=lambda trial: (trial.last_result or {}).get("epoch", 0))
        return None

    def __reduce__(self) -> tuple[Any, ...]:
        return FIFOScheduler, ()  # Tune pickles it, for a restart by Tune that never happens


def group_of(trial: Any) -> Group:
    """The group of one of Tune's trials."""
    planned: PlannedTrial = trial.config["planned"]
    return planned.trial.entry, planned.trial.seed


class Members:
    """The trials of a group, and what its scheduler sees of Tune: nobody else's trials."""

    search_alg = None
    """What hands out trials is none of its business; populations would refuse one."""

    def __init__(self) -> None:
        self.trials: list[Any] = []
        self._controller: Any = None

    def seen_by(self, controller: Any) -> "Members":
        """Stand in for Tune's own controller."""
        self._controller = controller
        return self

    def get_trials(self) -> list[Any]:
        """The trials of the group."""
        return self.trials

    def __getattr__(self, name: str) -> Any:
        return getattr(self._controller, name)


class Halving(AsyncHyperBandScheduler):
    """Asynchronous successive halving (arXiv 1810.05934) of one entry's trials, with a record of what it stops."""

    def __init__(self, plan: Plan, storage: Storage, *, entry: int) -> None:
        epochs = max(planned.trial.training.epochs for planned in plan.possible if planned.trial.entry == entry)
        settings = plan.experiment.scheduler
        super().__init__(
            time_attr="epoch",
            metric="score",
            mode="max",
            max_t=epochs,
            grace_period=settings.grace,
            reduction_factor=settings.factor,
            stop_last_trials=False,  # the last epoch is followed by the test
        )
        self._storage, self._search = storage, search_id(plan, entry)
        self._recall(plan, entry)

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Stop a trial that falls behind the others of its rung, and record why."""
        bound = self._bound(result["epoch"])
        decision: str = super().on_trial_result(tune_controller, trial, result)
        if decision == TrialScheduler.STOP:
            self._record(trial.config["planned"], result["epoch"], result["score"], bound=bound)
        return decision

    def _record(self, planned: PlannedTrial, epoch: int, score: float, *, bound: float) -> None:
        stopped = Stopped(
            run_key=planned.run_key,
            label=planned.trial.label,
            epoch=epoch,
            epochs=planned.trial.training.epochs,
            score=score,
            by="asha",
            reason=f"epoch {epoch}: {score:.1f} % is below {bound:.1f} %, the bound of its rung",
        )
        write_stopped(self._storage, self._search, planned.run_key, stopped)

    def _bound(self, epoch: int) -> float:
        """What is asked of a trial that comes to its rung now; Tune tells it nowhere."""
        bracket = self._brackets[0]
        rungs = (scores for milestone, scores in bracket._rungs if epoch >= milestone)
        bound = bracket.cutoff(next(rungs, {}))
        return float("-inf") if bound is None else float(bound)

    def _recall(self, plan: Plan, entry: int) -> None:
        """Fill the rungs with what trials of earlier runs reached."""
        for run_key, curve in known_curves(plan, self._storage, entry).items():
            trial = SimpleNamespace(trial_id=run_key)
            self.on_trial_add(None, trial)
            for epoch, score in curve:
                super().on_trial_result(None, trial, {"epoch": epoch, "score": score})
            self.on_trial_remove(None, trial)


def known_curves(plan: Plan, storage: Storage, entry: int) -> dict[str, Curve]:
    """How the trials of an entry's search went: those at their end epoch by epoch, those stopped where they were."""
    trials = tried(plan, storage, entry)
    done = read_results(storage, [one.planned.run_key for one in trials if one.state == "done"], reduce=_curve)
    stopped = {one.planned.run_key: [(one.epoch, one.score)] for one in trials if one.state == "stopped"}
    return {key: curve[:-1] for key, curve in done.items()} | stopped


def _curve(result: Result) -> Curve:
    name = f"validation_{result['metric']}"
    return [(metrics["epoch"], metrics[name]) for metrics in result["history"]]


def make_population(plan: Plan, *, entry: int) -> PopulationBasedTraining:
    """Population based training (arXiv 1711.09846): those behind go on from copies of those ahead, a little changed."""
    settings, axes = plan.experiment.scheduler, plan.experiment.axes_of(entry)
    logging.getLogger("ray.tune.schedulers.pbt").setLevel(logging.WARNING)  # lineages say what it would print
    return PopulationBasedTraining(
        time_attr="epoch",
        metric="score",
        mode="max",
        perturbation_interval=settings.every,
        quantile_fraction=settings.quantile,
        resample_probability=settings.resample,
        hyperparam_mutations={axis.path: _mutation(axis) for axis in axes},
        custom_explore_fn=lambda config: config | within(axes, config),
        log_config=False,
    )


def _mutation(axis: Axis) -> Domain | list[Any]:
    """How Tune draws a value anew; of a list it also goes to the next one."""
    if axis.values:
        return list(axis.values)
    low, high = axis.ends
    if axis.whole:
        return (tune.lograndint if axis.log else tune.randint)(low, high + 1)
    return (tune.loguniform if axis.log else tune.uniform)(low, high)


def within(axes: Sequence[Axis], config: Mapping[str, Any]) -> Point:
    """The values of a config that stand on ranges, brought back there: Tune multiplies, which may lead past an end."""
    return {axis.path: _nearest(axis, float(config[axis.path])) for axis in axes if not axis.values}


def _nearest(axis: Axis, value: float) -> float:
    low, high = axis.ends
    return min(max(round(value), low), high) if axis.whole else axis.rounded(value)
