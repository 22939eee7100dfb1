"""How trainings get their images: all of them are in memory, or some, and others as they go on."""

from collections.abc import Mapping

from pipeline.packing.packed import PackedDataset
from pipeline.planning.experiment import Experiment
from pipeline.planning.specs import CacheSpec, caches_of
from sskt.methods import get_method
from sskt.streamed import WINDOW

RESIDENT_GB = 32
"""What of images and labels `auto` still has in memory: half of a usual node's.

Not a part of what this machine has: the order of the images is part of every run key, and a key has to be the same
wherever the experiment file is read.
"""


def streams(experiment: Experiment, packed: PackedDataset, caches: Mapping[str, Mapping[str, CacheSpec]]) -> bool:
    """Whether trainings read their images as they go on."""
    feed = experiment.resources.feed
    return feed == "streamed" or (feed == "auto" and resident_bytes(experiment, packed, caches) > RESIDENT_GB * 1e9)


def resident_bytes(experiment: Experiment, packed: PackedDataset, caches: Mapping[str, Mapping[str, CacheSpec]]) -> int:
    """Bytes of all images, and of all labels that any training of the experiment reads."""
    read = {
        (source, cache)
        for trial in experiment.possible_trials()
        for source in trial.sources
        if source in caches
        for cache in caches_of(get_method(trial.method).needs(trial.options), trial.training)
    }
    specs = [caches[source][cache] for source, cache in read]
    return image_bytes(packed) * packed.rows + sum(
        spec.rows * len(spec.labels.numbers) * spec.view_count * spec.labels.view_bytes for spec in specs
    )


def feed_line(experiment: Experiment, packed: PackedDataset, caches: Mapping[str, Mapping[str, CacheSpec]]) -> str:
    """Say that images are streamed, and why."""
    size, held = resident_bytes(experiment, packed, caches), packed.parts[0].rows * image_bytes(packed) * WINDOW
    why = f"for they and their labels take {size / 1e9:.3g} GB, and {RESIDENT_GB} at most are had in memory"
    asked = "as resources.feed says" if experiment.resources.feed == "streamed" else why
    return f"images are streamed, {asked}; shuffled within {WINDOW} parts, {held / 1e6:.3g} MB"


def image_bytes(packed: PackedDataset) -> int:
    """Bytes of one image."""
    return packed.channels * packed.size**2


def order_identity(packed: PackedDataset) -> dict[str, object]:
    """What the order of the images of a streamed set depends on, beside seeds and settings, for run keys."""
    return {"feed": {"kind": "streamed", "window": WINDOW, "part_rows": packed.parts[0].rows}}
