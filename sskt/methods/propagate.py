"""Label propagation (Zhou 2004, Iscen 2019): the labels spread over a source's graph, and the target learns the result.

L = CE(target, y) + weight * mean over the batch of c_i * CE(target_i, p_i), p_i what has spread to image i and c_i how
certain that is. It is computed once, from the labels that may be used and the source's neighbours; only its embedding
is needed, so its classes may be any.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional as F

from sskt.errors import InputError
from sskt.feeds import Batch
from sskt.methods.base import Facts, LearnFrom, Needs, SingleTarget, Task, learns_from_all, require_sources
from sskt.propagation import certainty, propagate_labels


@dataclass(frozen=True, kw_only=True)
class PropagateOptions:
    """The spreading is Iscen's but for the neighbours; weight and iterations are ours."""

    weight: float = 1.0
    """Weight of the soft labels beside the labels; ours, untuned."""
    neighbours: int = 10
    """Of every image, by the source's embedding; ours (Iscen: 50), as classes of small pools have fewer images."""
    alpha: float = 0.99
    """What an image takes from its neighbours at an iteration; Zhou's and Iscen's. 0 keeps the labels as they are."""
    gamma: float = 3.0
    """Power of the similarities: the higher, the less a distant neighbour counts; Iscen's."""
    iterations: int = 20
    """Steps along the graph; ours, labels come no further. Iscen solves for the limit, by as many steps of another kind
    (conjugate gradients)."""
    certainty: bool = True
    """Whether each image counts by 1 - entropy / log C of what has spread to it, Iscen's; else all count alike, those
    that no label reaches with a uniform distribution."""
    learn_from: LearnFrom = "all"
    """The images with soft labels; `all`, for labels that spread are for the images without."""

    def __post_init__(self) -> None:
        if not self.weight >= 0:
            raise InputError(f"weight is {self.weight}; it has to be at least 0")
        for name in ("neighbours", "iterations"):
            if getattr(self, name) < 1:
                raise InputError(f"{name} is {getattr(self, name)}; it has to be at least 1")
        if not 0 <= self.alpha < 1:
            raise InputError(f"alpha is {self.alpha}; it has to be at least 0 and below 1")
        if not self.gamma > 0:
            raise InputError(f"gamma is {self.gamma}; it has to be above 0")


class Propagate(SingleTarget):
    """The target learns the labels as they spread over the pool, from image to near image by a source's embedding."""

    Options: ClassVar[type[Any]] = PropagateOptions
    options: PropagateOptions
    multi_label: ClassVar[bool] = False

    @classmethod
    def needs(cls, options: PropagateOptions) -> Needs:
        """The graph, and no outputs; and the pool, where the soft labels have a weight and are learnt on all images."""
        return Needs(graph=options.neighbours, pool=learns_from_all(options.learn_from, options.weight))

    @classmethod
    def check(cls, options: PropagateOptions, facts: Facts) -> None:
        """One source, with any classes and any width."""
        require_sources(facts, least=1, most=1)

    def __init__(self, task: Task, options: PropagateOptions) -> None:
        super().__init__(task, options)
        (source,) = task.facts.sources
        self.shares = propagate_labels(
            task.pool.graphs[source],
            task.pool.labels,
            classes=task.facts.classes,
            alpha=options.alpha,
            iterations=options.iterations,
            gamma=options.gamma,
        )
        self.counts = certainty(self.shares) if options.certainty else torch.ones_like(self.shares[:, 0])

    def losses(self, batch: Batch, logits: Tensor, heads: dict[str, Tensor]) -> dict[str, Tensor]:
        """The equation above."""
        soft = F.cross_entropy(logits, self.shares[batch.ids], reduction="none")
        return {
            "primary": self.task.primary_loss(logits, batch.labels),
            "propagated": self.options.weight * (self.counts[batch.ids] * soft).mean(),
        }
