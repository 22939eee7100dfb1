"""SSKT: auxiliary heads learn the sources' soft labels beside the target's own task (arXiv 2110.12696).

L = CE(target, y) + sum over sources m of alpha_m * L_aux(head_m(target), softmax(source_m / T)), each source over its
own label space; the paper has one alpha for all. The heads are dropped at export.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from sskt.errors import InputError, unknown_name
from sskt.feeds import Batch
from sskt.heads import LinearHead, TransferModule
from sskt.losses import SOFT_LOSSES
from sskt.methods.base import (
    Facts,
    LearnFrom,
    Needs,
    SingleTarget,
    learns_from_all,
    require_sources,
)


@dataclass(frozen=True, kw_only=True)
class Preset:
    """What the release of the paper and its equations do differently, as far as the target is concerned."""

    alpha: float
    temperature: float
    combine: Literal["mean", "sum"]
    kl_over_classes: bool
    """Whether `kl` is a mean over classes too, so as many times weaker as the source has classes."""


PRESETS = {
    "corrected": Preset(alpha=1.0, temperature=1.0, combine="sum", kl_over_classes=False),
    "paper_as_released": Preset(alpha=0.1, temperature=3.0, combine="mean", kl_over_classes=True),
}


@dataclass(frozen=True, kw_only=True)
class SSKTOptions:
    """Where a preset speaks of an option, None is what it says."""

    preset: Literal["corrected", "paper_as_released"] = "corrected"
    """The paper's equations with what its tables were made with (alpha 1, T 1), or the released code with its own
    defaults (alpha 0.1, T 3). The sources' part of the latter is `batch_norm: batch` and `input.scale: 2.3333`."""
    alpha: float | dict[str, float] | None = None
    """Weight of the auxiliary losses: one for all sources, or one by source."""
    temperature: float | None = None
    """Softens source and head alike; the paper's figures show little effect between 1 and 3."""
    loss: Literal["ce", "kl"] = "ce"
    """Both have the same gradient, as long as `kl` is no mean over classes; `kl` is 0 where head and source agree."""
    heads: Literal["linear", "transfer"] = "linear"
    """One linear layer on the embedding, or the paper's transfer module on all taps."""
    combine: Literal["mean", "sum"] | None = None
    """How the transfer module joins its taps: `mean` as released, `sum` as written."""
    width: int = 64
    """Channels of the transfer module, the paper's for the CIFAR networks."""
    taps: tuple[int, ...] | None = None
    """Which of the target's taps the transfer module reads, by their place from the input, from 0; None is all."""
    learn_from: LearnFrom = "labelled"
    """As the paper does; `all` adds the unlabelled images of the pool to the auxiliary losses."""

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise unknown_name("preset", self.preset, PRESETS)
        for alpha in self.alpha.values() if isinstance(self.alpha, dict) else [self.alpha]:
            if alpha is not None and not alpha >= 0:
                raise InputError(f"alpha is {self.alpha}; it has to be at least 0")
        if self.temperature is not None and not self.temperature > 0:
            raise InputError(f"temperature is {self.temperature}; it has to be above 0")
        if self.width < 2:
            raise InputError(f"width is {self.width}; it has to be at least 2")
        if self.taps is not None and self.heads != "transfer":
            raise InputError(f"taps are {list(self.taps)} with heads {self.heads!r}; only 'transfer' reads taps")
        if self.taps is not None and (not self.taps or sorted(set(self.taps)) != list(self.taps)):
            raise InputError(f"taps are {list(self.taps)}; name at least one, each once, in their order")

    @property
    def said(self) -> Preset:
        """What the preset says."""
        return PRESETS[self.preset]

    @property
    def final_temperature(self) -> float:
        """The temperature as set, else the preset's."""
        return self.said.temperature if self.temperature is None else self.temperature

    def weight_of(self, source: str) -> float:
        """Weight of one source's auxiliary loss."""
        if isinstance(self.alpha, dict):
            return self.alpha[source]
        return self.said.alpha if self.alpha is None else self.alpha

    def weight_of_loss(self, classes: int) -> float:
        """What the reduction of the loss multiplies it by."""
        return 1 / classes if self.loss == "kl" and self.said.kl_over_classes else 1.0


class SSKT(SingleTarget):
    """Auxiliary heads on the target learn the soft labels of any number of sources, whatever their label spaces."""

    Options: ClassVar[type[Any]] = SSKTOptions
    options: SSKTOptions
    mixable: ClassVar[bool] = True

    @classmethod
    def needs(cls, options: SSKTOptions) -> Needs:
        """Logits; and the pool, where the auxiliary loss has a weight and learns from all images."""
        weights = options.alpha.values() if isinstance(options.alpha, dict) else [options.weight_of("")]
        pool = learns_from_all(options.learn_from, *weights)
        return Needs(outputs=("logits",), pool=pool, tempered=options.final_temperature != 1)

    @classmethod
    def check(cls, options: SSKTOptions, facts: Facts) -> None:
        """At least one source, with any label space; taps for the transfer module."""
        require_sources(facts)
        if isinstance(options.alpha, dict) and set(options.alpha) != set(facts.sources):
            raise InputError(f"alpha names {sorted(options.alpha)}; it has to name the sources {sorted(facts.sources)}")
        if options.heads == "transfer" and not facts.taps:
            raise InputError("heads 'transfer' hang on the target's taps, and this target has none; use heads 'linear'")
        if options.taps and not set(options.taps) <= set(range(len(facts.taps))):
            raise InputError(f"taps are {list(options.taps)}; this target has those from 0 to {len(facts.taps) - 1}")

    def build_heads(self) -> nn.ModuleDict:
        """One head per source."""
        return nn.ModuleDict({name: self._head(facts.classes) for name, facts in self.task.facts.sources.items()})

    def _head(self, classes: int) -> nn.Module:
        if self.options.heads == "linear":
            return LinearHead(self.target.embedding_dim, classes)
        options, taps = self.options, tuple(tap.channels for tap in self.task.facts.taps)
        combine = options.combine or options.said.combine
        return TransferModule(taps, classes, width=options.width, combine=combine, read=options.taps)

    def losses(self, batch: Batch, logits: Tensor, heads: dict[str, Tensor]) -> dict[str, Tensor]:
        """The paper's equation, a part per source."""
        soft, temperature = SOFT_LOSSES[self.options.loss], self.options.final_temperature
        parts = {"primary": self.task.primary_loss(logits, batch.labels)}
        for name, head_logits in heads.items():
            weight = self.options.weight_of(name) * self.options.weight_of_loss(head_logits.shape[1])
            source_logits = batch.outputs[name]["logits"]
            parts[f"auxiliary/{name}"] = weight * soft(head_logits, source_logits, temperature=temperature)
        return parts
