"""One trial, from its materials to its recorded result, on whatever process it runs."""

import functools
import os
import platform
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from cluster.storage import Storage, open_storage
from pipeline.checkpoints import Checkpoints
from pipeline.labels import load_manifest, read_cache
from pipeline.packed import read_packed
from pipeline.plan import Plan, PlannedTrial
from pipeline.results import Result, read_result, write_result
from pipeline.tensors import as_tensor
from sskt.encodings import get_encoding
from sskt.errors import DamagedError
from sskt.export import export_bytes
from sskt.feeds import CachedOutputs, ImageSet, ResidentFeed, Share, SourceOutputs
from sskt.loop import Context, Metrics, fit
from sskt.loop import Progress as TrainingProgress
from sskt.methods import Method, Task, get_method
from sskt.metrics import accuracy
from sskt.settings import SourceSettings
from sskt.sources import load_source
from sskt.views import Recipe


@dataclass(frozen=True, kw_only=True)
class Materials:
    """What the trials of an experiment share, as arrays: one copy a node in Ray's object store, however many."""

    images: np.ndarray
    labels: np.ndarray
    splits: np.ndarray
    payload: dict[str, dict[str, np.ndarray]]
    """By source, then by output: uint8 [P, M, bytes]."""
    encoding: str
    recipe: Recipe
    view_count: int
    sources: dict[str, SourceSettings]
    storage_uri: str


@dataclass(frozen=True, kw_only=True)
class Process:
    """The process a trial runs on, and how it is tied to its peers."""

    device: torch.device
    threads: int
    rank: int = 0
    world: int = 1
    prepare: Callable[[nn.Module], nn.Module] | None = None
    """Wraps a module for training over several processes; None moves it to the device."""
    average: Callable[[Tensor], Tensor] = lambda means: means
    report: Callable[[Metrics], None] = lambda metrics: None


def gather_materials(plan: Plan, storage: Storage, trials: list[PlannedTrial]) -> Materials:
    """Read and verify everything some trials train from. The caches have to be whole."""
    packed = read_packed(plan.packed, storage)
    payload: dict[str, dict[str, np.ndarray]] = {}
    for name, specs in plan.caches_for(trials).items():
        for output, spec in specs.items():
            manifest = load_manifest(storage, spec)
            if manifest is None:
                raise DamagedError(f"cache {spec.id} of source {name!r} is not whole; run `cache`")
            payload.setdefault(name, {})[output] = read_cache(storage, spec, manifest)
    return Materials(
        images=packed.images,
        labels=packed.labels,
        splits=packed.splits,
        payload=payload,
        encoding=plan.experiment.cache.encoding,
        recipe=plan.recipe,
        view_count=plan.experiment.views.count,
        sources={name: plan.experiment.sources[name] for name in plan.sources},
        storage_uri=storage.uri,
    )


def run_trial(planned: PlannedTrial, materials: Materials, process: Process) -> Result:
    """Train one target to its end and record the result; return the recorded one where there is one."""
    storage = open_storage(materials.storage_uri)
    found = read_result(storage, planned.run_key)
    if found is not None:
        return found
    reset_process(process.threads)
    feed = make_feed(planned, materials, process)
    method = make_method(planned, materials, feed=feed, process=process)
    checkpoints = Checkpoints(storage, planned.run_key)
    trial, began = planned.trial, time.perf_counter()
    context = Context(
        device=process.device,
        report=process.report,
        save=checkpoints.save if process.rank == 0 else lambda state: None,
        load=checkpoints.load,
        average=process.average,
    )
    progress = fit(method, feed, epochs=trial.training.epochs, seed=trial.seed, context=context)
    method.train(mode=False)
    test = accuracy(method.predict, feed.evaluation("test"))
    result = describe(planned, progress, test=test, process=process, seconds=time.perf_counter() - began)
    if process.rank == 0:
        storage.write(network_key(planned.run_key), export_trained(planned, method))
        write_result(storage, planned.run_key, result)
        checkpoints.clear()
    return result


def network_key(run_key: str) -> str:
    """Where a trial's trained target lies."""
    return f"networks/{run_key}.safetensors"


def reset_process(threads: int) -> None:
    """Forget what an earlier trial in the same process may have set."""
    torch.set_num_threads(threads)
    torch.set_default_dtype(torch.float32)
    torch.manual_seed(0)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


def make_feed(planned: PlannedTrial, materials: Materials, process: Process) -> ResidentFeed:
    """Put images and cached labels on the device and serve batches from them."""
    trial = planned.trial
    images = ImageSet(*(as_tensor(array) for array in (materials.images, materials.labels, materials.splits)))
    outputs: dict[str, SourceOutputs] = {}
    if planned.needs.outputs:
        for name in trial.sources:
            rows = materials.payload[name]
            payload = {output: as_tensor(rows[output]).to(process.device) for output in planned.needs.outputs}
            outputs[name] = CachedOutputs(payload, get_encoding(materials.encoding))
    return ResidentFeed(
        images.to(process.device),
        classes=planned.facts.classes,
        training=trial.training,
        recipe=materials.recipe,
        view_count=materials.view_count,
        seed=trial.seed,
        outputs=outputs,
        pool=planned.needs.pool,
        share=Share(rank=process.rank, world=process.world),
    )


def make_method(planned: PlannedTrial, materials: Materials, *, feed: ResidentFeed, process: Process) -> Method:
    """Build the trial's method with its networks and optimisers."""
    trial = planned.trial
    task = Task(
        facts=planned.facts,
        target=trial.target,
        training=trial.training,
        steps_per_epoch=feed.steps_per_epoch,
        seed=trial.seed,
        load_source=lambda name: load_source(name, materials.sources[name]),
        prepare=process.prepare or (lambda module: module.to(process.device)),
    )
    return get_method(trial.method)(task, trial.options)


def describe(
    planned: PlannedTrial, progress: TrainingProgress, *, test: float, process: Process, seconds: float
) -> Result:
    """Everything worth keeping of a finished training."""
    best = max(progress.history, key=lambda metrics: metrics["validation_accuracy"])
    return {
        "run_key": planned.run_key,
        "label": planned.trial.label,
        "spec": planned.spec,
        "test_accuracy": test,
        "validation_accuracy": progress.history[-1]["validation_accuracy"],
        "best_epoch": best["epoch"],
        "history": progress.history,
        "label_rows": progress.label_rows * process.world,
        "training_seconds": round(progress.seconds, 3),
        "seconds": round(seconds, 3),
        "processes": process.world,
        "versions": versions(),
    }


def export_trained(planned: PlannedTrial, method: Method) -> bytes:
    """The trained target alone, as a file that can be a source of other experiments."""
    return export_bytes(method.export(), settings=planned.trial.target, classes=planned.facts.classes)


@functools.cache
def versions() -> dict[str, str]:
    """What the training ran on."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return {"torch": torch.__version__, "python": platform.python_version(), "device": device, "commit": git_commit()}


def git_commit() -> str:
    """The commit of the code that runs, or nothing outside of a checkout."""
    folder = Path(__file__).parent
    answer = subprocess.run(
        ["git", "rev-parse", "HEAD"], cwd=folder, capture_output=True, text=True, check=False, env=os.environ
    )
    return answer.stdout.strip()
