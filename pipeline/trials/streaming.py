"""What a training has of its images: all of them, or an index of their parts, which each process reads by itself."""

from bisect import bisect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from cluster.near import nearby
from cluster.resources import local_limits
from cluster.storage import Storage, open_storage
from pipeline.packing.packed import PackedDataset, read_packed
from pipeline.packing.parts import PartReader, read_labels, splits_of
from pipeline.planning.feeding import image_bytes
from pipeline.planning.plan import Plan
from pipeline.tensors import as_tensor
from sskt.errors import InputError
from sskt.gallery import Gallery
from sskt.golden import check_pixels
from sskt.streamed import Shelf
from sskt.views import Recipe


@dataclass(frozen=True, kw_only=True)
class StreamedImages:
    """Where the parts of a packed data set lie. It travels: no open handles, no secrets."""

    packed: PackedDataset
    storage_uri: str
    node_cache_gb: float


class Held(NamedTuple):
    """A packed data set as trainings get it; labels and splits as in `PackedArrays`."""

    images: np.ndarray | StreamedImages
    labels: np.ndarray
    splits: np.ndarray


def hold_images(plan: Plan, storage: Storage) -> Held:
    """Read what a node has in memory of the images and their labels."""
    packed, cache = plan.packed, plan.experiment.resources.node_cache_gb
    if plan.streamed:
        streamed = StreamedImages(packed=packed, storage_uri=storage.uri, node_cache_gb=cache)
        return Held(streamed, read_labels(packed, storage), splits_of(packed))
    wanted, (machine,) = image_bytes(packed) * packed.rows, local_limits(gpus=0)
    if wanted > machine.memory:
        raise InputError(
            f"resources.feed is {plan.experiment.resources.feed!r}, which has all images in memory; they take "
            f"{wanted / 1e9:.0f} GB and this machine has {machine.memory / 1e9:.0f}: set it to 'streamed'"
        )
    arrays = read_packed(packed, storage)
    return Held(arrays.images, arrays.labels, arrays.splits)


def open_shelf(images: StreamedImages, *, golden: Mapping[str, str], recipe: Recipe, device: torch.device) -> Shelf:
    """Read parts by the address of their storage, by way of the node's copies; their pixels are checked as they come.

    golden: hashes of what the sources saw, by `sample/view`.
    """
    storage = nearby(open_storage(images.storage_uri), images.node_cache_gb)
    return Shelf(_checking(images.packed, storage, golden, recipe), images.packed.part_edges, device=device)


def _checking(
    packed: PackedDataset, storage: Storage, golden: Mapping[str, str], recipe: Recipe
) -> Callable[[int], Tensor]:
    """Read a part; the first time it has to show what the sources saw, before anything learns from it."""
    reader, edges, by_part = PartReader(packed, storage), packed.part_edges, dict[int, dict[str, str]]()
    for place, seen in golden.items():
        by_part.setdefault(bisect(edges, int(place.split("/")[0])) - 1, {})[place] = seen

    def read(number: int) -> Tensor:
        images = as_tensor(reader(number))
        check_pixels(Gallery(recipe, images, packed.edges, first=edges[number]), by_part.get(number, {}))
        by_part.pop(number, None)
        return images

    return read
