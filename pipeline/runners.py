"""Ways to run trials: in this process, many small ones by Ray Tune, or one over several processes by Ray Train."""

import math
import signal
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed
from torch import Tensor

from cluster.resources import Resources
from cluster.storage import open_storage
from pipeline.plan import PlannedTrial
from pipeline.results import Result, write_failure
from pipeline.trials import Materials, Process, run_trial
from sskt.errors import SsktError
from sskt.loop import Metrics

TRIES = 2
"""How often a trial is started if its process dies."""


@dataclass(frozen=True)
class Finished:
    """A trial that has ended: well, or with a reason."""

    run_key: str
    failure: str | None = None


def run_plain(planned: PlannedTrial, materials: Materials, *, need: Resources) -> Result:
    """Run a trial in this process."""
    return run_trial(planned, materials, Process(device=_device(need), threads=_threads(need)))


def run_tune(
    trials: list[PlannedTrial],
    materials: Materials,
    *,
    need: Resources,
    at_once: int,
    tell: Callable[[Finished], None],
) -> None:
    """Run trials by Ray Tune, `at_once` side by side, in actors that are used again. A session has to be open."""
    from ray import tune  # only inside a session

    trainable = tune.with_parameters(_tune_trial, trials=trials, materials=materials, need=need)
    with tempfile.TemporaryDirectory(prefix="sskt-tune-") as folder:
        tune.Tuner(
            tune.with_resources(trainable, {"cpu": need.cpus, "gpu": need.gpus}),
            param_space={"trial": tune.grid_search(list(range(len(trials))))},
            tune_config=tune.TuneConfig(reuse_actors=True, max_concurrent_trials=at_once),
            # Tune's own state is never read again: results and checkpoints lie on the storage, under their run keys.
            run_config=tune.RunConfig(
                storage_path=folder,
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=TRIES - 1),
                callbacks=[_make_callback(trials, materials.storage_uri, tell)],
            ),
        ).fit()


def _tune_trial(config: dict[str, Any], *, trials: list[PlannedTrial], materials: Materials, need: Resources) -> None:
    """What runs in an actor. An error of ours is a finding about this trial, not a reason to restart the actor."""
    from ray import tune  # only inside a session

    planned = trials[config["trial"]]
    process = Process(device=_device(need), threads=_threads(need), report=tune.report)
    try:
        result = run_trial(planned, materials, process)
    except SsktError as error:
        write_failure(open_storage(materials.storage_uri), planned.run_key, str(error))
        tune.report({"failure": str(error)})
    else:
        tune.report(result["test"])


def _make_callback(planned: list[PlannedTrial], storage_uri: str, tell: Callable[[Finished], None]) -> Any:
    from ray import tune  # only inside a session

    class Callback(tune.Callback):
        """Passes the end of each trial on."""

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            run_key = planned[trial.config["trial"]].run_key
            tell(Finished(run_key, (trial.last_result or {}).get("failure")))

        def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            run_key = planned[trial.config["trial"]].run_key
            reason = _last_line(str(trial.get_error() or "its process died"))
            write_failure(open_storage(storage_uri), run_key, f"{reason} (after {TRIES} tries)")
            tell(Finished(run_key, reason))

    return Callback()


def run_train(planned: PlannedTrial, materials: Materials, *, need: Resources, workers: int) -> Result:
    """Run one trial by Ray Train over several processes. A session has to be open."""
    import ray
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    shared = ray.put(materials)
    with tempfile.TemporaryDirectory(prefix="sskt-train-") as folder:
        trainer = TorchTrainer(
            _train_worker,
            train_loop_config={"planned": planned, "materials": [shared], "need": need},
            scaling_config=ScalingConfig(
                num_workers=workers,
                use_gpu=need.gpus > 0,
                resources_per_worker={"CPU": need.cpus} | ({"GPU": need.gpus} if need.gpus else {}),
            ),
            # Our own checkpoints carry a training over a restart; Train's state is not read again.
            run_config=RunConfig(
                name=planned.run_key, storage_path=folder, failure_config=FailureConfig(max_failures=TRIES - 1)
            ),
        )
        with _own_interrupts():
            outcome = trainer.fit().return_value
    if "failure" in outcome:
        raise SsktError(outcome["failure"])
    result: Result = outcome
    return result


@contextmanager
def _own_interrupts() -> Iterator[None]:
    """Ray Train puts its own handler on Ctrl-C and leaves it there, so that later stages would not stop."""
    handler = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit as end:  # what its handler makes of Ctrl-C
        raise KeyboardInterrupt from end
    finally:
        signal.signal(signal.SIGINT, handler)


def _train_worker(config: dict[str, Any]) -> dict[str, Any]:
    """What runs in each process of Ray Train."""
    import ray
    import ray.train
    from ray.train.torch import get_device, prepare_model

    context, need = ray.train.get_context(), config["need"]
    world = context.get_world_size()
    device = get_device()

    def average(means: Tensor) -> Tensor:
        if world > 1:
            torch.distributed.all_reduce(means)
        return means / world

    def report(metrics: Metrics) -> None:
        ray.train.report(metrics)

    process = Process(
        device=device,
        threads=_threads(need),
        rank=context.get_world_rank(),
        world=world,
        prepare=lambda module: prepare_model(module, parallel_strategy="ddp" if world > 1 else None),
        average=average,
        report=report,
    )
    planned = config["planned"]
    materials = ray.get(config["materials"][0])
    try:
        return run_trial(planned, materials, process)
    except SsktError as error:  # a finding about this trial: starting it again would find the same
        if process.rank == 0:
            write_failure(open_storage(materials.storage_uri), planned.run_key, str(error))
        return {"failure": str(error)}


def _device(need: Resources) -> torch.device:
    return torch.device("cuda" if need.gpus else "cpu")


def _threads(need: Resources) -> int:
    return max(1, math.floor(need.cpus))


def _last_line(text: str) -> str:
    return text.strip().splitlines()[-1]
