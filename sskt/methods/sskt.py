"""SSKT: auxiliary heads learn the sources' soft labels beside the target's own task (arXiv 2110.12696).

L = CE(target, y) + sum over sources m of alpha_m * L_aux(head_m(target), softmax(source_m / T)), each source over its
own label space; the paper has one alpha for all. The heads are dropped at export.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from sskt.errors import InputError
from sskt.feeds import Batch
from sskt.heads import LinearHead, TransferModule
from sskt.losses import SOFT_LOSSES
from sskt.methods.base import (
    Facts,
    LearnFrom,
    Needs,
    SingleTarget,
    labelled_cross_entropy,
    require_sources,
)


@dataclass(frozen=True, kw_only=True)
class SSKTOptions:
    """Defaults are those behind the paper's tables: alpha 1, T 1, soft cross-entropy, linear heads."""

    alpha: float | dict[str, float] = 1.0
    """Weight of the auxiliary losses: one for all sources, or one by source."""
    temperature: float = 1.0
    """Softens source and head alike; the paper's figures show little effect between 1 and 3."""
    loss: Literal["ce", "kl"] = "ce"
    """Both have the same gradient; `kl` is 0 where head and source agree."""
    heads: Literal["linear", "transfer"] = "linear"
    """One linear layer on the embedding, or the paper's transfer module on all taps."""
    combine: Literal["mean", "sum"] = "mean"
    """How the transfer module joins its taps: `mean` as released, `sum` as written."""
    width: int = 64
    """Channels of the transfer module."""
    learn_from: LearnFrom = "labelled"
    """As the paper does; `all` adds the unlabelled images of the pool to the auxiliary losses."""

    def __post_init__(self) -> None:
        for alpha in self.alpha.values() if isinstance(self.alpha, dict) else [self.alpha]:
            if alpha < 0:
                raise InputError(f"alpha is {self.alpha}; it has to be at least 0")
        if self.temperature <= 0:
            raise InputError(f"temperature is {self.temperature}; it has to be above 0")
        if self.width < 2:
            raise InputError(f"width is {self.width}; it has to be at least 2")

    def weight_of(self, source: str) -> float:
        """Weight of one source's auxiliary loss."""
        return self.alpha[source] if isinstance(self.alpha, dict) else self.alpha


class SSKT(SingleTarget):
    """Auxiliary heads on the target learn the soft labels of any number of sources, whatever their label spaces."""

    Options: ClassVar[type[Any]] = SSKTOptions
    options: SSKTOptions

    @classmethod
    def needs(cls, options: SSKTOptions) -> Needs:
        """Logits; and the pool, where the auxiliary loss has a weight and learns from all images."""
        weighted = any(options.alpha.values()) if isinstance(options.alpha, dict) else options.alpha > 0
        return Needs(outputs=("logits",), pool=options.learn_from == "all" and weighted)

    @classmethod
    def check(cls, options: SSKTOptions, facts: Facts) -> None:
        """At least one source, with any label space; taps for the transfer module."""
        require_sources(facts)
        if isinstance(options.alpha, dict) and set(options.alpha) != set(facts.sources):
            raise InputError(f"alpha names {sorted(options.alpha)}; it has to name the sources {sorted(facts.sources)}")
        if options.heads == "transfer" and not facts.taps:
            raise InputError("heads 'transfer' hang on the target's taps, and this target has none; use heads 'linear'")

    def build_heads(self) -> nn.ModuleDict:
        """One head per source."""
        return nn.ModuleDict({name: self._head(facts.classes) for name, facts in self.task.facts.sources.items()})

    def _head(self, classes: int) -> nn.Module:
        if self.options.heads == "linear":
            return LinearHead(self.target.embedding_dim, classes)
        taps = self.task.facts.taps
        return TransferModule(taps, classes, width=self.options.width, combine=self.options.combine)

    def losses(self, batch: Batch, logits: Tensor, heads: dict[str, Tensor]) -> dict[str, Tensor]:
        """The paper's equation, a part per source."""
        soft = SOFT_LOSSES[self.options.loss]
        parts = {"primary": labelled_cross_entropy(logits, batch.labels)}
        for name, head_logits in heads.items():
            source_logits = batch.outputs[name]["logits"]
            auxiliary = soft(head_logits, source_logits, temperature=self.options.temperature)
            parts[f"auxiliary/{name}"] = self.options.weight_of(name) * auxiliary
        return parts
