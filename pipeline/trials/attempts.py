"""One attempt at a trial: under a claim, watched, and with an ending that can be told, whatever happens."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Literal

import torch

from cluster.metrics import working
from cluster.storage import Storage, open_storage
from pipeline.caches.claims import Claim, TakenOverError, Watch, claimed
from pipeline.planning.plan import PlannedTrial
from pipeline.trials.results import Result, read_result, write_failure
from pipeline.trials.telling import STAGE, training
from pipeline.trials.trials import Materials, Process, trial_steps
from pipeline.trials.watchdog import watching
from sskt.errors import DivergedError, LeavingError, SsktError
from sskt.loop import Metrics, Steps, alone

State = Literal["done", "failed", "stopped", "starved", "busy", "leaving"]
"""done: it has a result; failed: with a reason; stopped: early, by a scheduler; starved: of memory; busy: another run
is training it now; leaving: a node that is going, with all its steps saved."""


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a trial ended, for now."""

    planned: PlannedTrial
    state: State
    score: float | None = None
    """Its validation metric in %, of the last epoch; None where there is none."""
    reason: str = ""
    epoch: int = 0
    """Epochs it has behind it."""
    seconds: float = 0
    """How long it trained now; 0 where its result was found."""
    metrics: Metrics = field(default_factory=dict)
    """Those of the last epoch, of one that is done."""
    died: bool = False
    """Whether its process ended without a word, as often as it may be started."""


def trial_claim(run_key: str) -> str:
    """Key of the claim on a trial, while it is being trained."""
    return f"claims/{run_key}.claim"


def attempt(planned: PlannedTrial, materials: Materials, process: Process) -> Ended:
    """Run a trial in this process, unless another run does so now."""
    return alone(attempting(planned, materials, process))


def attempting(planned: PlannedTrial, materials: Materials, process: Process) -> Steps[Ended]:
    """What `attempt` does, step by step."""
    with (
        working(experiment=materials.experiment, stage=STAGE),
        under_claim(planned, materials.storage_uri, errand=process.errand) as claim,
    ):
        if isinstance(claim, Ended):
            return claim
        return (yield from settling(planned, materials, replace(process, saved=claim.insist)))


@contextmanager
def under_claim(planned: PlannedTrial, storage_uri: str, *, errand: str = "") -> Iterator[Claim | Ended]:
    """Hold the claim of a trial; where that is not for us, give how it ended before, or that another run trains it."""
    storage, key = open_storage(storage_uri), trial_claim(planned.run_key)
    found = read_result(storage, planned.run_key)
    if found is not None:
        yield replace(done(planned, found), seconds=0)
    elif Watch(storage, errand=errand).lives(key):  # removes the claim of an earlier try, and of one that died here
        yield Ended(planned=planned, state="busy")
    else:
        with claimed(storage, [key], errand=errand) as claims:
            yield claims.get(key) or Ended(planned=planned, state="busy")


def settle(planned: PlannedTrial, materials: Materials, process: Process) -> Ended:
    """Run a trial whose claim is held. An error of ours is a finding about it, no reason to start the process anew."""
    return alone(settling(planned, materials, process))


def settling(planned: PlannedTrial, materials: Materials, process: Process) -> Steps[Ended]:
    """What `settle` does, step by step."""
    storage = open_storage(materials.storage_uri)
    told = training(planned, materials.experiment, first=process.rank == 0)
    try:
        with told, _watched(planned, storage, process) as watched:
            return done(planned, (yield from trial_steps(planned, materials, watched)))
    except LeavingError as error:
        return Ended(planned=planned, state="leaving", reason=str(error))
    except TakenOverError as error:
        return Ended(planned=planned, state="busy", reason=str(error))
    except SsktError as error:
        return _failed(planned, storage, error, process=process)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        reason = str(error).splitlines()[0]
    # Outside of the handler, whose error holds the frames that hold the tensors.
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return Ended(planned=planned, state="starved", reason=reason)


@contextmanager
def _watched(planned: PlannedTrial, storage: Storage, process: Process) -> Iterator[Process]:
    """The process with a watchdog, where somebody would start it anew."""
    if process.hung_after is None:
        yield process
        return

    def tell(reason: str) -> None:
        if process.rank == 0:
            write_failure(storage, planned.run_key, reason)

    with watching(tell, floor=process.hung_after) as pulse:
        # A report waits for the driver, however long that takes.
        yield replace(process, beat=pulse.beat, report=pulse.resting()(process.report), waiting=pulse.resting())


def done(planned: PlannedTrial, result: Result) -> Ended:
    """The ending of a trial with a result."""
    return Ended(
        planned=planned,
        state="done",
        score=result["validation"][result["metric"]],
        epoch=len(result["history"]),
        seconds=result["seconds"],
        metrics=result["history"][-1],
    )


def _failed(planned: PlannedTrial, storage: Storage, error: SsktError, *, process: Process) -> Ended:
    last = error.last if isinstance(error, DivergedError) else None  # the metrics of the last good epoch
    if process.rank == 0:
        write_failure(storage, planned.run_key, str(error), last=last)
    return Ended(planned=planned, state="failed", reason=str(error))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device or a machine had no memory left for a tensor."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)
