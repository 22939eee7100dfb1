"""After DreamTeacher (arXiv 2307.07487): the target's taps, through a pyramid, give the sources' feature maps.

L = CE(target, y) + weight * sum over sources m of the mean over levels l of
mean((r_l - LN(g_l))^2) + attention_weight * mean over the batch of ||q(r_l) - q(g_l)||. r_l is level l of a feature
pyramid on the target's taps, one per source, that is trained along and dropped at export; g_l is the source's tap, LN
makes mean 0 and variance 1 over channels and cells, q is the mean over the channels of the squares as a unit
vector. The last taps are paired with the last, as many as both have; larger maps are averaged to the smaller size.

The paper has generative networks teach without labels, and fine-tunes afterwards; its features here are those of any
source, and teach beside the labels.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sskt.errors import InputError
from sskt.feeds import Batch
from sskt.map_losses import attention_distance, layer_norm_mse
from sskt.maps import from_the_last, split_attention, split_features
from sskt.methods.base import Facts, LearnFrom, Needs, SingleTarget, learns_from_all, require_sources, require_taps
from sskt.regressors import LEAST_WIDTH, PyramidRegressor


@dataclass(frozen=True, kw_only=True)
class DreamTeacherOptions:
    """Only the weight between its two losses is known of the paper's settings."""

    weight: float = 1.0
    """Weight of the sum over sources; 1, our choice, for the paper's pre-training has no other loss."""
    features: bool = True
    """Whether the features themselves are matched, as in the paper; without, attention alone is learnt, and only the
    smaller cache of it is needed."""
    attention_weight: float = 10.0
    """Weight of the attention's distance beside the features' mean square; 10 is the paper's."""
    width: int = 64
    """Channels of the pyramid, which is dropped at export; 64, our choice, like the transfer module of `sskt`."""
    learn_from: LearnFrom = "labelled"
    """The images whose maps are matched; `all`, which needs no label, adds those of the whole pool."""

    def __post_init__(self) -> None:
        for name in ("weight", "attention_weight"):
            value = getattr(self, name)
            if not value >= 0:
                raise InputError(f"{name} is {value}; it has to be at least 0")
        if not self.features and self.attention_weight == 0:
            raise InputError(
                f"attention_weight is {self.attention_weight}; with features: false it has to be above 0, "
                "or nothing is matched"
            )
        if self.width < LEAST_WIDTH:
            raise InputError(f"width is {self.width}; it has to be at least {LEAST_WIDTH}")

    @property
    def weights(self) -> dict[str, float]:
        """The weight of what is matched, by the output of a source that it reads."""
        features = {"features": self.weight} if self.features else {}
        attention = {"attention": self.weight * self.attention_weight} if self.attention_weight > 0 else {}
        return features | attention


MATCHED = {"features": (split_features, layer_norm_mse), "attention": (split_attention, attention_distance)}
"""How an output of a source is cut into maps, and the loss on them."""


class DreamTeacher(SingleTarget):
    """The target's taps, through a feature pyramid per source, match the sources' feature and attention maps."""

    Options: ClassVar[type[Any]] = DreamTeacherOptions
    options: DreamTeacherOptions
    mixable: ClassVar[bool] = True

    @classmethod
    def needs(cls, options: DreamTeacherOptions) -> Needs:
        """The maps that are matched; and the pool, where they have a weight and are learnt from all images."""
        pool = learns_from_all(options.learn_from, options.weight)
        return Needs(outputs=tuple(options.weights), pool=pool)

    @classmethod
    def check(cls, options: DreamTeacherOptions, facts: Facts) -> None:
        """At least one source; taps on all networks."""
        require_sources(facts)
        require_taps(facts)

    def build_heads(self) -> nn.ModuleDict:
        """One pyramid per source, into the channels of its taps."""
        facts, width = self.task.facts, self.options.width
        regressors = {name: PyramidRegressor(facts.taps, one.maps, width=width) for name, one in facts.sources.items()}
        return nn.ModuleDict(regressors)

    def losses(self, batch: Batch, logits: Tensor, heads: dict[str, tuple[Tensor, ...]]) -> dict[str, Tensor]:
        """The equation above, one or two parts per source."""
        parts = {"primary": self.task.primary_loss(logits, batch.labels)}
        for name, levels in heads.items():
            for output, weight in self.options.weights.items():
                split, loss = MATCHED[output]
                maps = split(batch.outputs[name][output], self.task.facts.sources[name].maps)
                pairs = [loss(level, one) for level, one in from_the_last(levels, maps)]
                parts[f"{output}/{name}"] = weight * torch.stack(pairs).mean()
        return parts
