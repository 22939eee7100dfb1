"""What a person chooses of the pipeline itself: caches, resources, searches, schedulers, loggers."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal
from urllib.parse import urlsplit

from cluster.resources import Resources
from sskt.encodings import get_encoding
from sskt.errors import InputError
from sskt.fidelity import Budget


@dataclass(frozen=True, kw_only=True)
class CacheSettings:
    """How the sources' outputs are computed and stored."""

    encoding: str = "fp16"
    """`fp32`, `fp16`, `u8` (a byte a value), `topK` such as `top10` (logits only); `auto` measures and chooses."""
    budget: Budget = field(default_factory=Budget)
    """What `auto` may change."""
    batch_size: int | None = None
    """Views a source sees at once; part of the cache's identity, for floating point depends on it. None is 256 on a
    GPU, and 32 on a CPU, whose caches hold no more of what passes through a network; `plan --measure` tries others."""

    def __post_init__(self) -> None:
        if self.encoding != "auto":
            get_encoding(self.encoding, "logits")
        if self.batch_size is not None and self.batch_size < 1:
            raise InputError(f"cache.batch_size is {self.batch_size}; it has to be at least 1")


@dataclass(frozen=True, kw_only=True)
class ResourceSettings:
    """What one piece of work may use."""

    cpus_per_trial: float = 1
    gpus_per_trial: float = 0
    """A fraction packs several trials on a device."""
    memory_gb_per_trial: float = 0
    """Counted by Ray, so that a node gets no more trials than its memory holds; 0 leaves it out of account."""
    trial_node_labels: dict[str, str] = field(default_factory=dict)
    """Which nodes trials run on, such as `{ray.io/accelerator-type: H100}`; docs/cluster.md."""
    workers: int = 1
    """Processes that one training is spread over; each gets what a trial gets."""
    runner: Literal["auto", "plain", "packed", "train"] = "auto"
    """Of a sweep. `plain`: one trial after the other, without Ray; `packed`: by Ray Tune, in processes that are used
    again; `train`: each by a Ray Train of its own, for trials of several workers; `auto` chooses."""
    packing: Literal["auto", "fused", "processes"] = "processes"
    """`fused`: trials of one architecture step together in one process, as one stacked network; `processes`: each has
    one of its own; `auto` measures both on this machine. docs/sweeps.md says which trials, and what differs."""
    lanes: int = 8
    """Trials that step together, at most; their memory adds up."""
    feed: Literal["auto", "resident", "streamed"] = "auto"
    """How trainings get their images. `resident`: all are in memory; `streamed`: a few parts at a time, in an order of
    its own; `auto` chooses by their bytes. docs/sweeps.md."""
    cpus_per_source_worker: float = 1
    gpus_per_source_worker: float = 0
    memory_gb_per_source_worker: float = 0
    source_node_labels: dict[str, str] = field(default_factory=dict)
    """Which nodes the sources run on."""
    node_cache_gb: float = 10
    """How much of a storage that is no folder each node keeps on its own disk; 0 turns that off. docs/storage.md."""
    compile: Literal["none", "default", "reduce-overhead"] = "none"
    """Whether targets are compiled by torch.compile; `reduce-overhead` makes CUDA graphs of them. Where it fails, they
    train as they are. It rounds as another machine would: no run key says it, nor `channels_last`."""
    channels_last: bool | None = None
    """Whether the weights of targets lie in memory with their channels last; None is where they train on a CPU, which
    is quicker so."""
    bucket_mb: float = 25
    """Gradients that processes of one training average at once, while the backward pass goes on: small buckets are on
    their way sooner, large ones are fewer."""
    hung_after: float = 60
    """Seconds without a training step, and 100 times the usual ones, after which a trial is started anew."""

    def __post_init__(self) -> None:
        if min(self.cpus_per_trial, self.cpus_per_source_worker) <= 0:
            raise InputError("resources.cpus_per_trial and cpus_per_source_worker have to be above 0")
        if min(self.gpus_per_trial, self.gpus_per_source_worker) < 0:
            raise InputError("resources.gpus_per_trial and gpus_per_source_worker have to be at least 0")
        for name in ("memory_gb_per_trial", "memory_gb_per_source_worker", "node_cache_gb"):
            if not getattr(self, name) >= 0:
                raise InputError(f"resources.{name} is {getattr(self, name)}; it has to be at least 0")
        for name in ("trial_node_labels", "source_node_labels"):
            _check_labels(name, getattr(self, name))
        if self.workers < 1:
            raise InputError(f"resources.workers is {self.workers}; it has to be at least 1")
        if not self.bucket_mb > 0:
            raise InputError(f"resources.bucket_mb is {self.bucket_mb}; it has to be above 0")
        if not self.hung_after >= 1:
            raise InputError(f"resources.hung_after is {self.hung_after}; it has to be at least 1 second")
        if self.workers > 1 and self.runner in ("plain", "packed"):
            raise InputError(
                f"resources.runner is {self.runner!r} with {self.workers} workers; several workers need 'train'"
            )
        if self.lanes < 2:
            raise InputError(f"resources.lanes is {self.lanes}; it has to be at least 2, or packing 'processes'")
        if self.packing == "fused" and (self.workers > 1 or self.runner == "train"):
            raise InputError(
                f"resources.packing is 'fused' with runner {self.runner!r} and {self.workers} workers; trials that "
                "step together have one process, by 'packed' or 'plain' with 1 worker"
            )
        if self.workers > 1 and self.gpus_per_trial % 1:
            raise InputError(
                f"resources.gpus_per_trial is {self.gpus_per_trial} with {self.workers} workers; "
                "several workers need whole GPUs, for NCCL allows one process a device"
            )

    @property
    def trial(self) -> Resources:
        """What a trial, or each of its workers, asks the cluster for."""
        memory = self.memory_gb_per_trial * 1e9
        return Resources(self.cpus_per_trial, self.gpus_per_trial, memory, self.trial_node_labels)

    @property
    def source_device(self) -> str:
        """The kind of device that sources run on."""
        return "cuda" if self.gpus_per_source_worker else "cpu"

    @property
    def source_threads(self) -> int:
        """Threads of a process that runs a source."""
        return max(1, math.floor(self.cpus_per_source_worker))

    @property
    def source_worker(self) -> Resources:
        """What a process that runs a source asks the cluster for."""
        memory = self.memory_gb_per_source_worker * 1e9
        return Resources(self.cpus_per_source_worker, self.gpus_per_source_worker, memory, self.source_node_labels)


_WORD = r"[A-Za-z0-9]([A-Za-z0-9_.-]{0,61}[A-Za-z0-9])?"


def _check_labels(field_name: str, labels: Mapping[str, str]) -> None:
    """Ray knows patterns too, which look like this too; only names and values are taken here."""
    for name, value in labels.items():
        if not (re.fullmatch(rf"([A-Za-z0-9.-]{{1,253}}/)?{_WORD}", name) and re.fullmatch(_WORD, value)):
            raise InputError(
                f"resources.{field_name} holds {name!r}: {value!r}; names and values have to be those of one label, as "
                "in `ray start --labels zone=a`: at most 63 letters, digits, '-', '_' and '.'"
            )


@dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """Which points of a space are tried, for each entry of `methods` by itself."""

    by: Literal["grid", "random", "optuna"]
    """`grid`: every combination; `random`: drawn; `optuna`: proposed from the scores so far."""
    axes: dict[str, Any] = field(default_factory=dict)
    """For all entries; those of one entry stand in its own `search`."""
    trials: int | None = None
    """Points per entry of `methods`; `grid` has no such number."""
    seed: int = 0
    """Of what is drawn; the trainings' own seeds are `seeds`."""

    def __post_init__(self) -> None:
        if (self.by == "grid") != (self.trials is None):
            raise InputError(
                f"search.trials is {self.trials} with by {self.by!r}; it has to be left out for 'grid', which tries "
                "every combination, and at least 1 for 'random' and 'optuna'"
            )
        if self.trials is not None and self.trials < 1:
            raise InputError(f"search.trials is {self.trials}; it has to be at least 1")


@dataclass(frozen=True, kw_only=True)
class SchedulerSettings:
    """What happens to the trials of a search in mid-training."""

    kind: Literal["fifo", "asha", "pbt"] = "fifo"
    """`fifo` trains all to the end; `asha` stops those behind; `pbt` replaces those behind by changed copies."""
    grace: int = 1
    """asha: epochs that every trial gets."""
    factor: int = 3
    """asha: of so many trials that reach a rung one goes on, and the next rung is so many times as far."""
    every: int = 1
    """pbt: epochs between two comparisons."""
    quantile: float = 0.25
    """pbt: the part of a population that is replaced by the same part from its top."""
    resample: float = 0.25
    """pbt: how often a value is drawn anew rather than changed a little."""

    def __post_init__(self) -> None:
        for name, least in (("grace", 1), ("factor", 2), ("every", 1)):
            value = getattr(self, name)
            if value < least:
                raise InputError(f"scheduler.{name} is {value}; it has to be at least {least}")
        if not 0 < self.quantile <= 0.5:
            raise InputError(f"scheduler.quantile is {self.quantile}; it has to be above 0 and at most 0.5")
        if not 0 <= self.resample <= 1:
            raise InputError(f"scheduler.resample is {self.resample}; it has to be within 0 and 1")
        others = {"asha": ("every", "quantile", "resample"), "pbt": ("grace", "factor")}
        for name in others.get(self.kind, (*others["asha"], *others["pbt"])):
            if getattr(self, name) != getattr(type(self), name):
                owner = "pbt" if name in others["asha"] else "asha"
                raise InputError(f"scheduler.{name} goes with kind {owner!r}; kind is {self.kind!r}")


@dataclass(frozen=True, kw_only=True)
class TensorBoardSettings:
    """Files that `tensorboard --logdir` reads."""

    folder: str = "runs/tensorboard"
    """On the machine that runs the command, also where the storage is a bucket."""


@dataclass(frozen=True, kw_only=True)
class MlflowSettings:
    """A tracking server, or a file in place of one."""

    tracking_uri: str
    """Such as `http://tracking:5000`, or a file: `sqlite:///runs/mlflow.db`."""
    experiment_name: str = ""
    """Left out, that of the experiment file."""

    def __post_init__(self) -> None:
        if "@" in urlsplit(self.tracking_uri).netloc:
            raise InputError(
                "log_to.mlflow.tracking_uri holds an '@', and reports show it; it has to be without name and password, "
                "for which there are MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
            )


@dataclass(frozen=True, kw_only=True)
class WandbSettings:
    """A project of Weights & Biases."""

    project: str
    folder: str = "runs/wandb"
    """Where its own files lie, on the machine that runs the command."""


@dataclass(frozen=True, kw_only=True)
class LogSettings:
    """Who else is told of every epoch of a sweep; no part of what is trained. docs/sweeps.md."""

    tensorboard: TensorBoardSettings | None = None
    mlflow: MlflowSettings | None = None
    wandb: WandbSettings | None = None

    def __post_init__(self) -> None:
        if not (self.tensorboard or self.mlflow or self.wandb):
            raise InputError("log_to names nobody; it has to be such as {tensorboard: {}}, or left out")
