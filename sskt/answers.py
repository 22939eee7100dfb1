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
class Column:
    """One output as it is stored. payload: uint8 [P, views, bytes], sample id first."""

    payload: Tensor
    encoding: Encoding
    width: int

    def rows(self, ids: Tensor, places: Tensor) -> Tensor:
        """Decode some views of samples, by their places: float32 [B, width]."""
        return self.encoding.decode(self.payload[ids, places], self.width)


@dataclass(frozen=True)
class CachedOutputs:
    """Labels read from a cache, by output name.

    upright: the M views in their order; turned: those turned by one quarter, then by two, then by three.
    """

    upright: Mapping[str, Column]
    turned: Mapping[str, Column] = field(default_factory=dict)

    def __call__(self, images: Tensor, *, ids: Tensor, views: Tensor, turned: bool = False) -> dict[str, Tensor]:
        """Look the views up."""
        if not turned:
            return {name: column.rows(ids, views) for name, column in self.upright.items()}
        quarters, upright = views // TURN - 1, views % TURN
        return {
            name: column.rows(ids, quarters * (column.payload.shape[1] // 3) + upright)
            for name, column in self.turned.items()
        }


@dataclass(frozen=True)
class LiveOutputs:
    """Labels computed on the spot by a source network."""

    source: Source
    wanted: tuple[str, ...]

    def __call__(self, images: Tensor, *, ids: Tensor, views: Tensor, turned: bool = False) -> dict[str, Tensor]:
        """Run the source on the views."""
        return self.source.outputs(images, self.wanted)
