"""Relations between the rows of a batch, compared across two spaces: kernel, pairs, normalisation, divergence.

Each space is compared with itself first, so the two may have any widths and no projection is needed. With embeddings
x_1 .. x_B in rows, a kernel gives a matrix [B, B] (or [B, B, B] for triples), and a divergence compares the target's
with the source's.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from sskt.errors import InputError, unknown_name

Matrix = Callable[[Tensor], Tensor]

RBF_GAMMA, RBF_ORDER = 0.4, 2
"""CC's own choice: gamma 0.4, the Taylor series up to its second power."""
LEAST_MASS = 1e-7
"""What a similarity counts at least where its logarithm is taken."""


def unit_rows(vectors: Tensor) -> Tensor:
    """Divide each vector (last axis) by its L2 norm. A zero vector stays zero, without a gradient."""
    norm = torch.linalg.vector_norm(vectors, dim=-1, keepdim=True)
    # The inner `where` keeps 0 / 0 out of the backward pass, the outer one the meaningless gradient of a zero vector.
    return torch.where(norm > 0, vectors / torch.where(norm > 0, norm, 1.0), 0.0)


def unit_size(embedding: Tensor) -> Tensor:
    """Divide by the largest absolute value, so that squares of huge or tiny numbers stay in range."""
    size = embedding.detach().abs().amax()
    return embedding / torch.where(size > 0, size, 1.0)


def differences(embedding: Tensor) -> Tensor:
    """Return x_i - x_j as [j, i, D]."""
    return embedding.unsqueeze(0) - embedding.unsqueeze(1)


def dot(embedding: Tensor) -> Tensor:
    """<x_i, x_j>."""
    return embedding @ embedding.T


def cosine(embedding: Tensor) -> Tensor:
    """cos(x_i, x_j)."""
    return dot(unit_rows(embedding))


def shifted_cosine(embedding: Tensor) -> Tensor:
    """(cos(x_i, x_j) + 1) / 2, between 0 and 1."""
    return (cosine(embedding) + 1) / 2


def euclidean(embedding: Tensor) -> Tensor:
    """||x_i - x_j||, from the differences themselves: an expanded square loses close rows to rounding."""
    distances: Tensor = torch.linalg.vector_norm(differences(embedding), dim=-1)
    return distances


def rbf(embedding: Tensor) -> Tensor:
    """exp(-gamma ||x_i - x_j||^2) of unit rows by its Taylor series: sum_p exp(-2 gamma) (2 gamma)^p / p! cos^p."""
    similarity = cosine(embedding)
    terms = [(2 * RBF_GAMMA) ** p / math.factorial(p) * similarity**p for p in range(RBF_ORDER + 1)]
    return math.exp(-2 * RBF_GAMMA) * torch.stack(terms).sum(dim=0)


def angle(embedding: Tensor) -> Tensor:
    """Cosine of the angle at x_j between x_i and x_k, as [j, i, k]; 0 where two corners are the same point."""
    sides = unit_rows(differences(embedding))
    return sides @ sides.transpose(1, 2)


def all_pairs(matrix: Tensor) -> Tensor:
    """Every row with every row, itself too."""
    return matrix


def other_rows(matrix: Tensor) -> Tensor:
    """Every row with the others: [B, B] without its diagonal, [B, B - 1]."""
    rows = len(matrix)
    # In one line of B^2 numbers the diagonal is every (B + 1)-th.
    return matrix.flatten()[1:].view(rows - 1, rows + 1)[:, :-1].reshape(rows, rows - 1)


def mean_distance(matrix: Tensor) -> Tensor:
    """Divide distances by their mean over the pairs of two rows; those of a row with itself are 0."""
    mean = matrix.sum() / (len(matrix) * (len(matrix) - 1))
    return matrix / torch.where(mean > 0, mean, 1.0)


def row_sum(matrix: Tensor) -> Tensor:
    """Logarithm of each similarity's share in the sum of its row."""
    mass = matrix.clamp(min=LEAST_MASS)
    return mass.log() - mass.sum(dim=-1, keepdim=True).log()


def row_softmax(matrix: Tensor) -> Tensor:
    """Logarithm of each row's softmax."""
    return F.log_softmax(matrix, dim=-1)


def mean_square(target: Tensor, source: Tensor) -> Tensor:
    """Mean over all entries of the squared difference: ||.||_F^2 / B^2 for [B, B]."""
    return F.mse_loss(target, source)


def huber(target: Tensor, source: Tensor) -> Tensor:
    """Mean over all entries of d^2 / 2 where |d| <= 1 and |d| - 1/2 beyond."""
    return F.smooth_l1_loss(target, source)


def frobenius(target: Tensor, source: Tensor) -> Tensor:
    """Frobenius norm of the difference, not squared; no mean."""
    norm: Tensor = torch.linalg.vector_norm(target - source)
    return norm


def kl(target: Tensor, source: Tensor) -> Tensor:
    """KL(source || target) of log probabilities: the sum over a row, the mean over rows."""
    return F.kl_div(target, source, reduction="batchmean", log_target=True)


def kl_mean(target: Tensor, source: Tensor) -> Tensor:
    """KL(source || target) of log probabilities: the mean over all entries, so weaker the longer the rows."""
    return F.kl_div(target, source, reduction="none", log_target=True).mean()


KERNELS: dict[str, Matrix] = {
    "dot": dot,
    "cosine": cosine,
    "shifted_cosine": shifted_cosine,
    "euclidean": euclidean,
    "rbf": rbf,
    "angle": angle,
}
PAIRS: dict[str, Matrix] = {"all": all_pairs, "others": other_rows}
"""Which rows meet."""
NORMALISATIONS: dict[str, Matrix] = {
    "none": lambda matrix: matrix,
    "row_l2": unit_rows,
    "mean_distance": mean_distance,
    "row_sum": row_sum,
    "row_softmax": row_softmax,
}
DIVERGENCES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "mean_square": mean_square,
    "huber": huber,
    "frobenius": frobenius,
    "kl": kl,
    "kl_mean": kl_mean,
}


@dataclass(frozen=True, kw_only=True)
class Relation:
    """divergence(normalise(kernel(target) / temperature), the same of the source), over pairs of rows."""

    kernel: str
    divergence: str
    normalise: str = "none"
    pairs: str = "all"
    temperature: float = 1.0

    def __post_init__(self) -> None:
        choices = {"kernel": set(KERNELS), "pairs": set(PAIRS), "normalise": set(NORMALISATIONS)}
        for kind, known in (choices | {"divergence": set(DIVERGENCES)}).items():
            if getattr(self, kind) not in known:
                raise unknown_name(kind, getattr(self, kind), known)
        if self.temperature <= 0:
            raise InputError(f"temperature is {self.temperature}; it has to be above 0")
        if self.kernel == "angle" and self.pairs != "all":
            raise InputError(f"pairs is {self.pairs!r}; kernel 'angle' has triples and needs pairs 'all'")
        if (self.normalise in ("row_sum", "row_softmax")) != self.divergence.startswith("kl"):
            raise InputError(
                f"normalise is {self.normalise!r} and divergence {self.divergence!r}; "
                "'kl' and 'kl_mean' go with 'row_sum' or 'row_softmax', and only they do"
            )

    def __call__(self, target: Tensor, source: Tensor) -> Tensor:
        """Compare embeddings [B, D] and [B, D_source] of the same images; a scalar."""
        return DIVERGENCES[self.divergence](self._matrix(target), self._matrix(source))

    def _matrix(self, embedding: Tensor) -> Tensor:
        pairs = PAIRS[self.pairs](KERNELS[self.kernel](embedding))
        return NORMALISATIONS[self.normalise](pairs / self.temperature)


@dataclass(frozen=True, kw_only=True)
class Preset:
    """A published relation loss: weighted relations that no change of scale of either space alters."""

    relations: tuple[tuple[float, Relation], ...]
    weight: float
    """Weight of the whole beside a mean cross-entropy, for batches of about 64."""
    rows: int
    """Rows below which there is nothing to compare."""

    def __call__(self, target: Tensor, source: Tensor) -> Tensor:
        """Compare embeddings [B, D] and [B, D_source], weight left out; 0 if there are too few rows."""
        if len(target) < self.rows:
            return target.new_zeros(())
        # Blind to scale as all of these are, this changes no value, and keeps huge embeddings from overflowing.
        target, source = unit_size(target), unit_size(source)
        parts = [weight * relation(target, source) for weight, relation in self.relations]
        return torch.stack(parts).sum()


PRESETS: dict[str, Preset] = {
    # Park 2019: Huber between distances over their mean, and between cosines of angles. The paper sums over tuples, its
    # released code takes the mean over all B^2 and B^3, and the weights 25 and 50 belong to that mean.
    "rkd": Preset(
        relations=(
            (25.0, Relation(kernel="euclidean", normalise="mean_distance", divergence="huber")),
            (50.0, Relation(kernel="angle", divergence="huber")),
        ),
        weight=1.0,
        rows=3,
    ),
    # Tung and Mori 2019: ||G_source - G_target||_F^2 / B^2, G the dot products, each row of it divided by its length.
    "sp": Preset(
        relations=((1.0, Relation(kernel="dot", normalise="row_l2", divergence="mean_square")),), weight=3000.0, rows=2
    ),
    # Passalis and Tefas 2018: p_j|i = K_ij / sum over k != i of K_ik with K = (cos + 1) / 2, sum over i != j of
    # p log(p / q). The usual weight belongs to a mean over the pairs. Two rows have one neighbour each: p = q = 1.
    "pkt": Preset(
        relations=(
            (1.0, Relation(kernel="shifted_cosine", pairs="others", normalise="row_sum", divergence="kl_mean")),
        ),
        weight=30000.0,
        rows=3,
    ),
    # Peng 2019: ||K_source - K_target||_F^2 / B^2 with the Gaussian kernel of unit rows, expanded to the second power.
    # The weight is the one of RepDistiller, whose own loss of that name is another: to be tuned.
    "cc": Preset(relations=((1.0, Relation(kernel="rbf", divergence="mean_square")),), weight=0.02, rows=2),
    # KL between softmaxes of the similarities to the other rows of the batch, each space by itself: what SEED (Fang
    # 2021), a method of its own here, does with a bank of the source's embeddings. The weight is this project's choice.
    "batch_similarity": Preset(
        relations=(
            (
                1.0,
                Relation(kernel="cosine", temperature=0.1, pairs="others", normalise="row_softmax", divergence="kl"),
            ),
        ),
        weight=1.0,
        rows=3,
    ),
}
