"""What a source says about views, from a cache or from the source itself; a feed cannot tell the difference."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from torch import Tensor

from sskt.encodings import Encoding
from sskt.sources import Source
from sskt.views import TURN


class SourceOutputs(Protocol):
    """What a source says about views, by whatever means."""

    def __call__(self, images: Tensor, *, ids: Tensor, views: Tensor, turned: bool = False) -> dict[str, Tensor]:
        """Return each output for the views (images) of samples (ids), float32 [B, ...].

        turned: whether all of these views are turned ones.
        """


@dataclass(frozen=True)
class CachedOutputs:
    """Labels read from a cache. payload: by output name, uint8 [P, M, bytes], sample id first.

    turned: the same for the views turned by one quarter, then by two, then by three: uint8 [P, 3 * M, bytes].
    """

    payload: Mapping[str, Tensor]
    encoding: Encoding
    turned: Mapping[str, Tensor] = field(default_factory=dict)

    def __call__(self, images: Tensor, *, ids: Tensor, views: Tensor, turned: bool = False) -> dict[str, Tensor]:
        """Look the views up."""
        if not turned:
            return {name: self.encoding.decode(rows[ids, views]) for name, rows in self.payload.items()}
        quarters, upright = views // TURN, views % TURN
        return {
            name: self.encoding.decode(rows[ids, (quarters - 1) * (rows.shape[1] // 3) + upright])
            for name, rows in self.turned.items()
        }


@dataclass(frozen=True)
class LiveOutputs:
    """Labels computed on the spot by a source network."""

    source: Source
    wanted: tuple[str, ...]

    def __call__(self, images: Tensor, *, ids: Tensor, views: Tensor, turned: bool = False) -> dict[str, Tensor]:
        """Run the source on the views."""
        return self.source.outputs(images, self.wanted)
