"""Targets laid out and compiled for their device: quicker, and rounded a little differently, as on another machine."""

import copy
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from sskt.networks import Features, TappedNetwork


def arrange(module: nn.Module, images: Callable[[], Tensor], *, mode: str, channels_last: bool) -> None:
    """Do what is asked for with a module on its device; warn in a line where it cannot be compiled."""
    if channels_last:
        lay_channels_last(module)
    if mode != "none":
        reason = compile_targets(module, images(), mode=mode)
        if reason:
            warnings.warn(f"resources.compile is {mode!r}, but this target is not compiled: {reason}", stacklevel=2)


def lay_channels_last(module: nn.Module) -> None:
    """Lay the weights of convolutions over images out with their channels last in memory, for which images follow."""
    for weight in (one for one in module.parameters() if one.ndim == 4):  # those of clips have five dimensions
        weight.data = weight.data.contiguous(memory_format=torch.channels_last)


def compile_targets(module: nn.Module, images: Tensor, *, mode: str | None, **options: Any) -> str | None:
    """Compile the targets in a module; or leave them as they are and say in a line why they cannot be.

    Each is tried first, on a copy with images uint8 [B, c, S, S]. options: more for torch.compile.
    """
    from torch._dynamo.exc import TorchDynamoException  # seconds of a process that compiles nothing

    if getattr(module, "with_taps", False):
        return "its heads read feature maps, which are not there in a compiled one"
    compiled = torch.compile(_without_taps, mode=mode, **options)
    targets = [part for part in module.modules() if isinstance(part, TappedNetwork)]
    for target in targets:
        trial = copy.deepcopy(target)
        trial.compiled = compiled
        try:
            with torch.random.fork_rng(devices=[images.device] if images.is_cuda else []):
                trial.train()(images, with_taps=False).logits.sum().backward()
        except (TorchDynamoException, RuntimeError) as error:  # of a compiler, and of what it calls
            return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    for target in targets:
        target.compiled = compiled
    return None


def _without_taps(target: TappedNetwork, images: Tensor) -> Features:
    return target.features(images, with_taps=False)
