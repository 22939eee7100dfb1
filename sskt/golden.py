"""Golden views: hashes of the pixels of a few views, so that a cache and a training can tell they see the same ones."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from sskt.errors import DamagedError
from sskt.views import Recipe, bounded, hash_counters


def golden_samples(rows: int, views: int, count: int = 64) -> tuple[Tensor, Tensor]:
    """Choose distinct pairs of a row below `rows` and a view below `views`, as far as there are: int64 [count] each.

    One pair at random out of each of `count` equal stretches, so no part of the rows goes without.
    """
    count = min(count, rows * views)
    edges = torch.arange(count + 1) * (rows * views) // count
    places = edges[:-1] + bounded(hash_counters(0, torch.arange(count)), edges.diff())
    return places // views, places % views


def pixel_hashes(recipe: Recipe, images: Tensor, *, ids: Tensor, views: Tensor) -> tuple[str, ...]:
    """Hash views (turned ones too) of samples. images: uint8 [n, C, S, S], those of the samples ids."""
    shown = recipe.apply_turned(images, ids=ids, views=views)
    shape = str(tuple(shown.shape[1:])).encode()
    return tuple(hashlib.sha256(shape + view.contiguous().numpy().tobytes()).hexdigest()[:16] for view in shown.cpu())


def check_pixels(recipe: Recipe, images: Tensor, golden: Mapping[str, str]) -> None:
    """Raise DamagedError where a view is not what the sources saw. images: all samples; golden: by `sample/view`."""
    if not golden:
        return
    places = [place.split("/") for place in golden]
    ids, views = (torch.tensor([int(place[part]) for place in places], device=images.device) for part in (0, 1))
    for place, wanted, seen in zip(
        golden, golden.values(), pixel_hashes(recipe, images[ids], ids=ids, views=views), strict=True
    ):
        if seen != wanted:
            sample, view = place.split("/")
            raise DamagedError(f"view {view} of sample {sample} is not what the sources saw; its labels do not fit it")
