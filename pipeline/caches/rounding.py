"""What computing a source in fewer bits changes, measured on a few hundred views and held against `cache.budget`.

pilots/<id>.json   what was measured; the next run finds it
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from cluster.storage import Storage
from pipeline.caches.pilot import first_logits
from pipeline.canonical import canonical, digest
from pipeline.packing.packed import PackedDataset
from pipeline.planning.experiment import Experiment
from sskt.errors import DamagedError, InputError
from sskt.fidelity import Fidelity, fidelity
from sskt.sources import Source
from sskt.views import Recipe, make_recipe

VERSION = 1


@dataclass(frozen=True, kw_only=True)
class Rounding:
    """A source that computes in fewer bits, and the views on which it is tried."""

    source: Source
    recipe: Recipe
    packed: PackedDataset

    @property
    def key(self) -> str:
        """Where the answer lies."""
        asked = {
            "version": VERSION,
            "source": self.source.identity(),
            "views": self.recipe.identity(),
            "pool": self.packed.blocks[0].fingerprint,
        }
        return f"pilots/{digest(asked)}.json"

    def found(self, storage: Storage) -> Fidelity:
        """What it changes; measured once, whoever asks."""
        data = storage.read(self.key)
        if data is None:
            data = canonical(self._measure(storage)).encode()
            storage.create(self.key, data)
        try:
            return Fidelity(**json.loads(data))
        except (ValueError, TypeError) as error:
            raise DamagedError(f"{self.key} is damaged ({error}); delete it to measure again") from error

    def _measure(self, storage: Storage) -> Fidelity:
        rounded = first_logits(self.source, self.recipe, self.packed, storage)
        with self.source.exact():
            return fidelity(first_logits(self.source, self.recipe, self.packed, storage), rounded)


def rounding_lines(
    experiment: Experiment, packed: PackedDataset, sources: Mapping[str, Source], storage: Storage
) -> Iterator[str]:
    """Say what the precision of each source changes; refuse what is beyond the budget."""
    recipe, budget = make_recipe(experiment.views, image_size=packed.size), experiment.cache.budget
    for name, source in sources.items():
        precision = experiment.sources[name].precision
        if precision == "float32":
            continue
        found = Rounding(source=source, recipe=recipe, packed=packed).found(storage)
        beyond = budget.beyond(found)
        if beyond:
            said = ", ".join(f"{part} {value:.2g}, allowed {getattr(budget, part):g}" for part, value in beyond.items())
            raise InputError(
                f"sources.{name}.precision is {precision!r}, which changes what it says by more than cache.budget "
                f"allows ({said}); it has to be 'float32', or the budget another"
            )
        yield f"{name} in {precision}: {found.words()}"
