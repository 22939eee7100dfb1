"""The experiment file: read, checked to the last field, and expanded into trials before anything starts."""

import itertools
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, TypeVar

from pipeline.canonical import plain
from pipeline.planning.entries import Entry, known_sources, read_entries, with_point
from pipeline.planning.search_rules import check_axes, check_length, check_scheduler
from pipeline.planning.settings import CacheSettings, LogSettings, ResourceSettings, SchedulerSettings, SearchSettings
from pipeline.planning.space import Axis, Point, corners, draw, grid_points
from pipeline.planning.strict_yaml import parse_yaml
from pipeline.planning.validation import validate
from sskt.datasets import DatasetSettings
from sskt.errors import InputError, unknown_name
from sskt.settings import SourceSettings, TargetSettings, TrainingSettings, ViewSettings
from sskt.sources import USUAL_BATCH

T = TypeVar("T")

LAPTOP = "laptop"
"""The field of a file that holds its smaller settings by their paths, and the change that puts them in place."""


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
    entry: int
    """Number of its entry in `methods`."""
    point: Point
    """Its place on the axes; what it says is in the other fields too."""


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
    cache: CacheSettings = field(default_factory=CacheSettings)
    grid: dict[str, Any] = field(default_factory=dict)
    """Axes whose combinations are all trained, for every method they concern; docs/sweeps.md."""
    across: str | None = None
    """The axis of the grid that tables spread over columns: what differs in nothing else stands in one line."""
    seeds: tuple[int, ...] = (0,)
    search: SearchSettings | None = None
    """Instead of a grid: the best point of each method is looked for, and only that one trained with all seeds."""
    scheduler: SchedulerSettings = field(default_factory=SchedulerSettings)
    resources: ResourceSettings = field(default_factory=ResourceSettings)
    log_to: LogSettings | None = None
    """TensorBoard, MLflow, Weights & Biases, through Ray."""

    def __post_init__(self) -> None:
        if not self.methods:
            raise InputError("methods is empty; name at least one, such as `- {method: scratch}`")
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise InputError(f"seeds are {list(self.seeds)}; name at least one, each once")
        if self.search and self.grid:
            raise InputError("grid and search are both there; a search has its axes in search.axes, so leave out grid")
        check_scheduler(self.search, self.scheduler, resources=self.resources)
        if self.log_to and self.resources.runner == "plain":
            raise InputError("resources.runner is 'plain', by which Ray's loggers hear nothing; log_to needs another")

    @property
    def source_batch(self) -> int:
        """Views a source sees at once."""
        return self.cache.batch_size or USUAL_BATCH[self.resources.source_device]

    def trials(self) -> list[Trial]:
        """Every training, in the order of the file: methods, then grid, then seeds. Those of a search come from it."""
        return [] if self.search else list(self._grid)

    @cached_property
    def entries(self) -> tuple[Entry, ...]:
        """What stands in `methods`."""
        kind, common = ("search", self.search.axes) if self.search else ("grid", self.grid)
        entries = read_entries(self.methods, kind=kind, common=common, sources=self.sources)
        check_axes(entries, self.search, self.scheduler)
        _check_across(self.across, entries, searched=self.search is not None)
        return entries

    def axes_of(self, entry: int) -> tuple[Axis, ...]:
        """The axes of the grid or of the search that concern an entry of `methods`."""
        return self.entries[entry].axes

    def name_of(self, trial: Trial) -> str:
        """What trials are called together that differ from it in the axis alone which tables spread over columns."""
        point = {path: value for path, value in trial.point.items() if path != self.across}
        return self.entries[trial.entry].label_at(point)

    def at(self, entry: int, point: Point, *, seed: int) -> Trial:
        """The trial of an entry of `methods` at a point of its axes, checked as if it stood in the file."""
        one = self.entries[entry]
        sources = known_sources(point.get("sources", one.sources), self.sources, where=one.where)
        trial = Trial(
            method=one.name,
            options=_checked(one.method.Options, with_point(one.options, point, section="options"), where=one.where),
            sources=tuple(sources),
            target=_checked(TargetSettings, with_point(self._plain["target"], point, section="target"), where="target"),
            training=_checked(
                TrainingSettings, with_point(self._plain["training"], point, section="training"), where="training"
            ),
            seed=seed,
            label=one.label_at(point),
            entry=entry,
            point=point,
        )
        self._check_shares(trial.training)
        self._check_views(trial.training)
        return trial

    def possible_trials(self) -> list[Trial]:
        """All trials; of a search every entry at every corner of its axes, and what is drawn, with the first seed."""
        return list(self._corners) if self.search else self.trials()

    @cached_property
    def _grid(self) -> tuple[Trial, ...]:
        bases = self._at_points()
        _check_labels([base.label for base in bases])
        return tuple(replace(base, seed=seed) for base in bases for seed in self.seeds)

    @cached_property
    def _corners(self) -> tuple[Trial, ...]:
        _check_labels([entry.label_at({}) for entry in self.entries])
        trials = self._at_points()
        for epochs in {trial.training.epochs for trial in trials}:
            check_length(self.scheduler, epochs=epochs)
        for number in range(len(self.methods)):
            self._check_graphs(number)
        return tuple(trials)

    def _at_points(self) -> list[Trial]:
        """Of every entry at each of its points, with the first seed."""
        numbers = range(len(self.methods))
        return [self.at(number, point, seed=self.seeds[0]) for number in numbers for point in self._points(number)]

    def _points(self, number: int) -> Iterator[Point]:
        """Of a grid those that are trained; of a search the corners, and what is known to be drawn."""
        axes = self.axes_of(number)
        if self.search is None or self.search.by == "grid":
            return grid_points(axes)
        drawn = range(self.search.trials or 0) if self.search.by == "random" else ()
        return itertools.chain(corners(axes), (draw(axes, number=at, seed=self.search.seed) for at in drawn))

    def _check_graphs(self, number: int) -> None:
        """Graphs are made before a search begins: what is not known by then may not ask for another one."""
        entry = self.entries[number]
        by_optuna = self.search is not None and self.search.by == "optuna"
        for axis in [axis for axis in entry.axes if by_optuna and axis.low is not None]:
            point = next((one for one in self._points(number) if axis.path in one), {})
            trials = [self.at(number, point | {axis.path: end}, seed=0) for end in axis.ends]
            if len({entry.method.needs(trial.options).graph for trial in trials}) > 1:
                raise InputError(
                    f"{entry.where}: axis {axis.path!r} is a range, each of whose numbers of neighbours needs a graph "
                    "of its own; it has to be a list of values, or the search by 'random'"
                )

    @cached_property
    def _plain(self) -> dict[str, Any]:
        return {"target": plain(self.target), "training": plain(self.training)}

    def _check_views(self, training: TrainingSettings) -> None:
        used, there = training.views or 1, self.views.count
        if used > there:
            raise InputError(f"training.views is {used}; it has to be at most views.count, {there}")

    def _check_shares(self, training: TrainingSettings) -> None:
        """Every worker gets the same number of rows of a batch, so that the mean of their gradients is the batch's."""
        for name in ("batch_size", "pool_batch_size"):
            size, workers = getattr(training, name), self.resources.workers
            if size is not None and size % workers:
                raise InputError(f"training.{name} is {size}, resources.workers {workers}; it has to divide evenly")


def load_experiment(path: str, *, changes: Sequence[str] = ()) -> Experiment:
    """Read an experiment file, apply `path=value` changes, check everything that needs no data.

    Where LAPTOP is among the changes, the file's own smaller settings are applied before all others.
    """
    file = Path(path)
    try:
        text = file.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: the experiment file cannot be read: {error}") from error
    try:
        raw = {"name": file.stem} | parse_yaml(text)
        smaller = raw.pop(LAPTOP, {})
        if LAPTOP in changes:
            _shrink(raw, smaller)
        for change in changes:
            if change != LAPTOP:
                _apply(raw, change)
        experiment = validate(Experiment, raw)
        experiment.possible_trials()
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return experiment


def _shrink(raw: dict[str, Any], smaller: Any) -> None:
    """Put smaller settings in place, under another name, so that their report stands beside that of the whole."""
    if not isinstance(smaller, dict) or not smaller:
        raise InputError(f"{LAPTOP} is {smaller!r}; it has to hold smaller settings, such as `training.epochs: 2`")
    raw["name"] = f"{raw['name']}-{LAPTOP}"
    for path, value in smaller.items():
        _put(raw, str(path), value, said=f"{LAPTOP}.{path}")


def _apply(raw: dict[str, Any], change: str) -> None:
    path, equals, text = change.partition("=")
    if not equals or not path:
        raise InputError(f"--set {change!r}: write it as path=value, such as training.lr=0.05")
    _put(raw, path, parse_yaml(f"value: {text}")["value"], said=f"--set {change!r}")


def _put(raw: dict[str, Any], path: str, value: Any, *, said: str) -> None:
    """Change one field, or leave out an entry of a list by null; fields above that are not there yet are made.

    What comes of it is checked with all others, later.
    """
    *parents, last = path.split(".")
    place: Any = raw
    for name in parents:
        if isinstance(place, dict) and not name.isdigit():
            place = place.setdefault(name, {})
        elif isinstance(place, list):
            place = place[_position(place, name, path=path, said=said)]
    if isinstance(place, list):
        at = _position(place, last, path=path, said=said)
        place[at : at + 1] = [] if value is None else [value]
    elif isinstance(place, dict):
        place[last] = value
    else:
        raise InputError(f"{said}: there is no field {path!r}")


def _position(entries: list[Any], name: str, *, path: str, said: str) -> int:
    """Where in a list an entry stands: by its number, or by what it is called."""
    called = [entry.get("label", entry.get("method")) if isinstance(entry, dict) else None for entry in entries]
    if name.isdigit() and int(name) < len(entries):
        return int(name)
    if called.count(name) > 1:
        numbers = ", ".join(str(at) for at, other in enumerate(called) if other == name)
        raise InputError(f"{said}: {path!r} may be one of several that are called {name!r}; they are number {numbers}")
    if name not in called:
        raise InputError(f"{said}: there is no field {path!r}")
    return called.index(name)


def _checked(kind: type[T], raw: Any, *, where: str) -> T:
    return _built(kind, json.dumps(raw), where)


@lru_cache(maxsize=10_000)
def _built(kind: type[T], raw: str, where: str) -> T:
    """Points share most of their settings: each is checked, and held, once."""
    return validate(kind, json.loads(raw), where=where)


def _check_across(across: str | None, entries: Sequence[Entry], *, searched: bool) -> None:
    paths = {axis.path for entry in entries for axis in entry.axes}
    if across is not None and searched:
        raise InputError(f"across is {across!r} with a search, whose table has one row of each method; leave it out")
    if across is not None and across not in paths:
        raise unknown_name("across: axis", across, paths)


def _check_labels(labels: Sequence[str]) -> None:
    for label, count in Counter(labels).items():
        if count > 1:
            raise InputError(f"methods: two entries are called {label!r}; give one a `label` of its own")
