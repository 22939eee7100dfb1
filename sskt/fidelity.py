"""What an encoding does to soft labels: how far the decoded distributions are from the source's."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from sskt.errors import InputError

LOW = ("total_variation", "kl", "angle")
"""The figures that are good when they are low."""


@dataclass(frozen=True, kw_only=True)
class Fidelity:
    """Means over rows, at temperature 1."""

    total_variation: float
    """Half the sum of the absolute differences of the probabilities."""
    kl: float
    """KL(source || decoded), in nats."""
    angle: float
    """Degrees between the gradients p - q that a network of random logits q would get from the two."""
    agreement: float
    """Share of rows with the same likeliest class."""

    def words(self) -> str:
        """All of it in a line."""
        return (
            f"TV {self.total_variation:.1e}, KL {self.kl:.1e}, angle {self.angle:.2f} degrees, "
            f"same top-1 {100 * self.agreement:.1f} %"
        )


def fidelity(logits: Tensor, decoded: Tensor, *, seed: int = 0) -> Fidelity:
    """Compare a source's logits [n, C] with what is decoded of them."""
    wanted, found = F.log_softmax(logits.double(), dim=1), F.log_softmax(decoded.double(), dim=1)
    p, q = wanted.exp(), found.exp()
    generator = torch.Generator().manual_seed(seed)
    learner = F.softmax(torch.randn(logits.shape, generator=generator).to(logits.device).double(), dim=1)
    # From the chord: exactly 0 where the two are equal, also where there is no gradient at all.
    chord = (F.normalize(p - learner, dim=1) - F.normalize(q - learner, dim=1)).norm(dim=1)
    return Fidelity(
        total_variation=float((p - q).abs().sum(dim=1).mean() / 2),
        kl=float((p * (wanted - found)).sum(dim=1).mean()),
        angle=float(torch.rad2deg(2 * torch.asin((chord / 2).clamp(max=1))).mean()),
        agreement=float((logits.argmax(dim=1) == decoded.argmax(dim=1)).double().mean()),
    )


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How much an encoding or a precision may change: the means of `fidelity`. One byte a class mostly fits it."""

    total_variation: float = 0.01
    kl: float = 0.001
    angle: float = 1.0
    agreement: float = 1.0
    """At least."""

    def __post_init__(self) -> None:
        for name in LOW:
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"{name} is {getattr(self, name)}; it has to be at least 0 and finite")
        if not 0 <= self.agreement <= 1:
            raise InputError(f"agreement is {self.agreement}; it has to be between 0 and 1")

    def allows(self, found: Fidelity) -> bool:
        """Whether an encoding keeps within it."""
        return not self.beyond(found)

    def beyond(self, found: Fidelity) -> dict[str, float]:
        """The figures that do not."""
        beyond = {name: getattr(found, name) for name in LOW if not getattr(found, name) <= getattr(self, name)}
        return beyond if found.agreement >= self.agreement else beyond | {"agreement": found.agreement}
