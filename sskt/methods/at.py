"""Attention transfer (arXiv 1612.03928): the target looks where the sources look.

L = CE(target, y) + weight * sum over sources m and pairs of taps of mean((q(a) - q(a_m))^2), with q the mean over the
channels of the squares as a unit vector over the H x W cells, and the mean over batch and cells. The last taps are
paired with the last, as many as both have; the larger map of a pair is averaged to the size of the smaller before it is
made a unit vector. Nothing is projected, so sources may have any classes, channels and sizes.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sskt.errors import InputError
from sskt.feeds import Batch
from sskt.heads import TapsHead
from sskt.map_losses import attention_mse
from sskt.maps import from_the_last, split_attention
from sskt.methods.base import Facts, LearnFrom, Needs, SingleTarget, learns_from_all, require_sources, require_taps


@dataclass(frozen=True, kw_only=True)
class ATOptions:
    """The form of the loss and its weight are RepDistiller's."""

    weight: float = 1000.0
    """Weight of the sum over sources and pairs of taps; 1000 is RepDistiller's, for means over batch and cells."""
    learn_from: LearnFrom = "labelled"
    """The images whose maps are compared; `labelled` as published, `all` adds those of the whole pool."""

    def __post_init__(self) -> None:
        if not self.weight >= 0:
            raise InputError(f"weight is {self.weight}; it has to be at least 0")


class AT(SingleTarget):
    """The target's maps of activity, tap by tap from the last, match the sources' (attention transfer)."""

    Options: ClassVar[type[Any]] = ATOptions
    options: ATOptions
    mixable: ClassVar[bool] = True

    @classmethod
    def needs(cls, options: ATOptions) -> Needs:
        """Attention maps; and the pool, where they have a weight and are learnt from all images."""
        return Needs(outputs=("attention",), pool=learns_from_all(options.learn_from, options.weight))

    @classmethod
    def check(cls, options: ATOptions, facts: Facts) -> None:
        """At least one source; taps on all networks."""
        require_sources(facts)
        require_taps(facts)

    def build_heads(self) -> nn.ModuleDict:
        """One way out for the taps, the same for all sources."""
        return nn.ModuleDict({"taps": TapsHead()})

    def losses(self, batch: Batch, logits: Tensor, heads: dict[str, tuple[Tensor, ...]]) -> dict[str, Tensor]:
        """The equation above, a part per source."""
        parts = {"primary": self.task.primary_loss(logits, batch.labels)}
        for name, facts in self.task.facts.sources.items():
            maps = split_attention(batch.outputs[name]["attention"], facts.maps)
            pairs = [attention_mse(tap, one) for tap, one in from_the_last(heads["taps"], maps)]
            parts[f"attention/{name}"] = self.options.weight * torch.stack(pairs).sum()
        return parts
