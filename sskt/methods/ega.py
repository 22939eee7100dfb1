"""Embedding Graph Alignment (arXiv 2211.13264): the correlations within a batch, and across the networks, agree.

L = CE(target, y) + sum over sources m of node_weight * ||N - I|| + edge_weight * ||E_m - E||, Frobenius norms of
[B, B]: N[i, j] = r(x_i, p_j), E_m[i, j] = r(x_i, x_j), E[i, j] = r(p_i, p_j), with r Pearson's correlation over the
dimensions, p a linear layer on the target's embedding and x a linear layer on the source's, centred or whitened before
by choice. The latter layer learns the labels through a classifier of its own and nothing else: alignment sends no
gradient into it. All are dropped at export.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from sskt.embedding_losses import REDUCTIONS, batch_centred, edge_matching, node_matching
from sskt.errors import InputError, unknown_name
from sskt.feeds import Batch
from sskt.heads import LinearHead
from sskt.methods.base import Facts, LearnFrom, Needs, SingleTarget, Task, learns_from_all, require_sources
from sskt.optim import make_optimizer
from sskt.seeds import seeded
from sskt.whitening import RowMap, centring, moments, pool_embeddings, whitening

CENTRES = ("none", "batch", "pool", "whiten")
OVER_POOL = {"pool": centring, "whiten": whitening}
"""What maps a source's embedding, by its mean and covariance over the pool."""


@dataclass(frozen=True, kw_only=True)
class EGAOptions:
    """Defaults are those of the released training: batches of 64, Frobenius norms, a source head trained along."""

    node_weight: float = 0.8
    """Weight of the node matching, sum over sources; 0.8 is the release's."""
    edge_weight: float = 0.24
    """Weight of the edge matching, sum over sources; 0.24 is the release's, 0.3 of the node matching's 0.8."""
    reduction: Literal["frobenius", "mean_square"] = "frobenius"
    """`frobenius`, as published, grows with the batch; `mean_square`, ||.||_F^2 / B^2, does not, and wants weights of
    its own."""
    centre: Literal["none", "batch", "pool", "whiten"] = "none"
    """Where all rows of a source share a direction, N = I is out of reach: `batch` subtracts the mean of the batch from
    both embeddings before correlations; `pool` the source's mean over the pool from its embedding, before its head;
    `whiten` makes it uncorrelated over the pool too. `none` is published, behind a trained source head."""
    source_projection: bool = True
    """Whether the source's embedding passes through a head that learns the labels, as in the release; without it,
    correlations are those of the embedding as cached."""
    source_lr: float = 0.01
    """Learning rate of the source heads, never decayed, as in the release; the rest of SGD is the training's."""
    width: int = 256
    """Dimensions of the space both are projected to, the release's; without `source_projection` the source's own."""
    learn_from: LearnFrom = "labelled"
    """The images that are aligned, and make up the batch of the graph; `labelled`, as published."""

    def __post_init__(self) -> None:
        for name in ("node_weight", "edge_weight"):
            value = getattr(self, name)
            if not value >= 0:
                raise InputError(f"{name} is {value}; it has to be at least 0")
        for name, known in (("reduction", REDUCTIONS), ("centre", CENTRES)):
            if getattr(self, name) not in known:
                raise unknown_name(name, getattr(self, name), known)
        if not self.source_lr > 0:
            raise InputError(f"source_lr is {self.source_lr}; it has to be above 0")
        if self.width < 2:
            raise InputError(f"width is {self.width}; it has to be at least 2, for a correlation")


class SourceHeads(nn.Module):
    """Per source, a linear projection of its embedding and a linear classifier on that."""

    def __init__(self, facts: Facts, *, width: int) -> None:
        super().__init__()
        sources = facts.sources.items()
        self.projections = nn.ModuleDict({name: nn.Linear(one.embedding_dim, width) for name, one in sources})
        self.classifiers = nn.ModuleDict({name: nn.Linear(width, facts.classes) for name, _ in sources})

    def forward(self, embeddings: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return projections [B, width] and logits [B, C] by source, for embeddings [B, D_source]."""
        projected = {name: projection(embeddings[name]) for name, projection in self.projections.items()}
        return projected, {name: self.classifiers[name](rows) for name, rows in projected.items()}


class SourceSide:
    """The source heads with the optimiser that is theirs alone."""

    def __init__(self, task: Task, options: EGAOptions) -> None:
        with seeded(task.seed, "source heads"):
            self.heads = SourceHeads(task.facts, width=options.width)
        self.prepared = task.prepare(self.heads)
        self.primary_loss = task.primary_loss
        training = replace(task.training, lr=options.source_lr)
        # Without its schedule, for this rate never decays.
        self.optimizer, _ = make_optimizer(
            self.prepared.parameters(), training=training, steps_per_epoch=task.steps_per_epoch
        )

    def __call__(self, embeddings: dict[str, Tensor], labels: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Return the projections, out of reach of any gradient, and the cross-entropies, by source."""
        projected, logits = self.prepared(embeddings)
        losses = {f"source/{name}": self.primary_loss(rows, labels) for name, rows in logits.items()}
        return {name: rows.detach() for name, rows in projected.items()}, losses


class EGA(SingleTarget):
    """The target's batch is as correlated, image by image, as each source's, and with the source's own (EGA)."""

    Options: ClassVar[type[Any]] = EGAOptions
    options: EGAOptions
    mixable: ClassVar[bool] = True

    @classmethod
    def needs(cls, options: EGAOptions) -> Needs:
        """Embeddings; and the pool, where the alignment has a weight and learns from all images."""
        pool = learns_from_all(options.learn_from, options.node_weight, options.edge_weight)
        return Needs(outputs=("embedding",), pool=pool, asks=options.centre in OVER_POOL)

    @classmethod
    def check(cls, options: EGAOptions, facts: Facts) -> None:
        """At least one source, with any classes and any width."""
        require_sources(facts)

    def __init__(self, task: Task, options: EGAOptions) -> None:
        super().__init__(task, options)
        self.source_side = SourceSide(task, options) if options.source_projection else None
        self.over_pool = self._maps() if options.centre in OVER_POOL else {}

    def build_heads(self) -> nn.ModuleDict:
        """One projection per source, into the space where the two are compared."""
        return nn.ModuleDict({name: self._head(facts.embedding_dim) for name, facts in self.task.facts.sources.items()})

    def _head(self, source_width: int) -> nn.Module:
        width = self.options.width if self.options.source_projection else source_width
        return LinearHead(self.target.embedding_dim, width)

    def _maps(self) -> dict[str, RowMap]:
        """By source; the target needs none, for it learns where to lie."""
        known = {name: moments(pool_embeddings(self.task.pool, name)) for name in self.task.facts.sources}
        return {name: OVER_POOL[self.options.centre](one) for name, one in known.items()}

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """One step of the target, and one of the source heads on the gradient of the same sum."""
        if self.source_side is None:
            return super().step(batch)
        self.source_side.optimizer.zero_grad()
        parts = super().step(batch)
        self.source_side.optimizer.step()
        return parts

    def losses(self, batch: Batch, logits: Tensor, heads: dict[str, Tensor]) -> dict[str, Tensor]:
        """The equation above, two parts per source, and the cross-entropies of the source heads."""
        parts = {"primary": self.task.primary_loss(logits, batch.labels)}
        embeddings = {name: outputs["embedding"] for name, outputs in batch.outputs.items()}
        embeddings |= {name: mapped(embeddings[name]) for name, mapped in self.over_pool.items()}
        if self.source_side is not None:
            embeddings, of_sources = self.source_side(embeddings, batch.labels)
            parts |= of_sources
        for name, target in heads.items():
            pair = self._centred(target), self._centred(embeddings[name])
            node = node_matching(*pair, reduction=self.options.reduction)
            edge = edge_matching(*pair, reduction=self.options.reduction)
            parts |= {f"node/{name}": self.options.node_weight * node, f"edge/{name}": self.options.edge_weight * edge}
        return parts

    def _centred(self, embedding: Tensor) -> Tensor:
        return batch_centred(embedding) if self.options.centre == "batch" else embedding

    def modules(self) -> dict[str, nn.Module]:
        """Target, heads and source heads."""
        return super().modules() | ({"source_heads": self.source_side.heads} if self.source_side else {})

    def optimizers(self) -> dict[str, Optimizer | LambdaLR]:
        """The target's optimiser and schedule, and the source heads' optimiser."""
        return super().optimizers() | ({"source_optimizer": self.source_side.optimizer} if self.source_side else {})
