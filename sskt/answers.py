"""What a source says about views, from a cache or from the source itself; a feed cannot tell the difference."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sskt.encodings import Encoding
from sskt.sources import USUAL_BATCH, Source
from sskt.views import KINDS, TURN, Kind


class SourceOutputs(Protocol):
    """What a source says about views, by whatever means."""

    def __call__(self, images: Tensor, *, ids: Tensor, views: Tensor, kind: Kind = "") -> dict[str, Tensor]:
        """Return each output for the views (images), all of one kind, of samples (ids), float32 [B, ...]."""


@dataclass(frozen=True)
class Column:
    """One output as it is stored. payload: uint8 [P, views, bytes] without gaps, sample id first."""

    payload: Tensor
    encoding: Encoding
    width: int

    def rows(self, ids: Tensor, views: Tensor, numbers: tuple[int, ...]) -> Tensor:
        """Decode some views of samples: float32 [B, width]. numbers: those n of whose views v + n * TURN it is."""
        _, count, size = self.payload.shape
        places = (views // TURN - numbers[0]) * (count // len(numbers)) + views % TURN
        # Whole rows are copied, where an index in brackets goes byte by byte.
        rows = self.payload.view(-1, size).index_select(0, (ids * count + places).to(self.payload.device))
        return self.encoding.decode(rows.to(ids.device), self.width)


@dataclass(frozen=True)
class CachedOutputs:
    """Labels read from caches, by the kind of the views, then by output name.

    Of each kind the M views in their order; of turned ones those turned by one quarter, then by two, then by three.
    """

    columns: Mapping[Kind, Mapping[str, Column]]

    def __call__(self, images: Tensor, *, ids: Tensor, views: Tensor, kind: Kind = "") -> dict[str, Tensor]:
        """Look the views up."""
        return {name: column.rows(ids, views, KINDS[kind]) for name, column in self.columns[kind].items()}


@dataclass(frozen=True)
class LiveOutputs:
    """Labels computed on the spot by a source network."""

    source: Source
    wanted: tuple[str, ...]

    def __call__(self, images: Tensor, *, ids: Tensor, views: Tensor, kind: Kind = "") -> dict[str, Tensor]:
        """Run the source on the views, all at once where its normalisation goes by what it sees at once."""
        size = len(images) if self.source.batch_norm == "batch" else USUAL_BATCH.get(images.device.type, len(images))
        said = [self.source.outputs(some, self.wanted) for some in torch.split(images, max(1, size))]
        return {name: torch.cat([part[name] for part in said]) for name in self.wanted}
