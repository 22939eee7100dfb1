"""Any classifier with its inner features in reach, left as it is."""

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sskt.errors import InputError, unknown_name
from sskt.maps import MapShape
from sskt.networks.preprocess import Preprocess
from sskt.settings import Option

_HEAD_INPUT = "the head"
"""Key of the embedding among the taps; no module has a space in its name."""

PRECISIONS = {"float32": None, "bfloat16": torch.bfloat16, "float16": torch.float16}
"""What `precision` says a network computes in, where that is not the precision of its weights."""

_BFLOAT16 = ("avx512_bf16", "amx_bf16", "bf16")
"""Instructions for it, of x86 and of ARM."""


def imitates_bfloat16() -> bool:
    """Whether this machine's processor computes in it by converting: several times as slow as in float32."""
    has = torch.cpu.get_capabilities()
    return not any(has.get(name) for name in _BFLOAT16)


class Features(NamedTuple):
    """What a network makes of a batch. taps: [B, C_i, H_i, W_i] each; embedding: [B, D]; logits: [B, classes]."""

    taps: tuple[Tensor, ...]
    embedding: Tensor
    logits: Tensor


@dataclass(frozen=True)
class Blueprint:
    """How to build a network again."""

    architecture: str
    options: Mapping[str, Option] = field(default_factory=dict)


class TappedNetwork(nn.Module):
    """A classifier that sees uint8 images and shows the outputs of named parts and the input of its head."""

    blueprint: Blueprint | None = None
    """Filled in by those who build from a name."""
    frozen: tuple[str, ...] = ()
    """Names of the parts that training leaves alone, filled in by `freeze`."""
    computes_in: torch.dtype | None = None
    """Of its layers, where that is not the precision of its weights, in which it gives what it gives."""

    compiled: "Callable[[TappedNetwork, Tensor], Features] | None" = None
    """Gives what `features` gives without taps, and quicker; of whatever network it is asked about, as of a copy."""

    def __init__(self, network: nn.Module, *, taps: tuple[str, ...], head: str, preprocess: Preprocess) -> None:
        super().__init__()
        modules = dict(network.named_modules())
        for tap in taps:
            if tap not in modules:
                raise unknown_name("tap", tap, filter(None, modules))
        if not isinstance(modules.get(head), nn.Linear):
            raise unknown_name("head", head, linear_names(network))
        self.network = network
        self.preprocess = preprocess
        self.taps = taps
        self.head = head

    @property
    def embedding_dim(self) -> int:
        """Width of what the head reads."""
        return self._head_module().in_features

    @property
    def classes(self) -> int:
        """Number of logits."""
        return self._head_module().out_features

    def forward(self, images: Tensor, *, with_taps: bool = True) -> Features:
        """Run on uint8 images [B, c, H, W]. Without taps, where nobody reads them, their copies are saved."""
        if self.compiled is None or with_taps:
            return self.features(images, with_taps=with_taps)
        features = self.compiled(self, images)
        # Clones, for a graph of a GPU writes to the same memory every time.
        return Features((), features.embedding.clone(), features.logits.clone())

    def features(self, images: Tensor, *, with_taps: bool) -> Features:
        """Run, not compiled."""
        taps = self.taps if with_taps else ()
        pixels = self.preprocess(images)
        with self._recorded(taps) as seen, self._computing(pixels):
            logits = self.network(pixels)
        if not isinstance(logits, Tensor):
            raise InputError(f"the network returned a {type(logits).__name__}; it has to return its logits, one tensor")
        for part in (*taps, _HEAD_INPUT):
            if part not in seen:
                raise InputError(f"{part!r} of {type(self.network).__name__} took no part in making the logits")
        maps = tuple(seen[tap].to(pixels.dtype) for tap in taps)
        return Features(maps, seen[_HEAD_INPUT].flatten(1).to(pixels.dtype), logits.to(pixels.dtype))

    def tap_shapes(self, image_size: int, channels: int) -> tuple[MapShape, ...]:
        """Return the shape of each tap for images [B, channels, image_size, image_size]."""
        taps = self.try_on(image_size, channels).taps
        for name, tap in zip(self.taps, taps, strict=True):
            if tap.ndim != 4:
                raise InputError(f"tap {name!r} gives the shape {list(tap.shape)}; it has to be [B, C, H, W]")
        return tuple(MapShape(*tap.shape[1:]) for tap in taps)

    def try_on(self, image_size: int, channels: int) -> Features:
        """Run once on a black image; raise InputError where the network does not take images of that size."""
        # A copy runs, so that neither mode nor statistics change; on the host, whose random numbers are put back.
        trial = copy.deepcopy(self).cpu().eval()
        try:
            with torch.no_grad(), torch.random.fork_rng(devices=[]):
                features: Features = trial(torch.zeros(1, channels, image_size, image_size, dtype=torch.uint8))
        except InputError:
            raise
        except (RuntimeError, ValueError, AssertionError) as error:  # what networks say to a shape they do not take
            seen = self.preprocess.values.side(image_size)
            reason = str(error).strip().partition("\n")[0]
            raise InputError(
                f"{type(self.network).__name__} does not take images of {seen} by {seen} pixels ({reason}); "
                "say which in input.size"
            ) from error
        return features

    def freeze(self, parts: tuple[str, ...]) -> None:
        """Keep parts of the plain network, by dotted names and with all below them, from being changed by training."""
        known = [name for name, _ in self.network.named_modules() if name]
        for part in parts:
            if part not in known:
                raise unknown_name("frozen part", part, known)
            if f"{self.head}.".startswith(f"{part}."):
                raise InputError(f"frozen part {part!r} holds the head {self.head!r}, which is new and has to learn")
        self.frozen = parts
        for part in parts:
            self.network.get_submodule(part).requires_grad_(requires_grad=False)
        self.train(self.training)

    def train(self, mode: bool = True) -> Self:  # noqa: FBT001, FBT002 (nn.Module's own signature)
        """Switch between training and evaluation; frozen parts stay in evaluation, their statistics as they are."""
        super().train(mode)
        for part in self.frozen:
            self.network.get_submodule(part).eval()
        return self

    def replace_head(self, classes: int) -> None:
        """Put a fresh linear layer in place of the head."""
        old = self._head_module()
        like = {"device": old.weight.device, "dtype": old.weight.dtype}
        self.network.set_submodule(
            self.head, nn.Linear(old.in_features, classes, bias=old.bias is not None, **like), strict=True
        )

    def _computing(self, pixels: Tensor) -> AbstractContextManager[Any]:
        return torch.autocast(pixels.device.type, self.computes_in) if self.computes_in else nullcontext()

    def _head_module(self) -> nn.Linear:
        head = self.network.get_submodule(self.head)
        assert isinstance(head, nn.Linear)  # noqa: S101 (checked when built)
        return head

    @contextmanager
    def _recorded(self, taps: tuple[str, ...]) -> Iterator[dict[str, Tensor]]:
        """Collect taps by name, and the input of the head under its own key.

        The hooks live for one forward only: copies have none that point to the original, the plain network has none
        when it is exported, and nothing keeps activations alive.
        """
        seen: dict[str, Tensor] = {}
        handles = [self._record_output(tap, seen) for tap in dict.fromkeys(taps)]

        def record_input(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            seen[_HEAD_INPUT] = inputs[0]

        handles.append(self._head_module().register_forward_pre_hook(record_input))
        try:
            yield seen
        finally:
            for handle in handles:
                handle.remove()

    def _record_output(self, tap: str, seen: dict[str, Tensor]) -> RemovableHandle:
        def record(module: nn.Module, inputs: Any, output: Any) -> None:
            if not isinstance(output, Tensor):
                raise InputError(f"tap {tap!r} gives a {type(output).__name__}; it has to give one tensor")
            # A copy, for the next module may work in place (ReLU after a convolution or a normalisation).
            seen[tap] = output.clone()

        return self.network.get_submodule(tap).register_forward_hook(record)


def linear_names(network: nn.Module) -> list[str]:
    """Dotted names of all linear layers, in order."""
    return [name for name, module in network.named_modules() if isinstance(module, nn.Linear) and name]


def last_linear(network: nn.Module) -> str:
    """Dotted name of the last linear layer, the usual head of a classifier."""
    names = linear_names(network)
    if not names:
        raise InputError(f"{type(network).__name__} has no linear layer; a classifier needs one as its head")
    return names[-1]
