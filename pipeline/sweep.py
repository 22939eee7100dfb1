"""The sweep: every trial of an experiment that has no result yet, each one once."""

from collections.abc import Callable
from dataclasses import dataclass, field

from cluster.resources import cluster_resources, concurrency
from cluster.session import start_session
from cluster.storage import Storage
from pipeline.plan import Plan, PlannedTrial
from pipeline.progress import Progress
from pipeline.results import read_result
from pipeline.runners import Finished, run_tune
from pipeline.trials import gather_materials
from sskt.errors import SsktError

CHUNK = 1000
"""Trials per Tuner: Tune writes its whole state again and again, and what it holds grows with it."""


@dataclass
class SweepOutcome:
    """What a run of the stage did."""

    found: int
    done: int = 0
    at_once: int = 1
    """How many trials ran side by side."""
    seconds: float = 0
    """Time the trials done now took, summed."""
    failures: dict[str, str] = field(default_factory=dict)
    """Reason by run key."""


def sweep(plan: Plan, storage: Storage) -> SweepOutcome:
    """Run what is missing. The caches have to be whole."""
    pending = [planned for planned in plan.trials if read_result(storage, planned.run_key) is None]
    outcome = SweepOutcome(found=len(plan.trials) - len(pending))
    if not pending:
        return outcome
    materials = gather_materials(plan, storage, pending)
    need = plan.experiment.resources.trial
    start_session()
    outcome.at_once = concurrency(cluster_resources(), need)
    with Progress("sweep", total=len(pending), unit="trials") as progress:
        tell = _teller(outcome, progress, {planned.run_key: planned for planned in pending})
        for first in range(0, len(pending), CHUNK):
            run_tune(pending[first : first + CHUNK], materials, need=need, at_once=outcome.at_once, tell=tell)
    results = [read_result(storage, planned.run_key) for planned in pending]
    outcome.seconds = sum(result["seconds"] for result in results if result is not None)
    lost = results.count(None) - len(outcome.failures)
    if lost:
        raise SsktError(
            f"{lost} of {len(pending)} trials ended with neither a result nor a reason; run the sweep again"
        )
    return outcome


def _teller(outcome: SweepOutcome, progress: Progress, planned: dict[str, PlannedTrial]) -> Callable[[Finished], None]:
    def tell(finished: Finished) -> None:
        name = f"{planned[finished.run_key].trial.label}, seed {planned[finished.run_key].trial.seed}"
        if finished.failure is None:
            outcome.done += 1
        else:
            outcome.failures[finished.run_key] = finished.failure
        progress.advance(note=name + (" failed" if finished.failure else " done"))

    return tell
