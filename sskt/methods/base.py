"""What a method is: the owner of its networks and optimisers, asked for one step at a time."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from sskt.datasets import UNLABELLED
from sskt.errors import InputError
from sskt.feeds import Batch
from sskt.networks import ImageFormat, TappedNetwork, build_target
from sskt.optim import make_optimizer
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


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of a trial before it starts."""

    classes: int
    image: ImageFormat
    sources: Mapping[str, SourceFacts]
    taps: tuple[int, ...]
    """Channels of the target's taps."""
    rows: int
    """Labelled images of a batch that a process sees."""
    pool_rows: int
    """Images of the pool beside them, where the method asks for the pool."""


@dataclass(frozen=True)
class Needs:
    """What a method asks of its surroundings."""

    outputs: tuple[str, ...] = ()
    """Outputs it reads of every source."""
    pool: bool = False
    """Whether its batches hold images of the whole pool beside the labelled ones."""


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
    prepare: Callable[[nn.Module], nn.Module]
    """Moves a trainable module to its device and, over several processes, synchronises its gradients."""


@dataclass(frozen=True)
class NoOptions:
    """Nothing to choose."""


class Method(ABC):
    """One way to train a target. The first line of its doc string is what lists show."""

    Options: ClassVar[type[Any]] = NoOptions

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
        """Learn from one batch; return, detached, `loss` and the parts it is the sum of.

        What is worth watching beside them has a name that starts with `watch/`.
        """

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
    def optimizers(self) -> dict[str, Optimizer | LRScheduler]:
        """All optimisers and schedules, by a stable name."""

    def train(self, mode: bool) -> None:  # noqa: FBT001 (nn.Module's own signature)
        """Switch all networks between training and evaluation."""
        for module in self.modules().values():
            module.train(mode)

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on later."""
        return {name: part.state_dict() for name, part in (self.modules() | self.optimizers()).items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a saved state."""
        for name, part in (self.modules() | self.optimizers()).items():
            part.load_state_dict(state[name])


def require_sources(facts: Facts, *, least: int = 1, most: int | None = None) -> None:
    """Check the number of sources a trial names."""
    count = len(facts.sources)
    if count < least or (most is not None and count > most):
        wanted = f"exactly {least}" if least == most else f"at least {least}"
        raise InputError(f"sources are {list(facts.sources)}; this method needs {wanted}")


class StudentWithHeads(nn.Module):
    """A target and what hangs on it in training, in one module so that gradients are synchronised together."""

    def __init__(self, target: TappedNetwork, heads: nn.ModuleDict) -> None:
        super().__init__()
        self.target = target
        self.heads = heads

    def forward(self, images: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the primary logits [B, C] and each head's logits [B, C_head] for uint8 images [B, c, S, S]."""
        features = self.target(images)
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
    def losses(self, batch: Batch, logits: Tensor, heads: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the weighted parts that the loss is the sum of."""

    def build_target(self) -> TappedNetwork:
        """Build the network to be trained."""
        return build_target(self.task.target, classes=self.task.facts.classes, image=self.task.facts.image)

    def build_heads(self) -> nn.ModuleDict:
        """Build what hangs on the target in training only."""
        return nn.ModuleDict()

    def step(self, batch: Batch) -> dict[str, Tensor]:
        """One step of gradient descent on the sum of the losses."""
        logits, heads = self.student(batch.images)
        parts = self.losses(batch, logits, heads)
        loss = sum(parts.values(), start=logits.new_zeros(()))
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self.schedule.step()
        return {"loss": loss.detach()} | {name: part.detach() for name, part in parts.items()}

    def predict(self, images: Tensor) -> Tensor:
        """Return the target's logits [B, C]."""
        logits: Tensor = self.target(images).logits
        return logits

    def export(self) -> TappedNetwork:
        """Return the target without its heads."""
        return self.target

    def modules(self) -> dict[str, nn.Module]:
        """Target and heads."""
        return {"target": self.target, "heads": self.heads}

    @property
    def heads(self) -> nn.Module:
        """The heads as they were built, whether or not the student is wrapped for several processes."""
        student = getattr(self.student, "module", self.student)
        assert isinstance(student, StudentWithHeads)  # noqa: S101 (an invariant of this class)
        return student.heads

    def optimizers(self) -> dict[str, Optimizer | LRScheduler]:
        """The one optimiser and its schedule."""
        return {"optimizer": self.optimizer, "schedule": self.schedule}


def labelled_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean cross-entropy over the rows whose label is not hidden. logits: [B, C]; labels: int64 [B]."""
    return F.cross_entropy(logits, labels, ignore_index=UNLABELLED)
