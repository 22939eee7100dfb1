"""The control that often wins: the source network itself, with a new head, trained on the labelled images."""

from typing import ClassVar

from torch import Tensor

from sskt.feeds import Batch
from sskt.methods.base import Facts, SingleTarget, require_sources
from sskt.networks import TappedNetwork
from sskt.networks.architecture import errors_in
from sskt.networks.tapped import PRECISIONS


class Finetune(SingleTarget):
    """A source network with a new head, trained on the labels; its size is the source's, not the target's."""

    builds_target: ClassVar[bool] = False

    @classmethod
    def check(cls, options: object, facts: Facts) -> None:
        """Exactly one source."""
        require_sources(facts, least=1, most=1)

    def build_target(self) -> TappedNetwork:
        """Take the source's weights under a fresh head; all learn but what the target's settings freeze."""
        (name,) = self.task.facts.sources
        network = self.task.load_source(name).network
        network.replace_head(self.task.facts.classes)
        network.requires_grad_()
        with errors_in("target."):
            network.freeze(self.task.target.frozen)
        network.computes_in = PRECISIONS[self.task.target.precision]
        return network

    def losses(self, batch: Batch, logits: Tensor, heads: dict[str, Tensor]) -> dict[str, Tensor]:
        """Cross-entropy on the labels."""
        return {"primary": self.task.primary_loss(logits, batch.labels)}
