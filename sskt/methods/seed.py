"""SEED (Fang 2021): the target is as like each of many cached images as the source is. DoGo's mutual term, offline.

L = CE(target, y) + weight * sum over sources m of KL(softmax(t . d_j / T_m) || softmax(p . d_j / T)): p the target's
embedding through a projection into the source's space, t the source's embedding of the same view, d_0 = t itself and
d_1 .. d_N a bank of the source's embeddings of other images; all of them unit rows. Projections are dropped at export.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from sskt.bank_losses import bank_kl
from sskt.banks import make_bank
from sskt.errors import InputError, unknown_name
from sskt.feeds import Batch
from sskt.heads import LinearHead
from sskt.methods.base import Facts, LearnFrom, Needs, SingleTarget, Task, learns_from_all, require_sources
from sskt.networks import Features


class MLPHead(nn.Module):
    """Two layers on the embedding, as wide between them as the embedding."""

    def __init__(self, embedding_dim: int, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(embedding_dim, embedding_dim), nn.ReLU(), nn.Linear(embedding_dim, width))

    def forward(self, features: Features) -> Tensor:
        """Return [B, width]."""
        projected: Tensor = self.layers(features.embedding)
        return projected


PROJECTIONS = {"linear": LinearHead, "mlp": MLPHead}


@dataclass(frozen=True, kw_only=True)
class SEEDOptions:
    """Temperatures and projection are SEED's; weight and size of the bank are ours."""

    weight: float = 1.0
    """Weight of the sum over sources; ours, untuned. SEED has no labels beside it."""
    bank: int = 4096
    """Images of the pool in the bank, at most all; ours. SEED's queue holds 65,536."""
    temperature: float = 0.2
    """Divides the target's cosines; SEED's."""
    source_temperature: float = 0.01
    """Divides the source's cosines: nearly all of the mass is on the nearest images. The paper's, recalled and not
    checked; the release's default is 0.0001, which leaves nothing but the image itself."""
    projection: Literal["linear", "mlp"] = "mlp"
    """From the target's embedding to the source's width; `mlp`, two layers, is SEED's."""
    learn_from: LearnFrom = "all"
    """The images that are compared with the bank; SEED needs no labels, so by default those of the whole pool too."""

    def __post_init__(self) -> None:
        if not self.weight >= 0:
            raise InputError(f"weight is {self.weight}; it has to be at least 0")
        if self.bank < 1:
            raise InputError(f"bank is {self.bank}; it has to be at least 1 image")
        for name in ("temperature", "source_temperature"):
            value = getattr(self, name)
            if not value > 0:
                raise InputError(f"{name} is {value}; it has to be above 0")
        if self.projection not in PROJECTIONS:
            raise unknown_name("projection", self.projection, PROJECTIONS)


class SEED(SingleTarget):
    """The target's embedding, projected, is as like each of a bank of images as the source's is (SEED); any widths."""

    Options: ClassVar[type[Any]] = SEEDOptions
    options: SEEDOptions
    mixable: ClassVar[bool] = True

    @classmethod
    def needs(cls, options: SEEDOptions) -> Needs:
        """Embeddings; and the pool, where the comparison has a weight and learns from all images."""
        return Needs(outputs=("embedding",), pool=learns_from_all(options.learn_from, options.weight), asks=True)

    @classmethod
    def check(cls, options: SEEDOptions, facts: Facts) -> None:
        """At least one source, with any classes and any width."""
        require_sources(facts)

    def __init__(self, task: Task, options: SEEDOptions) -> None:
        super().__init__(task, options)
        # Not saved: made again from the same seed.
        self.bank = make_bank(task.pool, task.facts.sources, size=options.bank, seed=task.seed)

    def build_heads(self) -> nn.ModuleDict:
        """One projection per source, into its space."""
        head, width = PROJECTIONS[self.options.projection], self.target.embedding_dim
        sources = self.task.facts.sources.items()
        return nn.ModuleDict({name: head(width, facts.embedding_dim) for name, facts in sources})

    def losses(self, batch: Batch, logits: Tensor, heads: dict[str, Tensor]) -> dict[str, Tensor]:
        """The equation above, a part per source."""
        options = self.options
        parts = {"primary": self.task.primary_loss(logits, batch.labels)}
        for name, projected in heads.items():
            distance = bank_kl(
                projected,
                batch.outputs[name]["embedding"],
                self.bank.rows[name],
                temperature=options.temperature,
                source_temperature=options.source_temperature,
            )
            parts[f"bank/{name}"] = options.weight * distance
        return parts
