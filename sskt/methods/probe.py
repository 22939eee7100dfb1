"""The other control that often wins: a linear layer on a source's embedding, the source itself left as it is."""

from sskt.methods.finetune import Finetune
from sskt.networks import TappedNetwork


class Probe(Finetune):
    """A linear layer trained on a frozen source's embedding; what the source alone can tell of the target's classes."""

    def build_target(self) -> TappedNetwork:
        """Take the source under a fresh head, the only part that learns."""
        network = super().build_target()
        head = network.network.get_submodule(network.head)
        network.requires_grad_(requires_grad=False)
        head.requires_grad_()
        return network

    def train(self, mode: bool) -> None:  # noqa: FBT001 (nn.Module's own signature)
        """Stay in evaluation mode: the source's batch statistics are part of what is frozen."""
        super().train(mode=False)
