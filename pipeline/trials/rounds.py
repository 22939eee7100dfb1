"""Rounds of a sweep: trials out of memory are run again with more room, those of other runs when they are over."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from cluster.metrics import put
from cluster.resources import Resources, concurrency
from cluster.storage import Storage
from pipeline.caches.claims import Watch
from pipeline.planning.plan import PlannedTrial
from pipeline.trials.attempts import Ended, done, trial_claim
from pipeline.trials.leaving import leaving_line
from pipeline.trials.results import Result, read_result
from pipeline.trials.runners import Demand
from pipeline.trials.tuning import Fixed, Supply

LOOK_SECONDS = 1.0
"""How often is looked at trials that another run trains now."""

Say = Callable[[str], None]
Run = Callable[[Supply, Demand, Callable[[Ended], None]], None]
"""Runs a supply and tells how each of its trials ended."""


class Again(Fixed):
    """Trials that were handed out before; their supply hears how they end now."""

    def __init__(self, trials: Iterable[PlannedTrial], supply: Supply) -> None:
        super().__init__(trials)
        self._supply = supply

    def learn(self, ended: Ended) -> None:
        """Pass it on."""
        self._supply.learn(ended)


@dataclass(frozen=True, kw_only=True)
class Rounds:
    """Runs supplies until every trial has ended for good."""

    storage: Storage
    run: Run
    nodes: Callable[[], Sequence[Resources]]
    """What the nodes of the cluster have."""
    enter: Callable[[Ended], None]
    """Told how each trial ended for good."""
    say: Say

    def go(self, supply: Supply, demand: Demand) -> None:
        """Run a supply, then what is left of it, and so on."""
        handed = supply
        while handed.left:
            open_ones: list[Ended] = []
            self.run(handed, demand, self._sorter(open_ones, demand))
            starved = [ended for ended in open_ones if ended.state == "starved"]
            busy = [ended.planned for ended in open_ones if ended.state == "busy"]
            put("sskt_trials", len(busy), state="busy")
            wider = self._wider(starved, demand)
            again = [ended.planned for ended in starved] if wider else []
            handed = Again([*again, *(busy if again else self._waited_for(busy))], supply)
            demand = wider or demand

    def _sorter(self, open_ones: list[Ended], demand: Demand) -> Callable[[Ended], None]:
        def tell(ended: Ended) -> None:
            if ended.state == "leaving":  # Tune starts it again by itself
                self.say(f"sweep   {leaving_line(ended, nodes=self.nodes(), need=demand.need)}")
            elif ended.state in ("starved", "busy"):
                open_ones.append(ended)
            else:
                self.enter(ended)

        return tell

    def _wider(self, starved: Sequence[Ended], demand: Demand) -> Demand | None:
        """More room for those that ran out of memory; for one that had it all, that is how it failed."""
        wider = roomier(demand, self.nodes) if starved else None
        if wider and demand.lanes > 1:
            self.say(
                f"sweep   {len(starved)} trials ran out of memory, or their process died, with up to {demand.lanes} in "
                f"one: again with {wider.lanes}"
            )
        elif wider:
            self.say(
                f"sweep   {len(starved)} trials ran out of memory with {demand.at_once} side by side: "
                f"again with {wider.at_once}"
            )
        for ended in starved if wider is None else ():
            self.enter(replace(ended, state="failed", reason=f"out of memory with nothing beside it: {ended.reason}"))
        return wider

    def _waited_for(self, busy: Sequence[PlannedTrial]) -> list[PlannedTrial]:
        """Those of some busy trials that were given up, or may have been."""
        if not busy:
            return []
        self.say(f"sweep   waiting for {len(busy)} trials that another run is training")
        results = wait_for_others(busy, self.storage)
        for planned in busy:
            if planned.run_key in results:
                self.enter(replace(done(planned, results[planned.run_key]), seconds=0))
        return [planned for planned in busy if planned.run_key not in results]


def wait_for_others(busy: Sequence[PlannedTrial], storage: Storage) -> dict[str, Result]:
    """Wait until one of some trials is no longer trained by another run, or all have results: those that have one."""
    watch = Watch(storage)
    while True:
        results = {planned.run_key: read_result(storage, planned.run_key) for planned in busy}
        found = {run_key: result for run_key, result in results.items() if result is not None}
        lives = [watch.lives(trial_claim(planned.run_key)) for planned in busy if planned.run_key not in found]
        if not lives or not all(lives):
            return found
        time.sleep(LOOK_SECONDS)


def roomier(demand: Demand, nodes: Callable[[], Sequence[Resources]]) -> Demand | None:
    """Half as many trials in a process, then side by side, with more of their device; None where each has all."""
    gpus = demand.need.gpus
    if demand.lanes > 1:
        return replace(demand, lanes=demand.lanes // 2)
    if demand.at_once == 1 or gpus >= 1:
        return None
    need = replace(demand.need, gpus=min(1.0, 2 * gpus)) if gpus else demand.need
    fits = concurrency(nodes(), need, workers=demand.workers)
    return replace(demand, need=need, at_once=min(demand.at_once // 2, fits))
