"""How a source's outputs are stored: rows of floats to rows of bytes and back."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from sskt.errors import InputError, unknown_name


@dataclass(frozen=True)
class Encoding:
    """encode: float32 [n, W] -> uint8 [n, row_bytes(W)]; decode: the reverse."""

    encode: Callable[[Tensor], Tensor]
    decode: Callable[[Tensor], Tensor]
    row_bytes: Callable[[int], int]
    exact: bool
    """Whether what is decoded is what was encoded, to the bit."""


def _encode_fp32(values: Tensor) -> Tensor:
    return values.float().contiguous().view(torch.uint8)


def _decode_fp32(payload: Tensor) -> Tensor:
    return payload.contiguous().view(torch.float32)


def _encode_fp16(values: Tensor) -> Tensor:
    largest = values.abs().max().item() if values.numel() else 0.0
    if not largest <= torch.finfo(torch.float16).max:
        raise InputError(f"cache.encoding is 'fp16', but an output reaches {largest:g}; use 'fp32'")
    return values.half().contiguous().view(torch.uint8)


def _decode_fp16(payload: Tensor) -> Tensor:
    return payload.contiguous().view(torch.float16).float()


ENCODINGS = {
    "fp32": Encoding(_encode_fp32, _decode_fp32, lambda width: 4 * width, exact=True),
    "fp16": Encoding(_encode_fp16, _decode_fp16, lambda width: 2 * width, exact=False),
}


def get_encoding(name: str) -> Encoding:
    """Return the encoding of that name."""
    if name not in ENCODINGS:
        raise unknown_name("cache.encoding", name, ENCODINGS)
    return ENCODINGS[name]


def encode_output(output: str, values: Tensor, encoding: Encoding) -> Tensor:
    """Encode an output of a source, [n, W]. Logits that lose precision lose it far from their maximum.

    A softmax does not see the shift, and a probability below exp(-60000) is none.
    """
    if output == "logits" and not encoding.exact:
        values = (values.float() - values.amax(dim=1, keepdim=True).float()).clamp(min=-6e4)
    return encoding.encode(values)
