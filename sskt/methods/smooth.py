"""Graph-smoothed targets (after FF-G2M, arXiv 2305.10758): what near images share, and what sets one apart.

L = CE(target, y) + sum over sources m of low_weight MSE(a_m(e), low(S_m)) + high_weight MSE(b_m(e), high(t_m - S_m)),
e the target's embedding, t_m the source's, S_m its average over the image and its nearest ones in the pool, a_m and b_m
linear layers that are dropped at export, MSE the mean over batch and dimensions. `low` and `high` subtract the pool's
mean and divide by one number each, so that over the pool both parts have a variance of 1, and 1 is the MSE of a layer
that says nothing: in the embedding as it is, the larger part drowns the other.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sskt.embedding_losses import EPSILON, feature_mse
from sskt.errors import InputError
from sskt.feeds import Batch, Pool
from sskt.heads import LinearHead
from sskt.methods.base import Facts, LearnFrom, Needs, SingleTarget, Task, learns_from_all, require_sources
from sskt.propagation import smooth
from sskt.whitening import pool_embeddings, unit_variance


@dataclass(frozen=True, kw_only=True)
class SmoothOptions:
    """All ours: FF-G2M teaches networks on graphs, where edges are given and features are not of images."""

    low_weight: float = 1.0
    """Weight of the smooth parts, sum over sources; ours, untuned."""
    high_weight: float = 1.0
    """Weight of the residuals, sum over sources; ours, untuned. Both parts have one scale, so 1 weighs them alike."""
    neighbours: int = 10
    """Of every image, by the source's embedding; ours."""
    learn_from: LearnFrom = "labelled"
    """The images that are matched; `labelled`, as for `embed`, from which this then differs by the split alone."""

    def __post_init__(self) -> None:
        for name in ("low_weight", "high_weight"):
            if not getattr(self, name) >= 0:
                raise InputError(f"{name} is {getattr(self, name)}; it has to be at least 0")
        if self.neighbours < 1:
            raise InputError(f"neighbours is {self.neighbours}; it has to be at least 1")


class SplitRows:
    """The two parts of a source's embedding, each of unit variance over the pool.

    The smooth part belongs to an image, not to a view of it: it comes from the first views of the image and its
    neighbours, once for the whole pool. That holds [P, D] float32, about as much as the cache of two views that is in
    memory anyway; the neighbours of a batch at every step would be k times its rows to decode, or to run a source on.
    """

    def __init__(self, pool: Pool, source: str) -> None:
        rows = torch.cat(list(pool_embeddings(pool, source)))
        self.smooth = smooth(pool.graphs[source], rows)
        noise = EPSILON * rows.abs().amax()
        self.low = unit_variance(self.smooth, noise=noise)
        self.high = unit_variance(rows - self.smooth, noise=noise)

    def __call__(self, embedding: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Return the smooth part and the residual [B, D] of embeddings [B, D] of images [B], in whatever view."""
        near = self.smooth[ids]
        return self.low(near), self.high(embedding - near)


class Smooth(SingleTarget):
    """The target learns apart what each source's embedding shares with near images, and what sets an image off."""

    Options: ClassVar[type[Any]] = SmoothOptions
    options: SmoothOptions

    @classmethod
    def needs(cls, options: SmoothOptions) -> Needs:
        """Embeddings and their graph; and the pool, where the matching has a weight and learns from all images."""
        pool = learns_from_all(options.learn_from, options.low_weight, options.high_weight)
        return Needs(outputs=("embedding",), graph=options.neighbours, pool=pool, asks=True)

    @classmethod
    def check(cls, options: SmoothOptions, facts: Facts) -> None:
        """At least one source, with any classes and any width."""
        require_sources(facts)

    def __init__(self, task: Task, options: SmoothOptions) -> None:
        super().__init__(task, options)
        self.split = {name: SplitRows(task.pool, name) for name in task.facts.sources}

    def build_heads(self) -> nn.ModuleDict:
        """Two projections per source, into its space."""
        width, sources = self.target.embedding_dim, self.task.facts.sources.items()
        parts = [(f"{part}/{name}", one.embedding_dim) for name, one in sources for part in ("low", "high")]
        return nn.ModuleDict({part: LinearHead(width, source_width) for part, source_width in parts})

    def losses(self, batch: Batch, logits: Tensor, heads: dict[str, Tensor]) -> dict[str, Tensor]:
        """The equation above, two parts per source."""
        options, parts = self.options, {"primary": self.task.primary_loss(logits, batch.labels)}
        for name, split in self.split.items():
            low, high = split(batch.outputs[name]["embedding"], batch.ids)
            parts[f"low/{name}"] = options.low_weight * feature_mse(heads[f"low/{name}"], low)
            parts[f"high/{name}"] = options.high_weight * feature_mse(heads[f"high/{name}"], high)
        return parts
