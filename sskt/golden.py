"""Golden views: hashes of the pixels of a few views, so that a cache and a training can tell they see the same ones."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor

from sskt.errors import DamagedError
from sskt.gallery import Gallery
from sskt.views import KINDS, TURN, Kind, bounded, hash_counters


def golden_samples(rows: int, views: int, count: int = 64) -> tuple[Tensor, Tensor]:
    """Choose distinct pairs of a row below `rows` and a view below `views`, as far as there are: int64 [count] each.

    One pair at random out of each of `count` equal stretches, so no part of the rows goes without.
    """
    count = min(count, rows * views)
    edges = torch.arange(count + 1) * (rows * views) // count
    places = edges[:-1] + bounded(hash_counters(0, torch.arange(count)), edges.diff())
    return places // views, places % views


def pixel_hashes(gallery: Gallery, *, ids: Tensor, views: Tensor, kind: Kind = "") -> tuple[str, ...]:
    """Hash views, all of one kind, of samples; ids, views: int64 [n]."""
    shown = gallery.show(ids, views=views, kind=kind)
    shape = str(tuple(shown.shape[1:])).encode()
    return tuple(hashlib.sha256(shape + view.contiguous().numpy().tobytes()).hexdigest()[:16] for view in shown.cpu())


def check_pixels(gallery: Gallery, golden: Mapping[str, str]) -> None:
    """Raise DamagedError where a view is not what the sources saw. golden: by `sample/view`, of all kinds."""
    places = [tuple(map(int, place.split("/"))) for place in golden]
    for kind, numbers in KINDS.items():
        alike = [place for place in places if place[1] // TURN in numbers]
        if alike:
            _check_alike(gallery, alike, golden, kind)


def _check_alike(gallery: Gallery, places: list[tuple[int, ...]], golden: Mapping[str, str], kind: Kind) -> None:
    """Check views of one kind."""
    ids, views = torch.tensor([*zip(*places, strict=True)], device=gallery.images.device)
    for (sample, view), seen in zip(places, pixel_hashes(gallery, ids=ids, views=views, kind=kind), strict=True):
        if seen != golden[f"{sample}/{view}"]:
            raise DamagedError(f"view {view} of sample {sample} is not what the sources saw; its labels do not fit it")
