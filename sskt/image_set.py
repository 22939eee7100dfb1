"""A packed dataset as trainings see it, and which of its labels they may use."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sskt.datasets import SPLITS, UNLABELLED
from sskt.gallery import Images


@dataclass(frozen=True)
class ImageSet:
    """A packed dataset. images: uint8 [N, C, S, S]; labels: int64 [N] or int8 [N, classes]; splits: int8 [N].

    UNLABELLED stands for a label that is not known.
    """

    images: Images
    labels: Tensor
    splits: Tensor
    edges: tuple[int, ...] = ()
    """Where the blocks of the pool begin, and where the last one ends; none stand for a single block."""

    def to(self, device: torch.device) -> "ImageSet":
        """Copy to a device, or return the same tensors if they are there."""
        return replace(self, **{name: getattr(self, name).to(device) for name in ("images", "labels", "splits")})


def known(labels: Tensor) -> Tensor:
    """Which images have a label: bool [N], for labels [N] or [N, classes]."""
    return labels != UNLABELLED if labels.ndim == 1 else (labels != UNLABELLED).any(dim=1)


def labelled_ids(images: ImageSet, *, classes: int, per_class: int | None) -> Tensor:
    """Ids whose labels may be used: the first `per_class` of each class of the training split, all for None.

    Where several classes may hold, an image counts for each of them, and one that is wanted for one comes along.
    """
    usable = (images.splits == SPLITS.index("train")) & known(images.labels)
    if per_class is not None:
        one_hot = _one_hot(images.labels, classes) * usable.unsqueeze(1)
        usable = ((one_hot.cumsum(dim=0) <= per_class) & (one_hot > 0)).any(dim=1)
    return usable.nonzero().squeeze(1)


def _one_hot(labels: Tensor, classes: int) -> Tensor:
    """1 where a class holds, int64 [N, classes]."""
    if labels.ndim == 2:
        return labels.clamp(min=0).long()
    return torch.nn.functional.one_hot(labels.clamp(min=0), classes) * known(labels).unsqueeze(1)
