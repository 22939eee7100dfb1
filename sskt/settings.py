"""The values a person chooses, frozen and checked where they are made."""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from sskt.errors import InputError

Option = bool | int | float | str


@dataclass(frozen=True, kw_only=True)
class InputSettings:
    """What a network wants to see; a field left out is the architecture's own."""

    size: int | None = None
    """Side in pixels that images are resized to (bilinear); None keeps the architecture's."""
    scale: float | None = None
    """Instead of `size`: the side as a multiple of the image's; 7/3 = 2.3333 is what the SSKT release enlarges by."""
    mean: tuple[float, ...] | None = None
    """Per channel, for pixels scaled to 0..1."""
    std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if self.size is not None and self.size < 1:
            raise InputError(f"input.size is {self.size}; it has to be at least 1")
        if self.scale is not None and not 0 < self.scale < math.inf:
            raise InputError(f"input.scale is {self.scale}; it has to be above 0 and finite")
        if self.size is not None and self.scale is not None:
            raise InputError(f"input.size is {self.size} and input.scale {self.scale}; give one of them")
        if self.std is not None and min(self.std) <= 0:
            raise InputError(f"input.std is {list(self.std)}; every entry has to be above 0")


@dataclass(frozen=True, kw_only=True)
class SourceSettings:
    """A frozen pretrained network."""

    architecture: str | None = None
    """A known name, or `package.module:function` of your own; None asks a weights file that this project wrote."""
    weights: str
    """A file (.safetensors, .pt, .pth, .pth.tar), or a name the architecture knows, such as IMAGENET1K_V2."""
    classes: int | None = None
    """Size of its label space; None is the architecture's own."""
    options: dict[str, Option] = field(default_factory=dict)
    """Passed to the builder of the architecture."""
    input: InputSettings = InputSettings()
    live: bool = False
    """Run inside each training instead of once into a cache."""
    batch_norm: Literal["eval", "batch"] = "eval"
    """Normalise by the statistics it was trained to, or by those of each batch, as the SSKT release ran its sources."""
    precision: Literal["float32", "bfloat16", "float16"] = "float32"
    """What its layers compute in. What the shorter ones change is measured, and has to keep within `cache.budget`."""

    def __post_init__(self) -> None:
        if self.batch_norm == "batch" and not self.live:
            raise InputError(
                "batch_norm is 'batch' and live is false; what such a source says of an image depends on the images "
                "beside it, so no cache could be right: it goes with `live: true`"
            )


@dataclass(frozen=True, kw_only=True)
class TargetSettings:
    """The network being trained."""

    architecture: str
    weights: str | None = None
    """Start from these weights, its classifier excepted; None starts from random ones."""
    frozen: tuple[str, ...] = ()
    """Parts by their dotted names, with all below them, that stay as loaded, their statistics too; none by default."""
    options: dict[str, Option] = field(default_factory=dict)
    input: InputSettings = InputSettings()
    precision: Literal["float32", "bfloat16"] = "float32"
    """What its layers compute in; with `bfloat16` its weights, the heads and the losses stay in float32."""


@dataclass(frozen=True, kw_only=True)
class TrainingSettings:
    """How long and how a target is trained; the same for every method of a sweep."""

    epochs: int
    steps_per_epoch: int | None = None
    """None is one pass over the labelled images."""
    batch_size: int = 128
    pool_batch_size: int | None = None
    """Images of the whole pool a step adds where a method learns from all of them; None is `batch_size`."""
    labels_per_class: int | None = None
    """Labels used; the other images of the training split count as unlabelled. None uses all labels."""
    views: int | None = None
    """Views of every image that are shown, the first of those that the caches hold; None is all."""
    mix: Literal["none", "mixup", "cutmix"] = "none"
    """Show the images of the pool, where a method learns from all of them, mixed with another one each."""
    loss: Literal["auto", "ce", "bce", "focal"] = "auto"
    """Of the target's own task: `auto` is `ce`, or `bce` where several classes may hold; `focal` has gamma 2."""
    lr: float = 0.1
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 5e-4
    schedule: Literal["cosine", "steps", "constant"] = "cosine"
    milestones: tuple[int, ...] = ()
    """Epochs at which `steps` multiplies the learning rate by `gamma`."""
    gamma: float = 0.2

    def __post_init__(self) -> None:
        for name in ("epochs", "steps_per_epoch", "batch_size", "pool_batch_size", "labels_per_class", "views"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"training.{name} is {value}; it has to be at least 1")
        if self.lr <= 0:
            raise InputError(f"training.lr is {self.lr}; it has to be above 0")
        if (self.schedule == "steps") != bool(self.milestones):
            raise InputError(
                f"training.schedule is {self.schedule!r} with milestones {list(self.milestones)}; "
                "milestones go with schedule 'steps', and only with it"
            )


@dataclass(frozen=True, kw_only=True)
class ViewSettings:
    """The deterministic augmentations that source and target see alike."""

    ops: tuple[str | dict[str, Any], ...] = ()
    """In this order: a name, `name: number`, or `name: {parameter: value}`; docs/views.md has them all."""
    count: int = 1
    """Views per sample (M) that the caches hold."""
    seed: int = 0

    def __post_init__(self) -> None:
        if self.count < 1:
            raise InputError(f"views.count is {self.count}; it has to be at least 1")
