"""Alignahead (Guo 2022): each stage of a peer learns the relations between images that the others see a stage earlier.

L_k = CE_k + weight * mean over o != k of sum over stages l of KL(S_o,l || S_k,l+shift), the last stage followed by the
first, in which S is the softmax over the other images of a batch of their cosines with an image.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sskt.embedding_losses import score_kl
from sskt.errors import InputError
from sskt.feeds import Batch
from sskt.methods.base import Facts, LearnFrom, Needs, learns_from_all
from sskt.methods.peers import Peer, PeerMethod
from sskt.networks import Features, TappedNetwork


@dataclass(frozen=True, kw_only=True)
class AlignaheadOptions:
    """Peers, weight, shift and the common start are those of the release, which has graphs in place of images."""

    peers: int = 2
    """Networks that learn together, the target among them; two, as in the release's logs. 1 is scratch."""
    weight: float = 1.0
    """Weight of the mean over the other peers of the sum over stages; the release's."""
    shift: int = 1
    """Stages that a peer is ahead of what it learns from; 0, stage by stage, is the paper's control."""
    temperature: float = 0.1
    """Of the softmax over cosines; ours. The release's kernel, in (0, 1) without one, makes it nearly uniform."""
    identical_start: bool = True
    """Whether all peers start as copies of the target, as in the release."""
    learn_from: LearnFrom = "labelled"
    """Images the peers are compared on; the release has labels for all that it learns from."""

    def __post_init__(self) -> None:
        for name, least in (("peers", 1), ("weight", 0), ("shift", 0)):
            if not getattr(self, name) >= least:
                raise InputError(f"{name} is {getattr(self, name)}; it has to be at least {least}")
        if not self.temperature > 0:
            raise InputError(f"temperature is {self.temperature}; it has to be above 0")

    @property
    def final_weight(self) -> float:
        """The weight of comparing peers, 0 where there is but one."""
        return self.weight if self.peers > 1 else 0.0


class PooledTap(nn.Module):
    """One of the taps, averaged over the image."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number

    def forward(self, features: Features) -> Tensor:
        """Return [B, C]."""
        return features.taps[self.number].mean(dim=(2, 3))


class Alignahead(PeerMethod):
    """Each stage of a peer learns how alike images are to the stage before it of the others; no sources.

    Peers step in turn, and see the others as they are by then, as in the release: copies that all looked before anyone
    steps would stay copies. The others speak in evaluation mode, so that being asked does not change their statistics.
    """

    Options: ClassVar[type[Any]] = AlignaheadOptions
    options: AlignaheadOptions
    mixable: ClassVar[bool] = True

    @classmethod
    def needs(cls, options: AlignaheadOptions) -> Needs:
        """No outputs; and the pool, where there is a weighted comparison and it learns from all images."""
        return Needs(pool=learns_from_all(options.learn_from, options.final_weight))

    @classmethod
    def check(cls, options: AlignaheadOptions, facts: Facts) -> None:
        """No sources; and where peers are compared, stages to shift by, and images that have two others each."""
        super().check(options, facts)
        if options.final_weight == 0:
            return
        if not facts.taps:
            raise InputError("this method compares stages, and the target's architecture has no taps; take another")
        if options.shift >= len(facts.taps):
            raise InputError(
                f"shift is {options.shift}; it has to be below the target's number of taps, {len(facts.taps)}"
            )
        rows = facts.rows + facts.pool_rows * cls.needs(options).pool
        if rows < 3:
            raise InputError(
                f"batch_size gives each process {rows} images at a time; "
                "this method relates images of one batch and needs at least 3"
            )

    def seeds(self) -> list[int]:
        """Peer 0 like the target of every other method; the others there too, or elsewhere."""
        return [self.task.seed] * self.options.peers if self.options.identical_start else super().seeds()

    def build_heads(self, target: TappedNetwork) -> nn.ModuleDict:
        """A way out for every tap."""
        return nn.ModuleDict({f"tap{number}": PooledTap(number) for number in range(len(target.taps))})

    def losses(self, batch: Batch) -> Iterator[dict[str, Tensor]]:
        """The equation above, made peer by peer while they step."""
        for peer in self.peers:
            logits, taps = peer.student(batch.images)
            parts = {"primary": self.task.primary_loss(logits, batch.labels)}
            if self.options.final_weight > 0:
                others = [said(other, batch.images) for other in self.peers if other is not peer]
                ahead = [self._ahead(list(taps.values()), its) for its in others]
                parts["ahead"] = self.options.weight * torch.stack(ahead).mean()
            yield parts

    def _ahead(self, own: Sequence[Tensor], other: Sequence[Tensor]) -> Tensor:
        return ahead_kl(own, other, shift=self.options.shift, temperature=self.options.temperature)


@torch.no_grad()
def said(peer: Peer, images: Tensor) -> list[Tensor]:
    """What a peer's taps [B, C_l] show the others, in evaluation mode."""
    training = peer.target.training
    features = peer.target.eval()(images)
    peer.target.train(training)
    return [head(features) for head in peer.heads.values()]


def ahead_kl(own: Sequence[Tensor], other: Sequence[Tensor], *, shift: int, temperature: float) -> Tensor:
    """Sum over l of KL(S_other,l || S_own,(l + shift) mod L), each the mean over the batch. Stages l: [B, C_l]."""
    turned = [*own[shift:], *own[:shift]]
    pairs = zip(turned, other, strict=True)
    return torch.stack([score_kl(mine, its, temperature=temperature) for mine, its in pairs]).sum()
