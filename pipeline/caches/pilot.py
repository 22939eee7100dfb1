"""Which encoding: what each would cost and change, measured on a few hundred views before anything is cached.

pilots/<id>.json   what was measured and chosen; the next run, on whatever machine, finds the same choice
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from cluster.storage import Storage
from pipeline.canonical import canonical, digest
from pipeline.packing.packed import PackedDataset, read_images
from pipeline.planning.experiment import Experiment
from sskt.encodings import DENSE, get_encoding
from sskt.errors import DamagedError, InputError, SsktError
from sskt.fidelity import Budget, Fidelity, fidelity
from sskt.methods import get_method
from sskt.sources import Source
from sskt.views import Recipe, make_recipe

CANDIDATES = ("top5", "top10", "top16", "top32", "top64", "top100", "u8", "fp16", "fp32")
DENSE_UP_TO = 256
"""Classes up to which nothing is left out: a byte for each is small already, and nearer to the source."""
PILOT = 256
"""Samples looked at, in their first view."""
BATCH = 32
"""Of them at once: it has to fit into the memory of the process that plans."""
VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Measured:
    """One encoding on the pilot."""

    encoding: str
    view_bytes: int
    forecast: int
    """Bytes of the whole cache."""
    dense: bool
    fidelity: Fidelity
    fits: bool
    """Whether it keeps within the budget."""


@dataclass(frozen=True, kw_only=True)
class Pilot:
    """Where and how a source's logits are tried out."""

    source: Source
    recipe: Recipe
    packed: PackedDataset
    view_count: int
    budget: Budget
    dense: bool
    """Whether some method divides the logits by a temperature, and so needs all of them."""

    @property
    def key(self) -> str:
        """Where the answer lies."""
        asked = {
            "version": VERSION,
            "source": self.source.identity(),
            "views": self.recipe.identity(),
            "pool": self.packed.blocks[0].fingerprint,  # a pool that grows keeps its encoding
            "budget": asdict(self.budget),
            "dense": self.dense,
        }
        return f"pilots/{digest(asked)}.json"


def make_pilots(experiment: Experiment, packed: PackedDataset, sources: Mapping[str, Source]) -> dict[str, Pilot]:
    """One for each cached source of whose logits something is asked, where their encoding is left open."""
    if experiment.cache.encoding != "auto":
        return {}
    needs = [(trial.sources, get_method(trial.method).needs(trial.options)) for trial in experiment.possible_trials()]
    pilots = {}
    for name, source in sources.items():
        asked = [need for names, need in needs if name in names and "logits" in need.outputs]
        if asked and not experiment.sources[name].live:
            pilots[name] = Pilot(
                source=source,
                recipe=make_recipe(experiment.views, image_size=packed.size),
                packed=packed,
                view_count=experiment.views.count,
                budget=experiment.cache.budget,
                dense=any(need.tempered for need in asked),
            )
    return pilots


def choose_encoding(pilot: Pilot, storage: Storage, *, say: Callable[[str], None]) -> str:
    """Return the smallest encoding that keeps within the budget; measure and say what was found, unless it is known."""
    known = known_encoding(pilot, storage)
    if known is None:
        measured = measure(pilot, storage)
        chosen = smallest(measured, dense=pilot.dense)
        for line in table(measured, chosen):
            say(f"pilot   {pilot.source.name} {line}")
        # Whoever was first decides, so that two that measure at once go on alike.
        storage.create(pilot.key, canonical({"chosen": chosen, "measured": measured}).encode())
        known = known_encoding(pilot, storage) or chosen
    return known


def known_encoding(pilot: Pilot, storage: Storage) -> str | None:
    """Return what was chosen before, or None."""
    data = storage.read(pilot.key)
    if data is None:
        return None
    try:
        answer: dict[str, Any] = json.loads(data)
    except ValueError as error:
        raise DamagedError(f"{pilot.key} is damaged ({error}); delete it to measure again") from error
    return str(answer["chosen"])


def measure(pilot: Pilot, storage: Storage) -> list[Measured]:
    """Try every encoding that could be meant on the first views of some samples."""
    logits = first_logits(pilot.source, pilot.recipe, pilot.packed, storage)
    return [_try(name, logits, pilot) for name in candidates(pilot.source.classes)]


def first_logits(source: Source, recipe: Recipe, packed: PackedDataset, storage: Storage) -> torch.Tensor:
    """What a source says of the first views of some samples: float32 [n, C]."""
    ids = range(min(PILOT, packed.blocks[0].stop))
    images, samples = torch.from_numpy(read_images(packed, storage, ids)), torch.tensor(ids)
    seen = recipe.apply(images, ids=samples, views=torch.zeros_like(samples))
    logits = torch.cat([source.outputs(some, ("logits",))["logits"] for some in seen.split(BATCH)])
    if not logits.isfinite().all():
        raise SsktError(f"logits of source {source.name!r} are not finite")
    return logits


def candidates(classes: int) -> list[str]:
    """Encodings that make sense for so many classes."""
    kept = [name for name in CANDIDATES if name in DENSE or classes > DENSE_UP_TO]
    return [name for name in kept if name == "fp32" or _saves(name, classes)]


def _saves(name: str, classes: int) -> bool:
    """Whether it can encode so many classes, in fewer bytes than they have."""
    encoding = get_encoding(name, "logits")
    try:
        encoding.check(classes)
    except InputError:
        return False
    return encoding.row_bytes(classes) < 4 * classes


def smallest(measured: Sequence[Measured], *, dense: bool) -> str:
    """Choose; of two that are as small, the nearer one."""
    fitting = [one for one in measured if one.fits and (one.dense or not dense)]
    if not fitting:
        raise InputError("cache.budget: no encoding keeps within it, not even 'fp32'; allow more")
    return min(fitting, key=lambda one: (one.view_bytes, one.fidelity.kl)).encoding


def table(measured: Sequence[Measured], chosen: str) -> list[str]:
    """What was measured, a line for each encoding."""
    return [
        f"{one.encoding:6s} {one.view_bytes:5d} bytes/view, {one.forecast / 1e6:9.2f} MB in all; "
        f"{one.fidelity.words()}{'  <- chosen' if one.encoding == chosen else ''}"
        for one in measured
    ]


def _try(name: str, logits: torch.Tensor, pilot: Pilot) -> Measured:
    encoding, width = get_encoding(name, "logits"), logits.shape[1]
    found = fidelity(logits, encoding.decode(encoding.encode(logits), width))
    size = encoding.row_bytes(width)
    return Measured(
        encoding=name,
        view_bytes=size,
        forecast=size * pilot.packed.pool * pilot.view_count,
        dense=encoding.dense,
        fidelity=found,
        fits=pilot.budget.allows(found),
    )
