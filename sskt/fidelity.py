"""What an encoding does to soft labels: how far the decoded distributions are from the source's."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from sskt.errors import InputError


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
    """How much an encoding may change; the means of `fidelity`. One byte a class keeps within it on usual sources."""

    total_variation: float = 0.01
    kl: float = 0.001
    angle: float = 1.0
    agreement: float = 1.0
    """At least."""

    def __post_init__(self) -> None:
        for name in ("total_variation", "kl", "angle"):
            if not 0 <= getattr(self, name) < math.inf:
                raise InputError(f"{name} is {getattr(self, name)}; it has to be at least 0 and finite")
        if not 0 <= self.agreement <= 1:
            raise InputError(f"agreement is {self.agreement}; it has to be between 0 and 1")

    def allows(self, found: Fidelity) -> bool:
        """Whether an encoding keeps within it."""
        small = all(getattr(found, name) <= getattr(self, name) for name in ("total_variation", "kl", "angle"))
        return small and found.agreement >= self.agreement
