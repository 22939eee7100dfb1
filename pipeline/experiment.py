"""The experiment file: read, checked to the last field, and expanded into trials before anything starts."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

from cluster.resources import Resources
from pipeline.canonical import plain
from pipeline.strict_yaml import parse_yaml
from pipeline.validation import validate
from sskt.datasets import DatasetSettings
from sskt.encodings import get_encoding
from sskt.errors import InputError, unknown_name
from sskt.fidelity import Budget
from sskt.methods import get_method
from sskt.settings import SourceSettings, TargetSettings, TrainingSettings, ViewSettings

T = TypeVar("T")

GRID_SECTIONS = ("training", "target", "options")


@dataclass(frozen=True, kw_only=True)
class CacheSettings:
    """How the sources' outputs are computed and stored."""

    encoding: str = "fp16"
    """`fp32`, `fp16`, `u8` (a byte a value), `topK` such as `top10` (logits only); `auto` measures and chooses."""
    budget: Budget = field(default_factory=Budget)
    """What `auto` may change."""
    batch_size: int = 256
    """Views a source sees at once; part of the cache's identity, for floating point depends on it."""

    def __post_init__(self) -> None:
        if self.encoding != "auto":
            get_encoding(self.encoding, "logits")
        if self.batch_size < 1:
            raise InputError(f"cache.batch_size is {self.batch_size}; it has to be at least 1")


@dataclass(frozen=True, kw_only=True)
class ResourceSettings:
    """What one piece of work may use."""

    cpus_per_trial: float = 1
    gpus_per_trial: float = 0
    """A fraction packs several trials on a device."""
    workers: int = 1
    """Processes that one training of `train` is spread over; each gets the CPUs and GPUs of a trial."""
    cpus_per_source_worker: float = 1
    gpus_per_source_worker: float = 0

    def __post_init__(self) -> None:
        if min(self.cpus_per_trial, self.cpus_per_source_worker) <= 0:
            raise InputError("resources.cpus_per_trial and cpus_per_source_worker have to be above 0")
        if min(self.gpus_per_trial, self.gpus_per_source_worker) < 0:
            raise InputError("resources.gpus_per_trial and gpus_per_source_worker have to be at least 0")
        if self.workers < 1:
            raise InputError(f"resources.workers is {self.workers}; it has to be at least 1")
        if self.workers > 1 and self.gpus_per_trial % 1:
            raise InputError(
                f"resources.gpus_per_trial is {self.gpus_per_trial} with {self.workers} workers; "
                "several workers need whole GPUs, for NCCL allows one process a device"
            )

    @property
    def trial(self) -> Resources:
        """What a trial, or each of its workers, asks the cluster for."""
        return Resources(self.cpus_per_trial, self.gpus_per_trial)

    @property
    def source_threads(self) -> int:
        """Threads of a process that runs a source."""
        return max(1, math.floor(self.cpus_per_source_worker))

    @property
    def source_worker(self) -> Resources:
        """What a process that runs a source asks the cluster for."""
        return Resources(self.cpus_per_source_worker, self.gpus_per_source_worker)


@dataclass(frozen=True, kw_only=True)
class Trial:
    """One training: everything that decides its outcome, but for the contents of data and sources."""

    method: str
    options: Any
    sources: tuple[str, ...]
    target: TargetSettings
    training: TrainingSettings
    seed: int
    label: str
    """What the report calls all trials that differ in their seed only."""


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """The one file a user edits."""

    name: str
    storage: str
    dataset: DatasetSettings
    target: TargetSettings
    training: TrainingSettings
    methods: tuple[dict[str, Any], ...]
    sources: dict[str, SourceSettings] = field(default_factory=dict)
    views: ViewSettings = field(default_factory=ViewSettings)
    cache: CacheSettings = CacheSettings()
    grid: dict[str, list[Any]] = field(default_factory=dict)
    seeds: tuple[int, ...] = (0,)
    resources: ResourceSettings = ResourceSettings()

    def __post_init__(self) -> None:
        if not self.methods:
            raise InputError("methods is empty; name at least one, such as `- {method: scratch}`")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise InputError(f"seeds are {list(self.seeds)}; name at least one, each once")

    def trials(self) -> list[Trial]:
        """Every training of the experiment, in the order of the file: methods, then grid, then seeds."""
        trials = [trial for number in range(len(self.methods)) for trial in self._trials_of(number)]
        seen: set[tuple[str, int]] = set()
        for trial in trials:
            if (trial.label, trial.seed) in seen:
                raise InputError(f"methods: two entries are called {trial.label!r}; give one a `label` of its own")
            seen.add((trial.label, trial.seed))
        return trials

    def _trials_of(self, number: int) -> Iterator[Trial]:
        entry = dict(self.methods[number])
        where = f"methods[{number}]"
        name = entry.pop("method", None)
        if not isinstance(name, str):
            raise InputError(f"{where}.method is {name!r}; it has to be the name of a method")
        method = get_method(name)
        sources = self._known_sources(entry.pop("sources", []), where)
        label = entry.pop("label", None) or _label(name, sources, entry)
        for point in self._points(method.Options):
            options = entry | {
                path.split(".", 1)[1]: value for path, value in point.items() if path.startswith("options.")
            }
            base = Trial(
                method=name,
                options=validate(method.Options, options, where=where),
                sources=sources,
                target=_override(TargetSettings, self.target, point=point, section="target"),
                training=_override(TrainingSettings, self.training, point=point, section="training"),
                seed=0,
                label=label + "".join(f", {path.rsplit('.', 1)[-1]} {value}" for path, value in point.items()),
            )
            self._check_shares(base.training)
            yield from (replace(base, seed=seed) for seed in self.seeds)

    def _check_shares(self, training: TrainingSettings) -> None:
        """Every worker gets the same number of rows of a batch, so that the mean of their gradients is the batch's."""
        for name in ("batch_size", "pool_batch_size"):
            size, workers = getattr(training, name), self.resources.workers
            if size is not None and size % workers:
                raise InputError(f"training.{name} is {size}, resources.workers {workers}; it has to divide evenly")

    def _known_sources(self, names: Any, where: str) -> tuple[str, ...]:
        if not isinstance(names, list) or len(set(names)) < len(names):
            raise InputError(f"{where}.sources is {names!r}; it has to be a list of sources, each named once")
        for name in names:
            if name not in self.sources:
                raise unknown_name(f"{where}.sources: source", str(name), self.sources)
        return tuple(names)

    def _points(self, options: type) -> Iterator[dict[str, Any]]:
        """All combinations of the grid's axes; an `options.x` axis concerns the methods that have an x."""
        for path, values in self.grid.items():
            if path.split(".")[0] not in GRID_SECTIONS or "." not in path:
                raise InputError(f"grid: axis {path!r} is unknown; an axis starts with {', '.join(GRID_SECTIONS)}")
            if not values:
                raise InputError(f"grid: axis {path!r} has no values")
        fields = getattr(options, "__dataclass_fields__", {})
        axes = [path for path in self.grid if not path.startswith("options.") or path.split(".")[1] in fields]
        for values in itertools.product(*(self.grid[path] for path in axes)):
            yield dict(zip(axes, values, strict=True))


def load_experiment(path: str, *, changes: Sequence[str] = ()) -> Experiment:
    """Read an experiment file, apply `path=value` changes, check everything that needs no data."""
    file = Path(path)
    try:
        text = file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: the experiment file cannot be read: {error}") from error
    try:
        raw = {"name": file.stem} | parse_yaml(text)
        for change in changes:
            _apply(raw, change)
        experiment = validate(Experiment, raw)
        experiment.trials()
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return experiment


def _apply(raw: dict[str, Any], change: str) -> None:
    path, equals, text = change.partition("=")
    if not equals or not path:
        raise InputError(f"--set {change!r}: write it as path=value, such as training.lr=0.05")
    *parents, last = path.split(".")
    place: Any = raw
    for name in parents:
        place = place[int(name)] if isinstance(place, list) and name.isdigit() and int(name) < len(place) else place
        if isinstance(place, dict) and not name.isdigit():
            place = place.setdefault(name, {})
    if not isinstance(place, dict):
        raise InputError(f"--set {change!r}: there is no field {path!r}")
    place[last] = parse_yaml(f"value: {text}")["value"]


def _override(kind: type[T], settings: T, *, point: Mapping[str, Any], section: str) -> T:
    """The settings with the values of a grid point, checked as if they had been written in the file."""
    raw = plain(settings)
    for path, value in point.items():
        head, *rest = path.split(".")
        if head == section:
            place = raw
            for name in rest[:-1]:
                place = place.setdefault(name, {})
            place[rest[-1]] = value
    return validate(kind, raw, where=section)


def _label(method: str, sources: Sequence[str], options: Mapping[str, Any]) -> str:
    inside = "+".join(sources)
    return method + (f" {inside}" if inside else "") + "".join(f", {name} {value}" for name, value in options.items())
