"""Contrastive representation distillation (arXiv 1910.10699): each image's target row finds its own source row.

L = CE(target, y) + weight * sum over sources m of C(p . q_0 / T, .. p . q_K / T), unit rows: p a linear layer on the
target's embedding, q_0 one on the source's embedding of the same view, q_1 .. q_K the latter layer on K rows drawn
from a bank of the source's cached embeddings, new ones at every step. Both layers learn and are dropped at export.
infonce: C = -log softmax(.)_0.      nce: C = -log h(s_0) - sum over k of log(1 - h(s_k)), h(s) = e^s / (e^s + K).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from sskt.bank_losses import CONTRASTS, contrast_scores
from sskt.banks import draw, make_bank, same_class
from sskt.embedding_losses import directions
from sskt.errors import InputError, unknown_name
from sskt.feeds import Batch
from sskt.heads import LinearHead
from sskt.methods.base import Facts, LearnFrom, Needs, SingleTarget, Task, learns_from_all, require_sources
from sskt.optim import make_optimizer
from sskt.seeds import seeded


@dataclass(frozen=True, kw_only=True)
class CRDOptions:
    """Temperature, width and weight are those of the release's CIFAR-100 runs; the sizes are ours."""

    loss: Literal["infonce", "nce"] = "infonce"
    """`nce` is the paper's. `infonce` by default, our choice: it has no noise constant to get wrong, and of the two it
    was the steadier one where others compared them on graphs."""
    weight: float = 0.8
    """Weight of the sum over sources; the release's beside a cross-entropy of weight 1, with `nce` both ways."""
    negatives: int = 1024
    """Rows of the bank that a step draws, with repetition; ours. The release: 16,384 for each image."""
    bank: int = 16384
    """Images of the pool the negatives are drawn from, at most all; ours, for memory. The release: all of them."""
    temperature: float = 0.07
    """Divides the cosines; the release's."""
    width: int = 128
    """Dimensions of the space both are projected to; the release's."""
    learn_from: LearnFrom = "labelled"
    """The images that are contrasted; `labelled`, as published. `all` adds those of the whole pool."""

    def __post_init__(self) -> None:
        if self.loss not in CONTRASTS:
            raise unknown_name("loss", self.loss, CONTRASTS)
        if not self.weight >= 0:
            raise InputError(f"weight is {self.weight}; it has to be at least 0")
        if not self.temperature > 0:
            raise InputError(f"temperature is {self.temperature}; it has to be above 0")
        for name in ("negatives", "bank", "width"):
            value = getattr(self, name)
            if value < 1:
                raise InputError(f"{name} is {value}; it has to be at least 1")


class SourceProjections(nn.Module):
    """Per source, a linear layer from its embedding into the common space."""

    def __init__(self, facts: Facts, *, width: int) -> None:
        super().__init__()
        sources = facts.sources.items()
        self.layers = nn.ModuleDict({name: nn.Linear(one.embedding_dim, width) for name, one in sources})

    def forward(self, rows: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return [n, width] by source, for [n, D_source]."""
        return {name: layer(rows[name]) for name, layer in self.layers.items()}


class CRD(SingleTarget):
    """The target's embedding tells its own image among many by the source's embeddings (CRD); any widths."""

    Options: ClassVar[type[Any]] = CRDOptions
    options: CRDOptions

    @classmethod
    def needs(cls, options: CRDOptions) -> Needs:
        """Embeddings; and the pool, where the contrast has a weight and learns from all images."""
        return Needs(outputs=("embedding",), pool=learns_from_all(options.learn_from, options.weight), asks=True)

    @classmethod
    def check(cls, options: CRDOptions, facts: Facts) -> None:
        """At least one source, with any classes and any width."""
        require_sources(facts)

    def __init__(self, task: Task, options: CRDOptions) -> None:
        super().__init__(task, options)
        with seeded(task.seed, "source projections"):
            self.projections = SourceProjections(task.facts, width=options.width)
        self.project = task.prepare(self.projections)
        self.optimizer, self.schedule = make_optimizer(
            [*self.student.parameters(), *self.project.parameters()],
            training=task.training,
            steps_per_epoch=task.steps_per_epoch,
        )
        # Not saved: made again from the same seed.
        self.bank = make_bank(task.pool, task.facts.sources, size=options.bank, seed=task.seed)

    def build_heads(self) -> nn.ModuleDict:
        """One projection of the target per source."""
        width = self.target.embedding_dim
        return nn.ModuleDict({name: LinearHead(width, self.options.width) for name in self.task.facts.sources})

    def losses(self, batch: Batch, logits: Tensor, heads: dict[str, Tensor]) -> dict[str, Tensor]:
        """The equation above, a part per source."""
        parts = {"primary": self.task.primary_loss(logits, batch.labels)}
        drawn = self.drawn()
        usable = self._usable(batch.ids, drawn)
        projected = self.project(self._source_rows(batch, drawn))
        for name, target in heads.items():
            own, negatives = projected[name].split([len(batch.ids), len(drawn)])
            scores = contrast_scores(target, own, negatives, usable=usable) / self.options.temperature
            parts[f"contrast/{name}"] = self.options.weight * CONTRASTS[self.options.loss](scores)
        return parts

    def drawn(self) -> Tensor:
        """Rows of the bank that are this step's negatives: int64 [K]."""
        ids = self.bank.ids
        # The schedule counts the steps, and is saved.
        return draw(self.options.negatives, among=len(ids), step=self.schedule.last_epoch, device=ids.device)

    def _source_rows(self, batch: Batch, drawn: Tensor) -> dict[str, Tensor]:
        """Unit rows of the batch, then those of the negatives, by source: [B + K, D_source]."""
        return {
            name: torch.cat([directions(outputs["embedding"]), self.bank.rows[name][drawn]])
            for name, outputs in batch.outputs.items()
        }

    def _usable(self, ids: Tensor, drawn: Tensor) -> Tensor:
        """Which negatives are another image, and not known to be of the same class: bool [B, K]."""
        others, labels = self.bank.ids[drawn], self.task.pool.labels
        return (ids.unsqueeze(1) != others) & ~same_class(labels[ids], labels[others])

    def modules(self) -> dict[str, nn.Module]:
        """Target, heads and the projections of the sources."""
        return super().modules() | {"source_projections": self.projections}
