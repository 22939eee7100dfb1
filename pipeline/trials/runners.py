"""Ways to run trials: in this process, many small ones by Ray Tune, or each over several processes by Ray Train."""

import math
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

import torch

from cluster.metrics import Traffic, hear, tell
from cluster.notices import notice
from cluster.resources import Resources
from cluster.storage import open_storage
from pipeline.planning.plan import PlannedTrial
from pipeline.trials.attempts import Ended, attempt, settle, under_claim
from pipeline.trials.lanes import Grouped, attempt_all, groups, in_order
from pipeline.trials.leaving import Agreed
from pipeline.trials.populations import hand_out, handed_on, moved, take_over
from pipeline.trials.tied import gathered, tied
from pipeline.trials.trials import Materials, Process
from pipeline.trials.tuning import (
    PLACE,
    TRIES,
    Supply,
    bundle_of,
    epoch_report,
    final_report,
    leave,
    place_of,
    told_by_train,
    tune_all,
)
from sskt.errors import InputError
from sskt.loop import Metrics
from sskt.metrics import main_metric

RunnerName = Literal["plain", "packed", "train", "populations"]
"""plain: one after the other in this process, without Ray; packed: Ray Tune, in actors that are used again, several a
device; train: Ray Tune, each trial over several processes by Ray Train; populations: as packed, but all in turns."""


@dataclass(frozen=True, kw_only=True)
class Demand:
    """What trials ask of the machines."""

    need: Resources
    """Of a trial, or of each of its workers."""
    workers: int = 1
    at_once: int = 1
    """Trials, or groups of them that step together, side by side."""
    lanes: int = 1
    """Trials of such a group, at most."""
    hung_after: float = 60
    profiled: bool = False
    compile: str = "none"
    channels_last: bool | None = None
    """None: on a CPU."""
    bucket_mb: float = 25


def run_plain(planned: PlannedTrial, materials: Materials, demand: Demand) -> Ended:
    """Run a trial in this process."""
    return attempt(planned, materials, replace(process_of(demand), hung_after=None))


def run_each(supply: Supply, demand: Demand, tell: Callable[[Ended], None], *, materials: Materials, **_: None) -> None:
    """Run trials in this process, one after the other or group after group."""
    for group in groups(supply, lanes=demand.lanes):
        for ended in attempt_all(group, materials, replace(process_of(demand), hung_after=None)):
            supply.learn(ended)
            tell(ended)


def run_packed(
    supply: Supply, demand: Demand, tell: Callable[[Ended], None], *, materials: Materials, **listeners: Any
) -> None:
    """Run trials by Ray Tune, each, or each group of them, in one process. A session has to be open.

    listeners: who hears of epochs, if anybody does: the `scheduler` and the `loggers` of `tune_all`.
    """
    from ray import tune  # only inside a session

    told = any(listener is not None for listener in listeners.values())
    trainable = tune.with_parameters(_packed_trial, materials=materials, demand=demand, told=told)
    grouped = Grouped(supply, lanes=demand.lanes, at_once=demand.at_once) if demand.lanes > 1 else None
    run = partial(tune_all, beside=grouped.beside) if grouped else tune_all
    run(grouped or supply, trainable, resources=place_of(demand.need), at_once=demand.at_once, tell=tell, **listeners)


def _packed_trial(config: dict[str, Any], *, materials: Materials, demand: Demand, told: bool) -> None:
    """What runs in an actor. Epochs are reported only where somebody wants to hear of them: it takes its time."""
    from ray import tune  # only inside a session

    planned, group = config["planned"], [config["planned"], *config["beside"]]
    process = replace(process_of(demand), leaving=notice().given, errand=config["errand"])
    if told:
        process = replace(process, report=lambda metrics: _report_epoch(planned, metrics, tune.report))
    # A process that is used again may be on a node that goes.
    going = [Ended(planned=one, state="leaving", reason="before its first step") for one in group]
    ends = going if notice().given() else in_order(group, attempt_all(group, materials, process))
    if any(ended.state == "leaving" for ended in ends):
        leave(*(replace(one, reason=f"{notice()}, {one.reason}") if one.state == "leaving" else one for one in ends))
    tune.report(final_report(*ends))


def _report_epoch(planned: PlannedTrial, metrics: Metrics, report: Callable[[dict[str, Any]], None]) -> None:
    """Report an epoch but for the last: a scheduler that then ends the trial would end it before its result is kept."""
    if metrics["epoch"] < planned.trial.training.epochs:
        report(epoch_report(metrics, metric=main_metric(multi_label=planned.facts.multi_label)))


def run_populations(
    supply: Supply, demand: Demand, tell: Callable[[Ended], None], *, materials: Materials, **listeners: Any
) -> None:
    """Run members of populations by Ray Tune, each in one process. A session has to be open.

    All of them are in Tune's hands at once, and take turns where there is no room for all: they are to be compared.
    """
    import ray  # only inside a session
    from ray import tune

    machines = sum(node["Alive"] for node in ray.nodes())
    if machines > 1:
        raise InputError(
            f"scheduler.kind is 'pbt' on a cluster of {machines} machines; it has to be a single one, in a folder of "
            "which members hand their states on; 'asha' runs on any number"
        )
    trainable = tune.with_parameters(_member, materials=materials, demand=demand)
    tune_all(supply, trainable, resources=place_of(demand.need), at_once=supply.left, tell=tell, **listeners)


def _member(config: dict[str, Any], *, materials: Materials, demand: Demand) -> None:
    """What runs in an actor while it is a member's turn. Claims are not for those who change actors all the time."""
    from ray import tune  # only inside a session

    storage = open_storage(materials.storage_uri)
    planned: PlannedTrial = config["planned"]
    planned = moved(planned, {path: config[path] for path in planned.trial.point})
    handed, states = tune.get_checkpoint(), {}
    if handed is not None:
        with handed.as_directory() as folder:
            states = handed_on(folder)
    lineage = take_over(planned, storage, states)

    def report(told: dict[str, Any]) -> None:
        with tempfile.TemporaryDirectory() as folder:
            hand_out(planned.run_key, storage, folder)
            tune.report(told, checkpoint=tune.Checkpoint.from_directory(folder))

    process = replace(
        process_of(demand),
        carried={"lineage": lineage},
        report=lambda metrics: _report_epoch(planned, metrics, report),
    )
    tune.report(final_report(settle(planned, materials, process)))


def run_distributed(
    supply: Supply, demand: Demand, tell: Callable[[Ended], None], *, materials: Materials, **listeners: Any
) -> None:
    """Run trials by Ray Tune, each by a Ray Train of its own. A session has to be open."""
    import ray
    from ray import tune

    shared = [ray.put(materials)]  # in a list it stays a reference until a worker asks for it
    trainable = tune.with_parameters(_distributed_trial, shared=shared, demand=demand)
    # The function only waits, on the head: any part of a CPU it took would be missing to the workers that it starts.
    resources = {"cpu": 0, "node:__internal_head__": 0.001}
    at_once = demand.at_once
    # One that a scheduler stops while it waits cannot be used again.
    tune_all(supply, trainable, resources=resources, at_once=at_once, tell=tell, reuse=False, **listeners)


def _distributed_trial(config: dict[str, Any], *, shared: list[Any], demand: Demand) -> None:
    from ray import tune

    def report(ended: Ended) -> None:
        tune.report(final_report(ended))

    callbacks, errand = (told_by_train(),), config["errand"]
    report(run_train(config["planned"], shared, demand, left=report, callbacks=callbacks, errand=errand))


def run_train(
    planned: PlannedTrial,
    shared: list[Any],
    demand: Demand,
    *,
    left: Callable[[Ended], None] = lambda ended: None,
    callbacks: tuple[Any, ...] = (),
    errand: str = "",
) -> Ended:
    """Run a trial by Ray Train over `demand.workers` processes. A session has to be open.

    shared: one reference to the materials; left: told each time its processes leave, to go on elsewhere.
    """
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    from pipeline.trials import gloo

    def train() -> Ended:
        with tempfile.TemporaryDirectory(prefix="sskt-train-") as folder:
            trainer = TorchTrainer(
                _train_worker,
                train_loop_config={"planned": planned, "shared": shared, "demand": demand},
                torch_config=gloo.Config(),
                scaling_config=ScalingConfig(
                    num_workers=demand.workers,
                    use_gpu=demand.need.gpus > 0,
                    resources_per_worker=bundle_of(demand.need),
                    label_selector=dict(demand.need.labels) or None,
                ),
                # Our own checkpoints carry a training over a restart; Train's state is not read again.
                run_config=RunConfig(
                    name=planned.run_key,
                    storage_path=folder,
                    failure_config=FailureConfig(max_failures=TRIES - 1),
                    callbacks=list(callbacks),
                ),
            )
            with _own_interrupts():
                ended, traffic = trainer.fit().return_value
        hear(traffic)
        return ended

    def start() -> Ended:
        while (ended := train()).state == "leaving":
            left(replace(ended, reason=f"a node that goes, {ended.reason}"))
        return ended

    with under_claim(planned, ray.get(shared[0]).storage_uri, errand=errand) as claim:
        return claim if isinstance(claim, Ended) else start()


@contextmanager
def _own_interrupts() -> Iterator[None]:
    """Ray Train puts its own handler on Ctrl-C and leaves it there, so that later stages would not stop."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as end:  # what its handler makes of Ctrl-C
        raise KeyboardInterrupt from end
    finally:
        if signal.getsignal(signal.SIGINT) is not handler:
            signal.signal(signal.SIGINT, handler)


def _train_worker(config: dict[str, Any]) -> tuple[Ended, Traffic]:
    """What runs in each process of Ray Train; returns how the trial ended, and the requests that took."""
    import ray
    import ray.train
    from ray.train.torch import get_device

    context, demand = ray.train.get_context(), config["demand"]
    planned, world, device = config["planned"], context.get_world_size(), get_device()
    gather = partial(gathered, world=world)
    process = replace(
        process_of(demand),
        device=device,
        rank=context.get_world_rank(),
        world=world,
        prepare=partial(tied, world=world, bucket_mb=demand.bucket_mb),
        gather=gather,
        leaving=Agreed(notice().given, gather, device=device),
        report=lambda metrics: _report_epoch(planned, metrics, _report_with_place),
    )
    return settle(planned, ray.get(config["shared"][0]), process), tell()


def _report_with_place(told: dict[str, Any]) -> None:
    """Report from a process of Ray Train, with what has to be given back if a scheduler then stops the trial."""
    import ray.train
    from ray.util import get_current_placement_group

    ray.train.report(told | {PLACE: get_current_placement_group().id.hex()})


def process_of(demand: Demand) -> Process:
    """The process that a trial runs on, as far as that is the same for all runners."""
    return Process(
        device=torch.device("cuda" if demand.need.gpus else "cpu"),
        threads=max(1, math.floor(demand.need.cpus)),
        hung_after=demand.hung_after,
        side_by_side=demand.at_once,
        profiled=demand.profiled,
        compile=demand.compile,
        channels_last=demand.need.gpus == 0 if demand.channels_last is None else demand.channels_last,
    )
