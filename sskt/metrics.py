"""How good a target is on a held-out split, in percent."""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from sskt.datasets import UNLABELLED
from sskt.errors import DivergedError, InputError

Predict = Callable[[Tensor], Tensor]
"""Logits [B, C] for images."""
Batches = Iterable[tuple[Tensor, Tensor]]
"""Images and labels: int64 [B], or int8 [B, C] of a multi-label set, where 1 holds, 0 does not and -1 is unknown."""

ByClass = dict[str, list[Any]]
"""Figures of every class; which there are, `by_class` says."""

MOST_CONFUSED = 100
"""Classes of which it is kept which was taken for which: the table grows with their square."""

TITLES = {"accuracy": "accuracy", "mean_ap": "mean AP", "sample_ap": "AP per image"}
"""What people call the figures that `scores` returns; the first of a kind of label set is the one to compare by."""


def main_metric(*, multi_label: bool) -> str:
    """Name of the figure that networks are compared by."""
    return "mean_ap" if multi_label else "accuracy"


def scores(predict: Predict, batches: Batches, *, multi_label: bool) -> dict[str, float]:
    """Return every figure of that kind of label set, from one pass over the images."""
    if not multi_label:
        return {"accuracy": accuracy(predict, batches)}
    logits, labels = _predictions(predict, batches)
    return {"mean_ap": _mean_ap(logits, labels), "sample_ap": _sample_ap(logits, labels)}


@torch.inference_mode()
def accuracy(predict: Predict, batches: Batches) -> float:
    """Percentage of images whose largest logit is that of their class."""
    correct, total = 0, 0
    for images, labels in batches:
        logits = predict(images)
        # Read together, for each look makes a device wait.
        right, finite = torch.stack([(logits.argmax(dim=1) == labels).sum(), logits.isfinite().all()]).tolist()
        _require(finite=finite)
        correct += right
        total += len(labels)
    return 100.0 * correct / total


def by_class(predict: Predict, batches: Batches, *, classes: int, multi_label: bool) -> ByClass:
    """How every class fares: of single labels `confusion` [C][C], images of a class (row) taken for another (column).

    Of more than MOST_CONFUSED classes `images` and `hits`, both [C]. Where several may hold, `average_precision` [C] in
    percent, None where a class holds nowhere.
    """
    if multi_label:
        logits, labels = _predictions(predict, batches)
        return {"average_precision": _class_precisions(logits, labels)}
    counts = confusion(predict, batches, classes=classes)
    if classes <= MOST_CONFUSED:
        return {"confusion": counts.tolist()}
    return {"images": counts.sum(dim=1).tolist(), "hits": counts.diagonal().tolist()}


@torch.inference_mode()
def confusion(predict: Predict, batches: Batches, *, classes: int) -> Tensor:
    """How many images of a class (row) were taken for another (column), int64 [C, C]."""
    places = [classes * labels.long() + predict(images).argmax(dim=1) for images, labels in batches]
    return torch.cat(places).bincount(minlength=classes**2).reshape(classes, classes)


def mean_average_precision(predict: Predict, batches: Batches) -> float:
    """Mean over classes of the average precision of the images ranked by it, as PASCAL VOC measures since 2010.

    The area under the curve whose precision is the best at that recall or more; classes that hold nowhere are left out.
    """
    return _mean_ap(*_predictions(predict, batches))


def sample_average_precision(predict: Predict, batches: Batches) -> float:
    """Mean over images of the average precision of the classes ranked for it, without interpolation.

    The figure that the release of SSKT prints for VOC, which is not VOC's; images without any class are left out.
    """
    return _sample_ap(*_predictions(predict, batches))


@torch.inference_mode()
def _predictions(predict: Predict, batches: Batches) -> tuple[Tensor, Tensor]:
    """Logits and labels of all images, both [N, C]."""
    pairs = [(predict(images), labels) for images, labels in batches]
    logits, labels = torch.cat([logits for logits, _ in pairs]).double(), torch.cat([labels for _, labels in pairs])
    _require(finite=bool(logits.isfinite().all()))
    return logits, labels


def _require(*, finite: bool) -> None:
    """Numbers that are none have an order too, and would score as chance does."""
    if not finite:
        raise DivergedError("what the target predicts is no longer finite; lower training.lr")


def _mean_ap(logits: Tensor, labels: Tensor) -> float:
    return _percent(_average_precision(logits.T, labels.T, interpolated=True))


def _class_precisions(logits: Tensor, labels: Tensor) -> list[float | None]:
    """In percent; None where a class holds nowhere."""
    found = (100.0 * _average_precision(logits.T, labels.T, interpolated=True)).tolist()
    return [found.pop(0) if there else None for there in (labels == 1).any(dim=0).tolist()]


def _sample_ap(logits: Tensor, labels: Tensor) -> float:
    return _percent(_average_precision(logits, labels, interpolated=False))


def _average_precision(ranked_by: Tensor, labels: Tensor, *, interpolated: bool) -> Tensor:
    """Average precision of each row in which anything holds, [<= R]. Both: [R, K].

    Entries of one score come at once, so the order they are stored in does not matter.
    """
    values, order = ranked_by.sort(dim=1, descending=True)
    ranked = labels.gather(1, order)
    holds, known = (ranked == 1).double(), (ranked != UNLABELLED).double()
    precision = holds.cumsum(dim=1) / known.cumsum(dim=1).clamp(min=1)
    precision = precision.gather(1, _last_of_its_score(values))
    if interpolated:
        precision = precision.flip(1).cummax(dim=1).values.flip(1)
    total = holds.sum(dim=1)
    return ((precision * holds).sum(dim=1) / total)[total > 0]


def _last_of_its_score(values: Tensor) -> Tensor:
    """Rank of the last entry with the same value, int64 [R, K]. values: sorted [R, K]."""
    ranks = torch.arange(values.shape[1], device=values.device).expand_as(values)
    last = torch.ones_like(values, dtype=torch.bool)
    last[:, :-1] = values[:, 1:] != values[:, :-1]
    return ranks.masked_fill(~last, values.shape[1]).flip(1).cummin(dim=1).values.flip(1)


def _percent(precisions: Tensor) -> float:
    if not len(precisions):
        raise InputError("no class holds in any of the held-out images, so there is no average precision; label some")
    return 100.0 * float(precisions.mean())
