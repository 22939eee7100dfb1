"""How a source's outputs are stored: rows of floats to rows of bytes and back."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sskt.errors import unknown_name


@dataclass(frozen=True)
class Encoding:
    """encode: float32 [n, C] -> uint8 [n, row_bytes(C)]; decode: the reverse."""

    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]
    row_bytes: Callable[[int], int]


def _encode_fp32(logits: Tensor) -> Tensor:
    return logits.float().contiguous().view(torch.uint8)


def _decode_fp32(payload: Tensor) -> Tensor:
    return payload.contiguous().view(torch.float32)


def _encode_fp16(logits: Tensor) -> Tensor:
    # Relative to the maximum, so that precision sits where the probability is; softmax does not see the shift.
    shifted = logits.float() - logits.amax(dim=1, keepdim=True).float()
    return shifted.clamp(min=torch.finfo(torch.float16).min).half().contiguous().view(torch.uint8)


def _decode_fp16(payload: Tensor) -> Tensor:
    return payload.contiguous().view(torch.float16).float()


ENCODINGS = {
    "fp32": Encoding(_encode_fp32, _decode_fp32, lambda classes: 4 * classes),
    "fp16": Encoding(_encode_fp16, _decode_fp16, lambda classes: 2 * classes),
}


def get_encoding(name: str) -> Encoding:
    """Return the encoding of that name."""
    if name not in ENCODINGS:
        raise unknown_name("encoding", name, ENCODINGS)
    return ENCODINGS[name]
