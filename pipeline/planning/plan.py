"""What an experiment amounts to: its packed data, its sources, its caches, its trials, each with an id."""

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from pipeline.canonical import canonical, digest
from pipeline.packing.packed import PackedDataset, image_format
from pipeline.planning.checks import check_labels, check_streamed
from pipeline.planning.experiment import Experiment, Trial
from pipeline.planning.feeding import order_identity, streams
from pipeline.planning.run_keys import SEMANTICS, said
from pipeline.planning.specs import CacheSpec, GraphSpec, Labels, caches_of, graph_name
from sskt.encodings import stored_as
from sskt.errors import InputError
from sskt.maps import MapShape
from sskt.methods import Facts, Needs, SourceFacts, check_trial, get_method
from sskt.networks import build_target
from sskt.networks.architecture import errors_in
from sskt.sources import MAPS, Source, load_source
from sskt.views import KINDS, Recipe, make_recipe

SourceCaches = dict[str, CacheSpec]
"""The caches of one source, by name."""


@dataclass(frozen=True, kw_only=True)
class PlannedTrial:
    """A trial and the key that names its training, its checkpoints and its result."""

    trial: Trial
    run_key: str
    spec: dict[str, Any]
    """All that its outcome depends on, in plain values; the run key is the hash of it."""
    needs: Needs
    facts: Facts


@dataclass(frozen=True, kw_only=True)
class Plan:
    """An experiment whose data and sources are known."""

    experiment: Experiment
    packed: PackedDataset
    recipe: Recipe
    sources: dict[str, Source]
    caches: dict[str, SourceCaches]
    """By source that is not live, then by name: what its outputs are, or would be, stored as."""
    maps: dict[str, tuple[MapShape, ...]]
    """The taps of every source of whose maps something is asked."""
    taps: dict[str, tuple[MapShape, ...]]
    """The taps of every target of the experiment, by its settings."""
    streamed: bool = False
    """Whether trainings read their images in parts, as they go on."""

    @cached_property
    def trials(self) -> list[PlannedTrial]:
        """All trials, checked against what is known of data and sources."""
        return [self.plan(trial) for trial in self.experiment.trials()]

    @cached_property
    def possible(self) -> list[PlannedTrial]:
        """All trials; of a search those at the corners of its space, which need whatever any of its trials needs."""
        searched = self.experiment.search is not None
        return [self.plan(trial) for trial in self.experiment.possible_trials()] if searched else self.trials

    def caches_for(self, trials: Sequence[PlannedTrial] | None = None) -> dict[str, SourceCaches]:
        """The caches that some trials (None: all possible ones) depend on: what their methods need, by source."""
        wanted: dict[str, SourceCaches] = {}
        for planned in self.possible if trials is None else trials:
            for name in self.cached(planned):
                for cache in caches_of(planned.needs, planned.trial.training):
                    wanted.setdefault(name, {})[cache] = self.caches[name][cache]
        return wanted

    def graphs_for(self, trials: Sequence[PlannedTrial] | None = None) -> dict[str, GraphSpec]:
        """The graphs that some trials (None: all possible ones) read, by what they are called."""
        return {
            graph_name(name, planned.needs.graph): self._graph(name, planned.needs.graph)
            for planned in (self.possible if trials is None else trials)
            for name in planned.trial.sources
            if planned.needs.graph
        }

    def cached(self, planned: PlannedTrial) -> list[str]:
        """The sources that a trial reads from caches."""
        reads = caches_of(planned.needs, planned.trial.training)
        return [name for name in planned.trial.sources if reads and name in self.caches]

    def _graph(self, name: str, neighbours: int) -> GraphSpec:
        return GraphSpec(embedding=self.caches[name]["embedding"], neighbours=neighbours)

    def plan(self, trial: Trial) -> PlannedTrial:
        """Check a trial against what is known of data and sources, and name it."""
        check_labels(trial.training, self.packed)
        method = get_method(trial.method)
        facts, needs = self._facts(trial), method.needs(trial.options)
        try:
            check_trial(method, trial.options, facts, trial.training)
            self._check_graphs(trial, needs)
            self._check_encodings(trial, needs)
            self._check_frozen(trial)
            if self.streamed:
                check_streamed(trial.training, needs, live=set(trial.sources) - set(self.caches))
        except InputError as error:
            raise InputError(f"methods: {trial.label!r}: {error}") from error
        spec = {
            "trial": {name: self._once(value) for name, value in said(trial).items()},
            "semantics": SEMANTICS,
            "torch": torch_version(),
            "dataset": self.packed.fingerprint,
            "views": self._once(self.recipe.identity() | {"count": self.experiment.views.count}),
            "sources": self._once([self._source_id(name, caches_of(needs, trial.training)) for name in trial.sources]),
        }
        spec |= order_identity(self.packed) if self.streamed else {}
        return PlannedTrial(trial=trial, run_key=digest(spec), spec=spec, needs=needs, facts=facts)

    @cached_property
    def _plain(self) -> dict[str, Any]:
        return {}

    def _once(self, value: Any) -> Any:
        """The plain form of a value, one object for all that are equal: of thousands of trials most parts are."""
        spelled = canonical(value)
        if spelled not in self._plain:
            self._plain[spelled] = json.loads(spelled)
        return self._plain[spelled]

    def _facts(self, trial: Trial) -> Facts:
        training, workers = trial.training, self.experiment.resources.workers
        sources = {
            name: SourceFacts(source.classes, source.embedding_dim, self.maps.get(name, ()))
            for name, source in self.sources.items()
            if name in trial.sources
        }
        return Facts(
            classes=len(self.packed.classes),
            image=image_format(self.packed),
            sources={name: sources[name] for name in trial.sources},
            taps=self.taps.get(canonical(trial.target), ()),
            rows=training.batch_size // workers,
            pool_rows=(training.pool_batch_size or training.batch_size) // workers,
            pool_size=self.packed.pool,
            views=training.views or self.experiment.views.count,
            workers=workers,
            multi_label=self.packed.multi_label,
        )

    def _check_graphs(self, trial: Trial, needs: Needs) -> None:
        live = [name for name in trial.sources if name not in self.caches]
        if needs.graph and live:
            raise InputError(
                f"sources.{live[0]}.live is true; the neighbours that this method asks for come from a cache of the "
                "source's embeddings, so it has to be false"
            )

    def _check_encodings(self, trial: Trial, needs: Needs) -> None:
        """What is read has to be of a width that its encoding takes, and whole where a temperature divides it."""
        for name in trial.sources:
            for cache in caches_of(needs, trial.training) if name in self.caches else ():
                labels = self.caches[name][cache].labels
                labels.encoder.check(labels.width)
                if needs.tempered and labels.output == "logits" and not labels.encoder.dense:
                    raise InputError(
                        f"cache.encoding is {labels.encoding!r} for source {name!r}, which keeps the likeliest classes "
                        "at temperature 1 only; this method divides by another one and needs 'u8', 'fp16' or 'fp32'"
                    )

    def _check_frozen(self, trial: Trial) -> None:
        """Of a method that trains a source's own network; others find out when their target is built."""
        if trial.target.frozen and not get_method(trial.method).builds_target:
            with errors_in("target."):
                copy.deepcopy(self.sources[trial.sources[0]].network).freeze(trial.target.frozen)

    def _source_id(self, name: str, caches: Sequence[str]) -> Any:
        if not caches:  # only its weights count
            return [name, self.sources[name].identity()]
        if name not in self.caches:
            return [name, "live", self.sources[name].identity()]
        return [name, *(self.caches[name][cache].id for cache in caches)]


def torch_version() -> str:
    """Major and minor version; arithmetic may change between them."""
    return ".".join(torch.__version__.split(".")[:2])


def load_sources(experiment: Experiment) -> dict[str, Source]:
    """Load the sources that trials name. It needs no data: a wrong one is found before hours of packing."""
    used = {name for trial in experiment.possible_trials() for name in trial.sources}
    return {name: load_source(name, settings) for name, settings in experiment.sources.items() if name in used}


def try_sources(sources: Mapping[str, Source], packed: PackedDataset) -> None:
    """Refuse a source that cannot see the images now, not in a worker."""
    for name, source in sources.items():
        with errors_in(f"sources.{name}: "):
            source.network.try_on(packed.size, packed.channels)


def make_plan(
    experiment: Experiment,
    packed: PackedDataset,
    *,
    sources: dict[str, Source],
    encodings: Mapping[str, str] | None = None,
) -> Plan:
    """Check everything that can be checked without running a source or a trial.

    encodings: of the logits of each source, where the experiment leaves them to be chosen.
    """
    for split, images in (("validation", packed.validation), ("test", packed.test)):
        if not images:
            raise InputError(f"dataset.{split} leaves no image to measure on; it has to be above 0")
    recipe = make_recipe(experiment.views, image_size=packed.size)
    needs = [(trial.sources, get_method(trial.method).needs(trial.options)) for trial in experiment.possible_trials()]
    asked = {name for names, need in needs for name in names if MAPS & set(need.outputs)}
    maps = {name: source.map_shapes(image_format(packed)) for name, source in sources.items() if name in asked}
    caches = {
        name: _cache_specs(
            experiment, packed, source, maps.get(name, ()), recipe=recipe, encoding=(encodings or {}).get(name)
        )
        for name, source in sources.items()
        if not experiment.sources[name].live
    }
    plan = Plan(
        experiment=experiment,
        packed=packed,
        recipe=recipe,
        sources=sources,
        caches=caches,
        maps=maps,
        taps=_targets_taps(experiment, packed),
        streamed=streams(experiment, packed, caches),
    )
    _ = plan.possible  # refuses impossible combinations now, before anything runs
    return plan


def _targets_taps(experiment: Experiment, packed: PackedDataset) -> dict[str, tuple[MapShape, ...]]:
    """Build every target once: one that cannot be built is refused now, not in a worker."""
    image, taps = image_format(packed), {}
    for trial in experiment.possible_trials():
        key = canonical(trial.target)
        if key not in taps and get_method(trial.method).builds_target:
            target = build_target(trial.target, classes=len(packed.classes), image=image)
            with errors_in("target: "):
                taps[key] = target.tap_shapes(image.size, image.channels)
    return taps


def _cache_specs(
    experiment: Experiment,
    packed: PackedDataset,
    source: Source,
    maps: tuple[MapShape, ...],
    *,
    recipe: Recipe,
    encoding: str | None,
) -> SourceCaches:
    caches = {}
    for output, width in source.widths(maps).items():
        for kind in KINDS if width else ():  # without maps there is nothing to store of them
            labels = Labels(
                source=source.identity(),
                views=recipe.identity(),
                output=output,
                kind=kind,
                width=width,
                encoding=stored_as((encoding if output == "logits" else None) or experiment.cache.encoding, output),
                numerics=_numerics(experiment),
            )
            caches[labels.name] = CacheSpec(labels=labels, blocks=packed.blocks, view_count=experiment.views.count)
    return caches


def _numerics(experiment: Experiment) -> dict[str, Any]:
    """What floating point results depend on beside the numbers."""
    device = experiment.resources.source_device
    return {
        "device": device,
        "dtype": "float32",
        "layout": "channels last",
        "batch_size": experiment.source_batch,
        # Sums are split over threads: two threads gave Lite0 other last bits than one.
        "threads": experiment.resources.source_threads if device == "cpu" else None,
        "torch": torch_version(),
    }
