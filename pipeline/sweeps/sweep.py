"""The sweep: every trial of an experiment that has no result yet, each one once."""

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from cluster.logs import event
from cluster.metrics import put
from cluster.resources import cluster_nodes, concurrency
from cluster.session import is_local, start_session
from cluster.storage import Storage
from pipeline.planning.plan import Plan, PlannedTrial
from pipeline.planning.settings import ResourceSettings
from pipeline.progress import Progress
from pipeline.sweeps.fusing import choose_lanes, paces, paces_on_cluster, why_processes
from pipeline.sweeps.search import table_trials
from pipeline.sweeps.standings import Standings
from pipeline.trials.attempts import Ended
from pipeline.trials.leaving import leaving_line
from pipeline.trials.loggers import make_loggers, where_told
from pipeline.trials.results import (
    Result,
    existing_results,
    older_names,
    older_results,
    read_failure,
    read_result,
    write_failure,
)
from pipeline.trials.rounds import Rounds, Say, wait_for_others
from pipeline.trials.runners import (
    Demand,
    RunnerName,
    run_distributed,
    run_each,
    run_packed,
    run_plain,
    run_populations,
    run_train,
)
from pipeline.trials.telling import named
from pipeline.trials.trials import Materials, gather_materials
from pipeline.trials.tuning import TRIES, Fixed, Supply
from sskt.errors import SsktError
from sskt.networks.tapped import imitates_bfloat16

SLOWED = (
    "this processor has no instructions for bfloat16 and trains several times as slow in it; float32 is quicker: "
    "--set target.precision=float32"
)


@dataclass
class SweepOutcome:
    """What a run of the stage did."""

    found: int = 0
    done: int = 0
    stopped: int = 0
    at_once: int = 1
    """How many trials ran side by side."""
    seconds: float = 0
    """Time the trials done now took, summed."""
    failures: dict[str, str] = field(default_factory=dict)
    """Reason by run key."""


class Sweep:
    """Runs trials of one plan and keeps account of them."""

    def __init__(self, plan: Plan, storage: Storage, *, say: Say) -> None:
        self.plan, self.storage, self.say = plan, storage, say
        self.outcome = SweepOutcome()

    def run_missing(self, trials: Sequence[PlannedTrial]) -> None:
        """Run those of some trials that have no result."""
        existing = existing_results(self.storage)
        pending = [planned for planned in trials if planned.run_key not in existing]
        self.outcome.found += len(trials) - len(pending)
        put("sskt_trials", self.outcome.found, state="found")
        self._tell_older(pending, existing)
        if pending:
            self.run(Fixed(pending), trials=pending)

    def run(self, supply: Supply, *, trials: Sequence[PlannedTrial], scheduler: Any = None) -> None:
        """Run a supply to its end.

        trials: what it hands out reads no more caches than these.
        """
        resources, total = self.plan.experiment.resources, supply.left
        scheduled = self.plan.experiment.scheduler.kind if scheduler else "fifo"
        log_to, name = self.plan.experiment.log_to, self.plan.experiment.name
        runner, reason = choose_runner(
            resources, trials=total, local=is_local(), scheduler=scheduled, logged=log_to is not None
        )
        materials = gather_materials(self.plan, self.storage, list(trials))
        demand = make_demand(resources, runner)
        self.outcome.at_once = demand.at_once
        demand = self._with_lanes(demand, supply, trials, runner=runner, materials=materials)
        self.say(f"sweep   {total} trials to run: {runner}, {reason}; {demand.at_once} side by side")
        for line in where_told(log_to) if log_to else ():
            self.say(f"sweep   {line}")
        if is_slowed(self.plan):
            self.say(f"sweep   {SLOWED}")
        loggers = partial(make_loggers, log_to, name, say=self.say) if log_to else None
        with Progress("sweep", total=total, unit="trials") as progress:
            standings = Standings(progress)
            rounds = Rounds(
                storage=self.storage,
                run=partial(RUNNERS[runner], materials=materials, scheduler=scheduler, loggers=loggers),
                nodes=cluster_nodes,
                enter=lambda ended: self._enter(ended, standings),
                say=self.say,
            )
            rounds.go(supply, demand)

    def _with_lanes(
        self,
        demand: Demand,
        supply: Supply,
        trials: Sequence[PlannedTrial],
        *,
        runner: RunnerName,
        materials: Materials,
    ) -> Demand:
        """How many trials step together, said where it was asked for."""
        experiment = self.plan.experiment
        known, logged = isinstance(supply, Fixed), experiment.log_to is not None
        against = why_processes(runner, known=known, logged=logged, streamed=self.plan.streamed)
        measure = partial(paces if runner == "plain" else paces_on_cluster, materials=materials, demand=demand)
        lanes, why = choose_lanes(trials, experiment.resources, against=against, pace=measure)
        if experiment.resources.packing != "processes":
            how = "each in a process of its own" if lanes == 1 else f"up to {lanes} step together in a process"
            self.say(f"sweep   {how}, {why}")
        return replace(demand, lanes=lanes)

    def _enter(self, ended: Ended, standings: Standings) -> None:
        """Take in how a trial ended for good."""
        outcome = self.outcome
        outcome.seconds += ended.seconds
        outcome.done += ended.state == "done"
        outcome.stopped += ended.state == "stopped"
        if ended.state == "failed":
            ended = replace(ended, reason=self._recorded(ended))
            outcome.failures[ended.planned.run_key] = ended.reason
        tell_end(ended)
        standings.enter(ended)

    def _recorded(self, ended: Ended) -> str:
        """Why a trial failed; what its process could not record itself is recorded now."""
        said = read_failure(self.storage, ended.planned.run_key)
        if said is not None and not ended.died and said.reason == ended.reason:
            return ended.reason
        # One that hung has said so before its process ended itself.
        reason = said.reason if said is not None and said.reason.startswith("hung") else ended.reason
        write_failure(self.storage, ended.planned.run_key, reason, tries=TRIES if ended.died else 1)
        return reason

    def _tell_older(self, pending: Sequence[PlannedTrial], existing: set[str]) -> None:
        """Say so where results would be found but for the versions of what made them."""
        caches = [cache for by_name in self.plan.caches_for(pending).values() for cache in by_name.values()]
        names = older_names(caches)
        older = Counter(older_results(planned, existing, names=names) for planned in pending)
        for version, count in older.items():
            if version is not None:
                self.say(
                    f"sweep   {count} trials have results of {version}, whose figures may differ from those of "
                    "this version: they are trained again"
                )


def tell_end(ended: Ended) -> None:
    """Log how a trial ended for good."""
    level = logging.WARNING if ended.state == "failed" else logging.INFO
    told = {"state": ended.state, "reason": ended.reason, "epoch": ended.epoch, "score": ended.score}
    event("trial_ended", level=level, **named(ended.planned), **told, seconds=ended.seconds)


def choose_runner(
    resources: ResourceSettings, *, trials: int, local: bool, scheduler: str = "fifo", logged: bool = False
) -> tuple[RunnerName, str]:
    """Which runner fits, and why."""
    if scheduler == "pbt":
        return "populations", "for their trials go on from each other"
    if resources.runner != "auto":
        return resources.runner, "as resources.runner says"
    if resources.workers > 1:
        return "train", f"for each is trained by {resources.workers} workers"
    if trials == 1 and local and scheduler == "fifo" and not logged:
        return "plain", "for one trial on this machine needs no Ray"
    return "packed", "each in one process that is used again"


def is_slowed(plan: Plan) -> bool:
    """Whether trials will run on this machine's processor in a precision it has no instructions for."""
    on_processor = is_local() and not plan.experiment.resources.trial.gpus
    return on_processor and plan.experiment.target.precision == "bfloat16" and imitates_bfloat16()


def make_demand(resources: ResourceSettings, runner: RunnerName) -> Demand:
    """What trials ask for, and how many of them fit; starts the session that is needed."""
    demand = Demand(
        need=resources.trial,
        workers=resources.workers,
        hung_after=resources.hung_after,
        compile=resources.compile,
        channels_last=resources.channels_last,
        bucket_mb=resources.bucket_mb,
    )
    if runner == "plain":
        return demand
    start_session()
    return replace(demand, at_once=concurrency(cluster_nodes(), demand.need, workers=demand.workers))


RUNNERS: dict[RunnerName, Callable[..., None]] = {
    "plain": run_each,
    "packed": run_packed,
    "train": run_distributed,
    "populations": run_populations,
}


def sweep(plan: Plan, storage: Storage, *, say: Say) -> SweepOutcome:
    """Run what is missing: what a search has still to try, then the trials of the table. Caches have to be whole."""
    if plan.experiment.search is not None:
        search(plan, storage, say=say)
    trials, run = table_trials(plan, storage), Sweep(plan, storage, say=say)
    run.run_missing(trials)
    outcome = run.outcome
    lost = len(trials) - outcome.found - outcome.done - len(outcome.failures)
    if lost:
        raise SsktError(f"{lost} of {len(trials)} trials ended with neither a result nor a reason; run the sweep again")
    return outcome


def search(plan: Plan, storage: Storage, *, say: Say) -> None:
    """Try what a search has still to try. A trial of it that fails is a finding, not a failure of the sweep."""
    # Schedulers are Ray's, and a search that has tried everything needs none.
    from pipeline.sweeps.suggestions import population_supply, search_supply

    populations = plan.experiment.scheduler.kind == "pbt"
    supply = population_supply(plan, storage) if populations else search_supply(plan, storage)
    if not supply.left:
        return
    from pipeline.sweeps.schedulers import make_scheduler

    run = Sweep(plan, storage, say=say)
    run.run(supply, trials=plan.possible, scheduler=make_scheduler(plan, storage))
    outcome = run.outcome
    say(f"search  {outcome.done} trials done now, {outcome.stopped} stopped early, {len(outcome.failures)} failed")


def run_one(
    planned: PlannedTrial, plan: Plan, storage: Storage, *, in_process: bool, profiled: bool = False, say: Say
) -> Result:
    """Train one trial in this process or by Ray Train, or wait for the run that trains it now."""
    materials = gather_materials(plan, storage, [planned])
    demand = make_demand(plan.experiment.resources, "plain" if in_process else "train")
    demand = replace(demand, profiled=profiled)
    if is_slowed(plan):
        say(f"train   {SLOWED}")
    while True:
        ended = run_plain(planned, materials, demand) if in_process else _trained(planned, materials, demand, say=say)
        if ended.state == "busy":
            say("train   waiting for another run that trains the same")
            wait_for_others([planned], storage)
            continue
        tell_end(ended)
        result = read_result(storage, planned.run_key)
        if result is None:
            raise SsktError(ended.reason)
        return result


def _trained(planned: PlannedTrial, materials: Materials, demand: Demand, *, say: Say) -> Ended:
    import ray  # only inside a session

    def left(ended: Ended) -> None:
        say(f"train   {leaving_line(ended, nodes=cluster_nodes(), need=demand.need)}")

    return run_train(planned, [ray.put(materials)], demand, left=left)
