"""The control that often wins: the source network itself, with a new head, trained on the labelled images."""

from torch import Tensor

from sskt.feeds import Batch
from sskt.methods.base import Facts, SingleTarget, labelled_cross_entropy, require_sources
from sskt.networks import TappedNetwork


class Finetune(SingleTarget):
    """A source network with a new head, trained on the labels; its size is the source's, not the target's."""

    @classmethod
    def check(cls, options: object, facts: Facts) -> None:
        """Exactly one source."""
        require_sources(facts, least=1, most=1)

    def build_target(self) -> TappedNetwork:
        """Take the source's weights, all trainable, under a fresh head."""
        (name,) = self.task.facts.sources
        network = self.task.load_source(name).network
        network.replace_head(self.task.facts.classes)
        return network.requires_grad_()

    def losses(self, batch: Batch, logits: Tensor, heads: dict[str, Tensor]) -> dict[str, Tensor]:
        """Cross-entropy on the labels."""
        return {"primary": labelled_cross_entropy(logits, batch.labels)}
