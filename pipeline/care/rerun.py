"""Running a source again on some samples of a segment: is what is stored still what it says?

What is compared: of logits what a loss sees of them, the distances below the largest (no further down than any encoding
keeps), or the probabilities where only the likeliest are stored; other outputs as they are.

How far it may be off: the same views run twice, in batches of other sizes and another order, tell what floating point
does (the noise: at least the last bit of the largest value). The stored values came from yet other batches, and noise
was seen on few rows, so 10 times as much is allowed. On top comes the encoding's own rounding. Where values are rounded
to a grid that stands still (`fp32`, `fp16`), that is the error it makes of the same value now: rounding takes the
nearest point, so noise n may move a value to the other side of a midpoint, but no further from it than 2n more. Where
the grid goes by the row (`u8`, `topK`), it is twice the largest error it makes of the same row now.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.planning.specs import Labels
from sskt.encodings import U8_RANGE, Fp16, Fp32
from sskt.gallery import Gallery
from sskt.sources import Source
from sskt.views import hash_counters

SAMPLES = 16
"""Samples of a segment that are run at least."""
NOISE = 10
"""How much more than the noise that was seen is allowed."""


@dataclass(frozen=True, kw_only=True)
class Rerun:
    """What was seen."""

    samples: int
    largest: float
    """Largest difference between what is stored and what the source says now."""
    beyond: float
    """How much of such a difference rounding does not explain, at most; up to 10 times the noise is right."""
    noise: float
    """Largest difference between two runs."""
    wrong: tuple[int, ...]
    """Samples with a value that is further off than allowed."""


def choose(ids: range, fraction: float) -> Tensor:
    """Choose samples by a hash of their ids, the same every time: int64 [n], ascending."""
    count = min(len(ids), max(SAMPLES, math.ceil(fraction * len(ids))))
    every = torch.arange(ids.start, ids.stop)
    return every[hash_counters(0, every).argsort()[:count]].sort().values


def run_again(
    source: Source, gallery: Gallery, stored: Tensor, *, ids: Tensor, view_ids: Sequence[int], labels: Labels
) -> Rerun:
    """Compare. stored: uint8 [n, views, bytes], what is said of the views view_ids of the samples ids."""
    batch = labels.numerics["batch_size"]
    rows = torch.arange(len(ids)).repeat_interleave(len(view_ids))
    views = torch.tensor(view_ids).repeat(len(ids))

    def say(order: Tensor, size: int) -> Tensor:
        parts = [_said(source, gallery, ids=ids[rows[at]], views=views[at], labels=labels) for at in order.split(size)]
        return torch.cat(parts)[order.argsort()]

    order = torch.arange(len(rows))
    said, again = say(order, batch), say(order.flip(0), max(1, min(batch, len(rows)) // 3))
    now, twice = compared(said, labels), compared(again, labels)
    noise = max(_largest(now - twice), torch.finfo(torch.float32).eps * _largest(now))
    kept = compared(labels.encoder.decode(labels.encoder.encode(said), labels.width), labels)
    rounding = (kept - now).abs()
    if not isinstance(labels.encoder, Fp32 | Fp16):
        rounding = 2 * rounding.amax(dim=1, keepdim=True)
    there = compared(labels.encoder.decode(stored.reshape(len(rows), -1), labels.width), labels)
    beyond = (there - now).abs() - rounding
    wrong = ids[rows[~(beyond <= NOISE * noise).all(dim=1)]].unique()
    return Rerun(
        samples=len(ids),
        largest=_largest(there - now),
        beyond=max(0.0, float(beyond.max())),
        noise=noise,
        wrong=tuple(wrong.tolist()),
    )


def compared(values: Tensor, labels: Labels) -> Tensor:
    """What of float32 [n, W] is compared."""
    if labels.output != "logits":
        return values
    if not labels.encoder.dense:
        return F.softmax(values, dim=1)
    return (values - values.amax(dim=1, keepdim=True)).clamp(min=-U8_RANGE)


def _said(source: Source, gallery: Gallery, *, ids: Tensor, views: Tensor, labels: Labels) -> Tensor:
    """Run one batch of views: float32 [B, W]."""
    seen = gallery.show(ids, views=views, kind=labels.kind).to(labels.numerics["device"])
    return source.outputs(seen, (labels.output,))[labels.output].cpu()


def _largest(values: Tensor) -> float:
    return float(values.abs().max())
