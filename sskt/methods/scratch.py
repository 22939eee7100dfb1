"""The control: the target alone, from random weights, on the labelled images."""

from torch import Tensor

from sskt.feeds import Batch
from sskt.methods.base import SingleTarget


class Scratch(SingleTarget):
    """The target alone on its labels; what every transfer is measured against."""

    def losses(self, batch: Batch, logits: Tensor, heads: dict[str, Tensor]) -> dict[str, Tensor]:
        """Cross-entropy on the labels."""
        return {"primary": self.task.primary_loss(logits, batch.labels)}
