"""Embedding matching after EmbedDistill (arXiv 2301.12005): the target's embedding, projected, meets the sources'.

L = CE(target, y) + sum over sources m of weight * L_emb(psi_m(e), t_m) + score_weight * L_score(psi_m(e), t_m), with e
the target's embedding, t_m the source's and psi_m a linear layer that is trained along and dropped at export.
L_emb is the mean over the batch of ||t - psi(e)||. L_score compares, image against image within the batch,
cos(t_i, t_j) with cos(psi(e_i), psi(e_j)); the paper scores queries against documents.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from sskt.embedding_losses import DISTANCES, SCORE_LOSSES
from sskt.errors import InputError, unknown_name
from sskt.feeds import Batch
from sskt.heads import LinearHead
from sskt.methods.base import Facts, LearnFrom, Needs, SingleTarget, learns_from_all, require_sources


@dataclass(frozen=True, kw_only=True)
class EmbedOptions:
    """The distance and its weight are the paper's; what images need instead of queries and documents is our choice."""

    distance: Literal["l2", "cosine", "mse"] = "l2"
    """`l2`, the paper's: mean over the batch of the Euclidean distance; `cosine`: of 1 - cos; `mse`: mean over batch
    and dimensions of the squared difference."""
    weight: float = 1.0
    """Weight of the sum of the distances over the sources; the paper adds its terms unweighted, which is 1."""
    score_weight: float = 0.0
    """Weight of the score matching, sum over sources; 0, our choice, leaves embedding matching alone (the paper: 1).

    `kl`: (1/B) sum_i KL(softmax_{j != i} cos(t_i, t_j) / T || softmax_{j != i} cos(p_i, p_j) / T), p = psi(e).
    `mse`: mean over i != j of (cos(t_i, t_j) / T - cos(p_i, p_j) / T)^2.
    """
    score_loss: Literal["kl", "mse"] = "kl"
    """How scores are compared; the paper names both."""
    score_temperature: float = 0.1
    """Divides the scores: 0.1 is that of DoGo's similarities; the paper's scores are dot products of networks trained
    for them, ours are cosines, which do not depend on a source's scale."""
    learn_from: LearnFrom = "labelled"
    """The images that are matched; `all`, which needs no label, adds those of the whole pool."""

    def __post_init__(self) -> None:
        if self.distance not in DISTANCES:
            raise unknown_name("distance", self.distance, DISTANCES)
        if self.score_loss not in SCORE_LOSSES:
            raise unknown_name("score_loss", self.score_loss, SCORE_LOSSES)
        for name in ("weight", "score_weight"):
            value = getattr(self, name)
            if not value >= 0:
                raise InputError(f"{name} is {value}; it has to be at least 0")
        if not self.score_temperature > 0:
            raise InputError(f"score_temperature is {self.score_temperature}; it has to be above 0")


class Embed(SingleTarget):
    """The target's embedding, through a linear layer per source, matches the sources' embeddings (EmbedDistill)."""

    Options: ClassVar[type[Any]] = EmbedOptions
    options: EmbedOptions
    mixable: ClassVar[bool] = True

    @classmethod
    def needs(cls, options: EmbedOptions) -> Needs:
        """Embeddings; and the pool, where the matching has a weight and learns from all images."""
        pool = learns_from_all(options.learn_from, options.weight, options.score_weight)
        return Needs(outputs=("embedding",), pool=pool)

    @classmethod
    def check(cls, options: EmbedOptions, facts: Facts) -> None:
        """At least one source, with any classes and any width."""
        require_sources(facts)

    def build_heads(self) -> nn.ModuleDict:
        """One projection per source, into its space."""
        width = self.target.embedding_dim
        sources = self.task.facts.sources
        return nn.ModuleDict({name: LinearHead(width, facts.embedding_dim) for name, facts in sources.items()})

    def losses(self, batch: Batch, logits: Tensor, heads: dict[str, Tensor]) -> dict[str, Tensor]:
        """The equation above, one or two parts per source."""
        options = self.options
        parts = {"primary": self.task.primary_loss(logits, batch.labels)}
        for name, projected in heads.items():
            source = batch.outputs[name]["embedding"]
            parts[f"embedding/{name}"] = options.weight * DISTANCES[options.distance](projected, source)
            if options.score_weight > 0:
                score = SCORE_LOSSES[options.score_loss](projected, source, temperature=options.score_temperature)
                parts[f"score/{name}"] = options.score_weight * score
        return parts
