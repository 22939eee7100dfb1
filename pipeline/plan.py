"""What an experiment amounts to: its packed data, its sources, its caches, its trials, each with an id."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from pipeline.canonical import canonical, digest, plain
from pipeline.experiment import Experiment, Trial
from pipeline.labels import CacheSpec
from pipeline.packed import PackedDataset, image_format
from sskt.errors import InputError
from sskt.methods import Facts, Needs, SourceFacts, get_method
from sskt.networks import build_target
from sskt.sources import Source, load_source
from sskt.views import Recipe, make_recipe

SourceCaches = dict[str, CacheSpec]
"""The caches of one source, by output."""

SEMANTICS = 1
"""Part of every run key; raised when the same settings begin to mean another training."""


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
    """By source: every output that could be asked for."""
    taps: dict[str, tuple[int, ...]]
    """Channels of the taps of every target of the experiment, by its settings."""

    @cached_property
    def trials(self) -> list[PlannedTrial]:
        """All trials, checked against what is known of data and sources."""
        return [self._planned(trial) for trial in self.experiment.trials()]

    def caches_for(self, trials: Sequence[PlannedTrial]) -> dict[str, SourceCaches]:
        """The caches that some trials read: the union of what their methods need, by source."""
        read: dict[str, SourceCaches] = {}
        for planned in trials:
            for name in planned.trial.sources if planned.needs.outputs else ():
                for output in planned.needs.outputs:
                    read.setdefault(name, {})[output] = self.caches[name][output]
        return read

    def _planned(self, trial: Trial) -> PlannedTrial:
        self._check_labels(trial)
        method, training = get_method(trial.method), trial.training
        workers = self.experiment.resources.workers
        sources = {name: self.sources[name] for name in trial.sources}
        facts = Facts(
            classes=len(self.packed.classes),
            image=image_format(self.packed),
            sources={name: SourceFacts(source.classes, source.embedding_dim) for name, source in sources.items()},
            taps=self.taps[canonical(trial.target)],
            rows=training.batch_size // workers,
            pool_rows=(training.pool_batch_size or training.batch_size) // workers,
        )
        try:
            method.check(trial.options, facts)
        except InputError as error:
            raise InputError(f"methods: {trial.label!r}: {error}") from error
        needs = method.needs(trial.options)
        spec = {
            "trial": {name: value for name, value in vars(trial).items() if name != "label"},  # only a name
            "semantics": SEMANTICS,
            "torch": torch_version(),
            "dataset": self.packed.fingerprint,
            "views": self.recipe.identity() | {"count": self.experiment.views.count},
            "sources": [self._source_id(name, needs) for name in trial.sources],
        }
        return PlannedTrial(trial=trial, run_key=digest(spec), spec=plain(spec), needs=needs, facts=facts)

    def _check_labels(self, trial: Trial) -> None:
        wanted = trial.training.labels_per_class or 0
        for name, there in zip(self.packed.classes, self.packed.labelled, strict=True):
            if there < wanted:
                raise InputError(
                    f"training.labels_per_class is {wanted}, but class {name!r} has {there} labelled training images"
                )

    def _source_id(self, name: str, needs: Needs) -> Any:
        if not needs.outputs:
            return [name, self.sources[name].identity()]
        return [name, *(self.caches[name][output].id for output in needs.outputs)]


def torch_version() -> str:
    """Major and minor version; arithmetic may change between them."""
    return ".".join(torch.__version__.split(".")[:2])


def load_sources(experiment: Experiment) -> dict[str, Source]:
    """Load the sources that trials name. It needs no data: a wrong one is found before hours of packing."""
    used = {name for trial in experiment.trials() for name in trial.sources}
    return {name: load_source(name, settings) for name, settings in experiment.sources.items() if name in used}


def make_plan(experiment: Experiment, packed: PackedDataset, *, sources: dict[str, Source]) -> Plan:
    """Check everything that can be checked without running a source or a trial."""
    recipe = make_recipe(experiment.views, image_size=packed.size)
    caches = {
        name: _cache_specs(experiment, packed=packed, recipe=recipe, source=source) for name, source in sources.items()
    }
    taps = _targets_taps(experiment, packed)
    plan = Plan(experiment=experiment, packed=packed, recipe=recipe, sources=sources, caches=caches, taps=taps)
    _ = plan.trials  # refuses impossible combinations now, before anything runs
    return plan


def _targets_taps(experiment: Experiment, packed: PackedDataset) -> dict[str, tuple[int, ...]]:
    """Build every target once: one that cannot be built is refused now, not in a worker."""
    image, taps = image_format(packed), {}
    for trial in experiment.trials():
        key = canonical(trial.target)
        if key not in taps:
            target = build_target(trial.target, classes=len(packed.classes), image=image)
            taps[key] = target.tap_channels(image.size, image.channels)
    return taps


def _cache_specs(experiment: Experiment, *, packed: PackedDataset, recipe: Recipe, source: Source) -> SourceCaches:
    widths = {"logits": source.classes, "embedding": source.embedding_dim}
    known = CacheSpec(
        source=source.identity(),
        dataset=packed.fingerprint,
        views=recipe.identity(),
        view_count=experiment.views.count,
        rows=packed.pool,
        output="",
        width=0,
        encoding=experiment.cache.encoding,
        numerics=_numerics(experiment),
    )
    return {output: replace(known, output=output, width=width) for output, width in widths.items()}


def _numerics(experiment: Experiment) -> dict[str, Any]:
    """What floating point results depend on beside the numbers."""
    device = "cuda" if experiment.resources.gpus_per_source_worker else "cpu"
    return {
        "device": device,
        "dtype": "float32",
        "batch_size": experiment.cache.batch_size,
        # Sums are split over threads: two threads gave Lite0 other last bits than one.
        "threads": experiment.resources.source_threads if device == "cpu" else None,
        "torch": torch_version(),
    }
