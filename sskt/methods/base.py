"""What a method is: the owner of its networks and optimisers, asked for one step at a time."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from sskt.errors import InputError
from sskt.feeds import Batch, Extras, Pool
from sskt.losses import PRIMARY_LOSSES, PrimaryLoss, objective
from sskt.maps import MapShape
from sskt.networks import ImageFormat, TappedNetwork, build_target
from sskt.optim import make_optimizer, restore
from sskt.seeds import seeded
from sskt.settings import TargetSettings, TrainingSettings
from sskt.sources import Source

LearnFrom = Literal["labelled", "all"]
"""The images an auxiliary loss sees: the labelled ones, or the unlabelled ones of the pool too."""


@dataclass(frozen=True)
class SourceFacts:
    """What a method may know of a source without running it."""

    classes: int
    embedding_dim: int
    maps: tuple[MapShape, ...] = ()
    """Its taps, where `attention` or `features` are asked for."""


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of a trial before it starts."""

    classes: int
    image: ImageFormat
    sources: Mapping[str, SourceFacts]
    taps: tuple[MapShape, ...]
    """The target's taps."""
    rows: int
    """Labelled images of a batch that a process sees."""
    pool_rows: int
    """Images of the pool beside them, where the method asks for the pool."""
    pool_size: int
    """Images of the whole pool."""
    views: int = 1
    """Views of every image that there are."""
    workers: int = 1
    """Processes that share a batch."""
    multi_label: bool = False
    """Whether several classes, or none, may hold for an image."""


@dataclass(frozen=True)
class Needs:
    """What a method asks of its surroundings."""

    outputs: tuple[str, ...] = ()
    """Outputs it reads of every source."""
    pool: bool = False
    """Whether its batches hold images of the whole pool beside the labelled ones."""
    pair: bool = False
    """Whether its batches hold two views of every image."""
    turned: bool = False
    """Whether its batches hold every image turned by one, two and three quarters too."""
    graph: int = 0
    """Nearest neighbours of every image of the pool, by each source's embedding, that it wants to know."""
    tempered: bool = False
    """Whether it divides logits of its sources by a temperature other than 1, for which it has to know all of them."""
    asks: bool = False
    """Whether it asks its sources about images of the whole pool, beside those of its batches."""
    near: int = 0
    """Neighbours, in the graph of the only source, that follow every image of the pool in its batches."""

    def extras(self, sources: Sequence[str]) -> Extras:
        """What a feed has to serve beside labelled images."""
        near = (sources[0], self.near) if self.near else None
        return Extras(pool=self.pool, pair=self.pair, turned=self.turned, near=near)


@dataclass(frozen=True, kw_only=True)
class Task:
    """Everything a method builds itself from."""

    facts: Facts
    target: TargetSettings
    training: TrainingSettings
    steps_per_epoch: int
    seed: int
    load_source: Callable[[str], Source]
    """Loads a source network by name, for methods that start from its weights."""
    pool: Pool
    """Labels, neighbours and what sources say, of the training images as a whole."""
    prepare: Callable[[nn.Module], nn.Module]
    """Moves a trainable module to its device and, over several processes, synchronises its gradients."""

    @property
    def primary_loss(self) -> PrimaryLoss:
        """The target's own loss, over the labels that are not hidden."""
        usual = "bce" if self.facts.multi_label else "ce"
        return PRIMARY_LOSSES[usual if self.training.loss == "auto" else self.training.loss]


@dataclass(frozen=True)
class NoOptions:
    """Nothing to choose."""


class Method(ABC):
    """One way to train a target. The first line of its doc string is what lists show."""

    Options: ClassVar[type[Any]] = NoOptions
    builds_target: ClassVar[bool] = True
    """Whether it trains the network that the target's settings describe, and not a source's own."""
    multi_label: ClassVar[bool] = True
    """Whether it has a meaning where several classes, or none, may hold for an image."""
    mixable: ClassVar[bool] = False
    """Whether it only compares what networks say of the same images of the pool, which may then be mixtures of two."""

    @classmethod
    def needs(cls, options: Any) -> Needs:
        """Say what the method asks for with these options."""
        return Needs()

    @classmethod
    def check(cls, options: Any, facts: Facts) -> None:
        """Raise InputError if the method cannot work with these options, target classes and sources."""
        if facts.sources:
            raise InputError(f"sources {list(facts.sources)} are not used by this method; leave them out")

    @abstractmethod
    def __init__(self, task: Task, options: Any) -> None:
        """Build networks and optimisers."""

    @abstractmethod
    def step(self, batch: Batch) -> dict[str, Tensor]:
        """Learn from one batch; return, detached, `loss`, the parts it is the sum of, and others as `watch/...`."""

    @abstractmethod
    def predict(self, images: Tensor) -> Tensor:
        """Return the target's logits [B, C] for uint8 images [B, c, S, S]."""

    @abstractmethod
    def export(self) -> TappedNetwork:
        """Return the trained target without anything that only training needs."""

    @abstractmethod
    def modules(self) -> dict[str, nn.Module]:
        """All networks that training changes, by a stable name."""

    @abstractmethod
    def optimizers(self) -> dict[str, Optimizer | LambdaLR]:
        """All optimisers and schedules, by a stable name."""

    def train(self, mode: bool) -> None:  # noqa: FBT001 (nn.Module's own signature)
        """Switch all networks between training and evaluation."""
        for module in self.modules().values():
            module.train(mode)

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on later."""
        return {name: part.state_dict() for name, part in (self.modules() | self.optimizers()).items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state, with the hyperparameters that this method was built with."""
        for name, module in self.modules().items():
            module.load_state_dict(state[name])
        for name, part in self.optimizers().items():
            restore(part, state[name])


def check_trial(method: type[Method], options: Any, facts: Facts, training: TrainingSettings) -> None:
    """Refuse, in one line, what cannot work: what the method itself says, and what holds for all methods."""
    method.check(options, facts)
    if training.loss != "auto" and (training.loss == "bce") != facts.multi_label:
        kind, right = ("several classes", "'bce'") if facts.multi_label else ("one class", "'ce' or 'focal'")
        raise InputError(f"training.loss is {training.loss!r}; an image has {kind} here, which needs {right}")
    needs = method.needs(options)
    if facts.multi_label and not method.multi_label:
        raise InputError("this method needs one class for every image; here several may hold")
    if needs.pool and training.mix != "none" and not method.mixable:
        raise InputError(
            f"training.mix is {training.mix!r}; it has to be 'none', for this method learns about single images"
        )
    if needs.pair and facts.views < 2:
        raise InputError(f"views.count or training.views is {facts.views}; this method compares 2 views of an image")
    if needs.graph >= facts.pool_size:
        raise InputError(f"{needs.graph} neighbours of every image are asked for; there are {facts.pool_size} images")
    if needs.near and facts.pool_rows % (1 + needs.near):
        raise InputError(
            f"training.pool_batch_size gives each process {facts.pool_rows} images; "
            f"it has to be a multiple of {1 + needs.near}, an image and its {needs.near} neighbours"
        )


def require_sources(facts: Facts, *, least: int = 1, most: int | None = None) -> None:
    """Check the number of sources a trial names."""
    count = len(facts.sources)
    if count < least or (most is not None and count > most):
        wanted = f"exactly {least}" if least == most else f"at least {least}"
        raise InputError(f"sources are {list(facts.sources)}; this method needs {wanted}")


def require_taps(facts: Facts) -> None:
    """Check that target and sources have feature maps that can be compared."""
    for name, source in facts.sources.items():
        if not source.maps:
            raise InputError(f"source {name!r} has no taps; this method compares feature maps and needs at least one")
        if not facts.taps:
            raise InputError(f"the target has no taps to compare with those of source {name!r}; it needs at least one")


def learns_from_all(learn_from: LearnFrom, *weights: float) -> bool:
    """Whether the pool is worth reading: asked for, and some loss on it has a weight."""
    return learn_from == "all" and any(weight > 0 for weight in weights)


class StudentWithHeads(nn.Module):
    """A target and what hangs on it in training, in one module so that gradients are synchronised together."""

    def __init__(self, target: TappedNetwork, heads: nn.ModuleDict) -> None:
        super().__init__()
        self.target = target
        self.heads = heads
        self.with_taps = any(getattr(head, "reads_taps", True) for head in heads.values())

    def forward(self, images: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """Return the primary logits [B, C] and what each head gives, for uint8 images [B, c, S, S]."""
        features = self.target(images, with_taps=self.with_taps)
        return features.logits, {name: head(features) for name, head in self.heads.items()}


class SingleTarget(Method):
    """One target, trained by one optimiser on the sum of named losses."""

    def __init__(self, task: Task, options: Any) -> None:
        self.task = task
        self.options = options
        with seeded(task.seed, "target"):
            self.target = self.build_target()
        # Heads draw from their own random numbers: a trial with heads starts from the same target as one without.
        with seeded(task.seed, "heads"):
            heads = self.build_heads()
        self.student = task.prepare(StudentWithHeads(self.target, heads))
        self.optimizer, self.schedule = make_optimizer(
            self.student.parameters(), training=task.training, steps_per_epoch=task.steps_per_epoch
        )

    @abstractmethod
    def losses(self, batch: Batch, logits: Tensor, heads: dict[str, Any]) -> dict[str, Tensor]:
        """Return the weighted parts that the loss is the sum of."""

    def build_target(self) -> TappedNetwork:
        """Build the network to be trained."""
        return build_target(self.task.target, classes=self.task.facts.classes, image=self.task.facts.image)

    def build_heads(self) -> nn.ModuleDict:
        """Build what hangs on the target in training only."""
        return nn.ModuleDict()

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """One step of gradient descent on the sum of the losses."""
        loss, told = objective(self.losses(batch, *self.student(batch.images)))
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it without types
        self.optimizer.step()
        self.schedule.step()
        return told

    def predict(self, images: Tensor) -> Tensor:
        """Return the target's logits [B, C]."""
        logits: Tensor = self.target(images, with_taps=False).logits
        return logits

    def export(self) -> TappedNetwork:
        """Return the target without its heads."""
        return self.target

    def modules(self) -> dict[str, nn.Module]:
        """Target and heads."""
        return {"target": self.target, "heads": self.heads}

    @property
    def heads(self) -> nn.ModuleDict:
        """The heads as they were built, whether or not the student is wrapped for several processes."""
        student = getattr(self.student, "module", self.student)
        assert isinstance(student, StudentWithHeads)  # noqa: S101 (an invariant of this class)
        return student.heads

    def optimizers(self) -> dict[str, Optimizer | LambdaLR]:
        """The one optimiser and its schedule."""
        return {"optimizer": self.optimizer, "schedule": self.schedule}
