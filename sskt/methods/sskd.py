"""SSKD (arXiv 2006.07114): distillation of what a teacher says of upright and turned images, and of how they resemble.

L = primary * CE(target, y) + soft * KL_upright + turned * KL_turned + similarity * KL_similarity. The divergences are
T^2 KL from the teacher: of its class probabilities on the upright images, of those on the turned images, and of the
softmax, over the upright images of the batch, of their cosines with a turned one. The cosines are those of a head on
each network's embedding. The teacher's is trained first, to find the image that was turned; both are dropped at export.
"""

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sskt.errors import InputError
from sskt.feeds import Batch
from sskt.heads import EmbeddingHead
from sskt.losses import soft_kl
from sskt.methods.base import Facts, LearnFrom, Needs, SingleTarget, Task, learns_from_all, require_sources
from sskt.optim import make_optimizer
from sskt.seeds import seeded
from sskt.sskd_losses import error_levels, kept_kl, least_wrong, parent_cross_entropy, parents, similarities


@dataclass(frozen=True, kw_only=True)
class SSKDOptions:
    """Defaults are those of the arXiv version and of the released training, for batches of 64."""

    primary: float = 0.1
    """Weight of the labels, published."""
    soft: float = 0.9
    """Weight of the soft labels of upright images, published."""
    turned: float = 2.7
    """Weight of the soft labels of turned images; 2.7 is arXiv's and the release's, ECCV's supplement has 3."""
    similarity: float = 10.0
    """Weight of the similarities; 10 is arXiv's and the release's, ECCV's supplement has 5."""
    temperature: float = 4.0
    """Of the soft labels, upright and turned, published; the loss carries T^2, so its gradient keeps its scale."""
    similarity_temperature: float = 0.5
    """Of the similarities, published; the loss carries its square too."""
    keep_turned: float = 1.0
    """Of the turned images the teacher classifies wrongly, the fraction that still counts, least wrong first; 1 is
    published. Images whose label is hidden all count."""
    keep_similarity: float = 0.75
    """Of the turned images whose parent the teacher's head does not find, the fraction that still counts; published."""
    head_epochs: int = 60
    """Passes over the pool, unlabelled images too, that train the teacher's head; 60 is published."""
    head_lr: float = 0.05
    """Learning rate of the teacher's head, x 0.1 after half and three quarters, published; the rest of SGD and the
    batch size are the training's."""
    learn_from: LearnFrom = "labelled"
    """The images the target learns the three divergences from; `labelled`, as published."""

    def __post_init__(self) -> None:
        for name in ("primary", "soft", "turned", "similarity"):
            if not getattr(self, name) >= 0:
                raise InputError(f"{name} is {getattr(self, name)}; it has to be at least 0")
        for name in ("temperature", "similarity_temperature", "head_lr"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} is {getattr(self, name)}; it has to be above 0")
        for name in ("keep_turned", "keep_similarity"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name} is {getattr(self, name)}; it has to be between 0 and 1")
        if self.head_epochs < 1:
            raise InputError(f"head_epochs is {self.head_epochs}; it has to be at least 1")


class SSKD(SingleTarget):
    """A teacher's soft labels of upright and turned images, and which of them resemble each other (SSKD)."""

    Options: ClassVar[type[Any]] = SSKDOptions
    options: SSKDOptions
    multi_label: ClassVar[bool] = False

    @classmethod
    def needs(cls, options: SSKDOptions) -> Needs:
        """What the losses that have a weight read; without those of turned images, none of these."""
        read = {"logits": options.soft + options.turned, "embedding": options.similarity}
        outputs = tuple(output for output, weight in read.items() if weight > 0)
        return Needs(
            outputs=outputs,
            turned=options.turned + options.similarity > 0,
            asks=options.similarity > 0,
            pool=learns_from_all(options.learn_from, options.soft, options.turned, options.similarity),
            tempered="logits" in outputs and options.temperature != 1,
        )

    @classmethod
    def check(cls, options: SSKDOptions, facts: Facts) -> None:
        """One source; with the target's number of classes, where its logits are learnt; two images to tell apart."""
        require_sources(facts, least=1, most=1)
        (name, source), needs = next(iter(facts.sources.items())), cls.needs(options)
        if "logits" in needs.outputs and source.classes != facts.classes:
            raise InputError(
                f"source {name!r} has {source.classes} classes and the target {facts.classes}; "
                "sskd needs the same ones, unless soft and turned are 0"
            )
        rows = facts.rows + facts.pool_rows * needs.pool
        if options.similarity > 0 and rows < 2:
            raise InputError(
                f"batch_size gives each process {rows} image at a time; similarity compares at least 2, or has to be 0"
            )

    def __init__(self, task: Task, options: SSKDOptions) -> None:
        super().__init__(task, options)
        self.source_head: nn.Module | None = None
        if options.similarity > 0:
            with seeded(task.seed, "source head"):
                self.source_head = projection(next(iter(task.facts.sources.values())).embedding_dim)
            # Not prepared: every process trains it on the same images, so there are no gradients to average.
            self.source_head.to(next(self.target.parameters()).device)

    def build_heads(self) -> nn.ModuleDict:
        """What the target's cosines are of."""
        if self.options.similarity == 0:
            return nn.ModuleDict()
        return nn.ModuleDict({"similarity": nn.Sequential(EmbeddingHead(), projection(self.target.embedding_dim))})

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """One step of the target; before the first one, the whole training of the source's head."""
        # The schedule counts the steps, and is saved: a resumed trial has loaded a head that is trained.
        if self.source_head is not None and self.schedule.last_epoch == 0:
            train_source_head(self.source_head, task=self.task, options=self.options)
        if batch.turned is not None:
            # One pass over all: the target's normalisation sees upright and turned images together, as published.
            batch = replace(batch, images=torch.cat([batch.images, batch.turned.images]))
        return super().step(batch)

    def losses(self, batch: Batch, logits: Tensor, heads: dict[str, Tensor]) -> dict[str, Tensor]:
        """The equation above. logits, heads: of the upright images, then of the turned ones, [B] or [4B] rows."""
        options, rows = self.options, len(batch.labels)
        parts = {"primary": options.primary * self.task.primary_loss(logits[:rows], batch.labels)}
        said = next(iter(batch.outputs.values()))
        if options.soft > 0:
            parts["soft"] = options.soft * soft_kl(logits[:rows], said["logits"], temperature=options.temperature)
        if batch.turned is None:
            return parts
        of_turned = next(iter(batch.turned.outputs.values()))
        if options.turned > 0:
            parts["turned"] = options.turned * self._turned(logits[rows:], of_turned["logits"], batch.labels)
        if options.similarity > 0:
            wanted = said["embedding"], of_turned["embedding"]
            parts["similarity"] = options.similarity * self._similarity(heads["similarity"], *wanted)
        return parts

    def _turned(self, logits: Tensor, wanted: Tensor, labels: Tensor) -> Tensor:
        """Of the soft labels of turned images. logits, wanted: [3B, C]; labels: those of the upright images, [B]."""
        kept = least_wrong(error_levels(wanted, labels.repeat(3)), keep=self.options.keep_turned)
        return kept_kl(logits, wanted, kept, temperature=self.options.temperature)

    def _similarity(self, projected: Tensor, upright: Tensor, turned: Tensor) -> Tensor:
        """Of the similarities. projected: the target's, [4B, D]; upright, turned: the source's embeddings."""
        assert self.source_head is not None  # noqa: S101 (there is one wherever this loss has a weight)
        with torch.no_grad():
            wanted = similarities(self.source_head(turned), self.source_head(upright))
        ours = similarities(projected[len(upright) :], projected[: len(upright)])
        kept = least_wrong(error_levels(wanted, parents(wanted)), keep=self.options.keep_similarity)
        return kept_kl(ours, wanted, kept, temperature=self.options.similarity_temperature)

    def modules(self) -> dict[str, nn.Module]:
        """Target, heads and the source's head."""
        return super().modules() | ({"source_head": self.source_head} if self.source_head else {})


def projection(width: int) -> nn.Sequential:
    """A head of two layers, [B, width] -> [B, width]."""
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width))


def train_source_head(head: nn.Module, *, task: Task, options: SSKDOptions) -> None:
    """Learn to find the upright image each turned one shows, from what the source says of the pool, a view a pass."""
    images, size, epochs = len(task.pool.labels), task.training.batch_size, options.head_epochs
    milestones = (-(-epochs // 2), -(-3 * epochs // 4))
    training = replace(
        task.training, epochs=epochs, lr=options.head_lr, schedule="steps", milestones=milestones, gamma=0.1
    )
    optimizer, schedule = make_optimizer(head.parameters(), training=training, steps_per_epoch=-(-images // size))
    with seeded(task.seed, "source head order"):
        for epoch in range(epochs):
            for ids in torch.split(torch.randperm(images), size):
                upright, turned = _embeddings(task, ids, view=epoch % task.facts.views)
                loss = parent_cross_entropy(similarities(head(turned), head(upright)))
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it without types
                optimizer.step()
                schedule.step()


def _embeddings(task: Task, ids: Tensor, *, view: int) -> tuple[Tensor, Tensor]:
    """The source's embeddings of a view of images, [n, D], and of its three turned ones, [3n, D]."""
    source = next(iter(task.facts.sources))
    asked = [task.pool.ask(source, ids, view=view, quarters=quarters)["embedding"] for quarters in range(4)]
    return asked[0], torch.cat(asked[1:])
