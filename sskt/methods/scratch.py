"""The control: the target alone, from random weights, on the labelled images."""

from torch import Tensor

from sskt.feeds import Batch
from sskt.methods.base import SingleTarget, labelled_cross_entropy


class Scratch(SingleTarget):
    """The target alone on its labels; what every transfer is measured against."""

    def losses(self, batch: Batch, logits: Tensor, heads: dict[str, Tensor]) -> dict[str, Tensor]:
        """Cross-entropy on the labels."""
        return {"primary": labelled_cross_entropy(logits, batch.labels)}
