"""Local structure preserving (arXiv 2003.10477): an image is as like each of its neighbours as it is to the source.

L = CE(target, y) + weight * mean over images i of the pool of KL(LS_i of the source || LS_i of the target), with
LS_i = softmax over i's n nearest neighbours j in the source's graph of k(z_i, z_j) / T. Each space is compared with
itself, so nothing is projected. Nodes of a graph in the paper; here images, and the graph is that of the embeddings.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from sskt.errors import InputError, unknown_name
from sskt.feeds import Batch
from sskt.heads import EmbeddingHead
from sskt.methods.base import Facts, Needs, SingleTarget, require_sources
from sskt.neighbour_losses import KERNELS, local_structure


@dataclass(frozen=True, kw_only=True)
class LSPOptions:
    """The loss is the paper's; what images need instead of the nodes of a graph is ours, and untuned."""

    weight: float = 1.0
    """Weight of the mean over the images; ours."""
    neighbours: int = 7
    """Nearest neighbours of every image, n; ours. A batch of the pool is groups of 1 + n, 8 by default."""
    kernel: Literal["rbf", "cosine"] = "rbf"
    """`rbf`, as published but for the bandwidth: exp(-||z_i - z_j||^2 / m_i), m_i the mean of these squares over i's
    neighbours; `cosine`: cos(z_i, z_j)."""
    temperature: float = 0.1
    """Divides the kernel; ours. The paper has none, which is 1: a softmax of values between 0 and 1, nearly uniform."""

    def __post_init__(self) -> None:
        if not self.weight >= 0:
            raise InputError(f"weight is {self.weight}; it has to be at least 0")
        if self.neighbours < 2:
            raise InputError(f"neighbours is {self.neighbours}; it has to be at least 2, for a distribution")
        if self.kernel not in KERNELS:
            raise unknown_name("kernel", self.kernel, KERNELS)
        if not self.temperature > 0:
            raise InputError(f"temperature is {self.temperature}; it has to be above 0")


class LSP(SingleTarget):
    """The target keeps how like an image is to each of its nearest neighbours, as the source sees them (LSP)."""

    Options: ClassVar[type[Any]] = LSPOptions
    options: LSPOptions

    @classmethod
    def needs(cls, options: LSPOptions) -> Needs:
        """Embeddings, and batches of images of the pool with their neighbours, where the structure has a weight."""
        near = options.neighbours if options.weight > 0 else 0
        return Needs(outputs=("embedding",), pool=near > 0, graph=near, near=near)

    @classmethod
    def check(cls, options: LSPOptions, facts: Facts) -> None:
        """One source, whose neighbours they are; with any classes and any width."""
        require_sources(facts, least=1, most=1)

    def build_heads(self) -> nn.ModuleDict:
        """The embedding as it is."""
        return nn.ModuleDict({"embedding": EmbeddingHead()})

    def losses(self, batch: Batch, logits: Tensor, heads: dict[str, Tensor]) -> dict[str, Tensor]:
        """The equation above, in two parts."""
        parts, options = {"primary": self.task.primary_loss(logits, batch.labels)}, self.options
        if options.weight > 0:
            (outputs,) = batch.outputs.values()
            target, source = self._groups(heads["embedding"]), self._groups(outputs["embedding"])
            structure = local_structure(target, source, kernel=options.kernel, temperature=options.temperature)
            parts["structure"] = options.weight * structure
        return parts

    def _groups(self, rows: Tensor) -> Tensor:
        """The rows of the pool, which end a batch, as an image and its neighbours: [G, 1 + n, D]."""
        return rows[-self.task.facts.pool_rows :].view(-1, 1 + self.options.neighbours, rows.shape[1])
