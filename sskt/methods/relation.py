"""Relation losses: the target's embedding keeps the relations between images that the sources' embeddings show.

L = CE(target, y) + weight * sum over sources m of R(target, source_m), R one of the presets of `sskt.relations`. Each
space is compared with itself, so sources may have any classes and widths, and nothing is projected.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from sskt.errors import InputError, unknown_name
from sskt.feeds import Batch
from sskt.heads import EmbeddingHead
from sskt.methods.base import (
    Facts,
    LearnFrom,
    Needs,
    SingleTarget,
    learns_from_all,
    require_sources,
)
from sskt.relations import PRESETS


@dataclass(frozen=True, kw_only=True)
class RelationOptions:
    """The default is RKD as its paper classifies with it: distances and angles, weights 25 and 50."""

    preset: Literal["rkd", "sp", "pkt", "cc", "batch_similarity"] = "rkd"
    """Which relations are compared, and how; `rkd` because its weights come from its own paper."""
    weight: float | None = None
    """Weight of the sum over sources; by default the preset's, for batches of 64: rkd 1 (on the paper's 25 and 50), sp
    3000, pkt 30000 and cc 0.02 (all RepDistiller's), batch_similarity 1 (this project's choice)."""
    learn_from: LearnFrom = "labelled"
    """The images that are compared; `labelled` by default, like the published methods."""

    def __post_init__(self) -> None:
        if self.preset not in PRESETS:
            raise unknown_name("preset", self.preset, PRESETS)
        if self.weight is not None and not self.weight >= 0:
            raise InputError(f"weight is {self.weight}; it has to be at least 0, or null for the preset's own")

    @property
    def final_weight(self) -> float:
        """The weight as set, else the preset's."""
        return PRESETS[self.preset].weight if self.weight is None else self.weight


class Relation(SingleTarget):
    """The target's embedding keeps the sources' relations between images: RKD, SP, PKT, CC or in-batch SEED."""

    Options: ClassVar[type[Any]] = RelationOptions
    options: RelationOptions
    mixable: ClassVar[bool] = True

    @classmethod
    def needs(cls, options: RelationOptions) -> Needs:
        """Embeddings; and the pool, where the relation has a weight and learns from all images."""
        return Needs(outputs=("embedding",), pool=learns_from_all(options.learn_from, options.final_weight))

    @classmethod
    def check(cls, options: RelationOptions, facts: Facts) -> None:
        """At least one source, with any classes and any width; enough images in a batch to be related."""
        require_sources(facts)
        rows, least = facts.rows + facts.pool_rows * cls.needs(options).pool, PRESETS[options.preset].rows
        if rows < least and options.final_weight > 0:
            raise InputError(
                f"batch_size gives each process {rows} images at a time; "
                f"preset {options.preset!r} relates images of one batch and needs at least {least}"
            )

    def build_heads(self) -> nn.ModuleDict:
        """One way out for the embedding, the same for all sources."""
        return nn.ModuleDict({"embedding": EmbeddingHead()})

    def losses(self, batch: Batch, logits: Tensor, heads: dict[str, Tensor]) -> dict[str, Tensor]:
        """The equation above, a part per source."""
        relation, weight = PRESETS[self.options.preset], self.options.final_weight
        parts = {"primary": self.task.primary_loss(logits, batch.labels)}
        for name, outputs in batch.outputs.items():
            parts[f"relation/{name}"] = weight * relation(heads["embedding"], outputs["embedding"])
        return parts
