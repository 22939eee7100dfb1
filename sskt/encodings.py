"""How a source's outputs are stored: rows of floats to rows of bytes and back. The largest logit stays the largest.

fp32   as they are
fp16   half precision; logits relative to their largest, which a softmax does not see
u8     one byte a value, evenly from the row's largest value down, and 4 bytes that say how
topK   K a number, logits only: the K likeliest classes and the mass of all others; other outputs as fp16
"""

import re
from abc import ABC, abstractmethod

import torch
from torch import Tensor
from torch.nn import functional as F

from sskt.errors import InputError, unknown_name

DENSE = ("fp32", "fp16", "u8")
FP16_RANGE = 6e4
"""How far below the largest a logit is kept in fp16: a probability below exp(-60000) is none."""
U8_RANGE = 24.0
"""How far below the largest a logit is kept in u8: such a class has less than 4e-11 of the mass of the likeliest."""
FP16_STEP = 2.0**-24
"""The smallest number of fp16: how far below the largest a logit stays that is below it at all."""
LEAST_SPAN = 1e-30
"""A u8 row spans at least so much, which keeps its step a normal number."""
LEAST_MASS = 1e-12
"""Mass of a class that is not among the K likeliest at least, so that its logarithm is finite."""
NUDGE = 2.0**-10
"""By what part the likeliest class is made likelier than another that rounding has made its equal."""
HEADER = 4
"""Bytes before the values of a u8 row: two numbers of 16 bits."""


class Encoding(ABC):
    """Turns float32 [n, W] into uint8 [n, row_bytes(W)] and, later, any [..., row_bytes(W)] back into [..., W]."""

    exact = False
    """Whether what is decoded is what was encoded, to the bit."""
    dense = True
    """Whether every value is kept, so that another temperature can be applied later."""

    def check(self, width: int) -> None:  # noqa: B027 (most encodings take rows of any width)
        """Raise InputError if rows of so many values cannot be encoded."""

    @abstractmethod
    def row_bytes(self, width: int) -> int:
        """Bytes of a row of so many values."""

    @abstractmethod
    def encode(self, values: Tensor) -> Tensor:
        """Encode rows."""

    @abstractmethod
    def decode(self, payload: Tensor, width: int) -> Tensor:
        """Decode rows to float32."""


class Fp32(Encoding):
    """As they are."""

    exact = True

    def row_bytes(self, width: int) -> int:
        """Four a value."""
        return 4 * width

    def encode(self, values: Tensor) -> Tensor:
        """Take the bytes."""
        return values.float().contiguous().view(torch.uint8)

    def decode(self, payload: Tensor, width: int) -> Tensor:
        """Take the numbers."""
        return payload.contiguous().view(torch.float32)


class Fp16(Encoding):
    """Half precision."""

    def row_bytes(self, width: int) -> int:
        """Two a value."""
        return 2 * width

    def encode(self, values: Tensor) -> Tensor:
        """Round; a number that half precision does not have is refused."""
        return _fp16_bytes(values, "fp16")

    def decode(self, payload: Tensor, width: int) -> Tensor:
        """Widen."""
        return payload.contiguous().view(torch.float16).float()


class Fp16Logits(Fp16):
    """Half precision, relative to the row's largest: what loses precision is far from it."""

    def encode(self, values: Tensor) -> Tensor:
        """Shift, which a softmax does not see, and round; what is below the largest stays below it."""
        below = _below_largest(values).clamp(min=-FP16_RANGE)
        return super().encode(torch.where(below < 0, below.clamp(max=-FP16_STEP), below))


class U8(Encoding):
    """value = top - code * step. Header: top in fp16, step in bf16."""

    def row_bytes(self, width: int) -> int:
        """One a value, and the header."""
        return HEADER + width

    def encode(self, values: Tensor) -> Tensor:
        """Measure the rows and round."""
        _check_range(values, "u8")
        top = values.amax(dim=1, keepdim=True).half()
        codes, step = _codes(top.float() - values.float())
        return torch.cat([top.view(torch.uint8), step, codes], dim=1)

    def decode(self, payload: Tensor, width: int) -> Tensor:
        """Count down from the top."""
        top = _numbers(payload[..., :2], torch.float16).float()
        return payload[..., HEADER:].float().mul_(-_step(payload)).add_(top)


class U8Logits(U8):
    """value = -code * step, relative to the row's largest. Header: place of the largest, step in bf16."""

    def check(self, width: int) -> None:
        """Places have 16 bits."""
        if width > 1 << 15:
            raise InputError(f"cache.encoding is 'u8', which has room for {1 << 15} classes; the source has {width}")

    def encode(self, values: Tensor) -> Tensor:
        """Remember the largest, so that rounding makes no other class its equal."""
        place = values.argmax(dim=1, keepdim=True).to(torch.int16).view(torch.uint8)
        codes, step = _codes(-_below_largest(values).clamp(min=-U8_RANGE))
        return torch.cat([place, step, codes], dim=1)

    def decode(self, payload: Tensor, width: int) -> Tensor:
        """Count down from 0; what was rounded up to the largest lies a quarter of a step below it."""
        place = _numbers(payload[..., :2], torch.int16).long()
        codes = payload[..., HEADER:].float().clamp_(min=0.25)
        return codes.mul_(-_step(payload)).scatter_(-1, place, 0.0)


class TopK(Encoding):
    """The K likeliest classes, likeliest first: their places, then the roots of their probabilities in a byte each.

    Last, in fp16, the mass of all other classes as a multiple of theirs, which is precise whether it is near 0 or huge.
    Decoded, the others share their mass evenly, and all probabilities add up to 1.
    """

    dense = False

    def __init__(self, kept: int) -> None:
        self.kept = kept

    def check(self, width: int) -> None:
        """There has to be something to leave out."""
        if not self.kept < width <= 1 << 15:
            raise InputError(
                f"cache.encoding is 'top{self.kept}' for {width} classes; it is for more than {self.kept} of them, and "
                f"for {1 << 15} at most"
            )

    def row_bytes(self, width: int) -> int:
        """A place (one byte up to 256 classes, else two) and a byte for each, and two for the others' mass."""
        return self.kept * (1 + _place_bytes(width)) + 2

    def encode(self, values: Tensor) -> Tensor:
        """Keep the likeliest."""
        probabilities = F.softmax(values.double(), dim=1)
        # A stable order: of equal classes the first comes first, as argmax has it.
        places = values.sort(dim=1, descending=True, stable=True).indices[:, : self.kept]
        kept = probabilities.gather(1, places)
        # Summed from the others themselves: 1 minus the kept ones is rounding error where those are nearly all.
        others = probabilities.scatter(1, places, 0.0).sum(dim=1, keepdim=True)
        odds = (others / kept.sum(dim=1, keepdim=True)).half()
        roots = (kept.sqrt() * 255).round().clamp(min=1).to(torch.uint8)
        kind = _place_kind(values.shape[1])
        return torch.cat([places.to(kind).view(torch.uint8), roots, odds.view(torch.uint8)], dim=1)

    def decode(self, payload: Tensor, width: int) -> Tensor:
        """Return logarithms of probabilities."""
        end, left_out = self.kept * _place_bytes(width), width - self.kept
        places = _numbers(payload[..., :end], _place_kind(width)).long()
        mass = (payload[..., end : end + self.kept].float() / 255).square()
        mass[..., 0] *= 1 + NUDGE  # rounding may have made the second its equal
        odds = _numbers(payload[..., end + self.kept :], torch.float16).float()
        # Nor may rounding make the others as likely, one by one, as the kept ones are on average.
        odds = odds.clamp(min=LEAST_MASS * left_out, max=left_out / self.kept * (1 - NUDGE))
        mass = mass / mass.sum(dim=-1, keepdim=True) / (1 + odds)
        others = (odds / (1 + odds) / left_out).log().expand(*payload.shape[:-1], width)
        return others.scatter(-1, places, mass.log())


def get_encoding(name: str, output: str) -> Encoding:
    """Return the encoding of that name for an output of a source."""
    logits = output == "logits"
    if name == "fp32":
        return Fp32()
    if name == "fp16":
        return Fp16Logits() if logits else Fp16()
    if name == "u8":
        return U8Logits() if logits else U8()
    kept = re.fullmatch(r"top([1-9][0-9]*)", name)
    if kept is None:
        raise unknown_name("cache.encoding", name, [*DENSE, "top10", "auto"])
    return TopK(int(kept[1])) if logits else Fp16()


def stored_as(name: str, output: str) -> str:
    """The encoding an output is stored in: fp16 where it is for logits only and this is none, or not chosen yet."""
    return name if name in DENSE or (output == "logits" and name != "auto") else "fp16"


def _below_largest(values: Tensor) -> Tensor:
    return values.float() - values.float().amax(dim=1, keepdim=True)


def _fp16_bytes(values: Tensor, name: str) -> Tensor:
    _check_range(values, name)
    return values.half().contiguous().view(torch.uint8)


def _check_range(values: Tensor, name: str) -> None:
    largest = values.abs().max().item() if values.numel() else 0.0
    if not largest <= torch.finfo(torch.float16).max:
        raise InputError(f"cache.encoding is {name!r}, but an output reaches {largest:g}; use 'fp32'")


def _codes(below: Tensor) -> tuple[Tensor, Tensor]:
    """Codes [n, W] of distances below the top, and the bytes of their step [n, 2]."""
    span = below.amax(dim=1, keepdim=True).clamp(min=LEAST_SPAN)
    # A little more than the span, for bf16 may round the step down.
    step = (span / 255 * (1 + 2**-8)).to(torch.bfloat16)
    codes = (below / step.float()).round().clamp(0, 255).to(torch.uint8)
    return codes, step.view(torch.uint8)


def _step(payload: Tensor) -> Tensor:
    return _numbers(payload[..., 2:HEADER], torch.bfloat16).float()


def _numbers(part: Tensor, kind: torch.dtype) -> Tensor:
    """Read the bytes of a part of each row as numbers; a copy, for numbers have to begin at multiples of their size."""
    return part.clone(memory_format=torch.contiguous_format).view(kind)


def _place_bytes(width: int) -> int:
    return 1 if width <= 256 else 2


def _place_kind(width: int) -> torch.dtype:
    return torch.uint8 if _place_bytes(width) == 1 else torch.int16
