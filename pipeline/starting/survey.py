"""A look at a folder of images before anything is decided about it."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from pipeline.progress import Progress
from sskt.datasets import UNLABELLED, DatasetSettings, Record, read_folder
from sskt.datasets.pixels import Unreadable, decode
from sskt.errors import InputError

LOOKED_AT = 3000
"""Images that are read whole; of larger folders so many, spread evenly."""


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What a folder holds."""

    path: str
    classes: dict[str, int]
    """Labelled images by class, in the order of the labels."""
    unlabelled: int
    own_splits: tuple[str, ...]
    """Those of train, validation and test that have a folder."""
    looked_at: int
    sides: tuple[int, ...]
    """Shorter sides of the images that could be read, in pixels, sorted."""
    grey: bool
    """Whether all of these are grey."""
    unreadable: tuple[Unreadable, ...]

    @property
    def images(self) -> int:
        """All of them, labelled or not."""
        return sum(self.classes.values()) + self.unlabelled

    @property
    def usual_side(self) -> int:
        """The median of the shorter sides."""
        return int(median(self.sides))

    @property
    def everything(self) -> bool:
        """Whether every image was read."""
        return self.looked_at == self.images

    @property
    def largest_share(self) -> float:
        """Part of the labelled images that the largest class has: what a network that knows nothing can reach."""
        return max(self.classes.values()) / sum(self.classes.values())


def survey(path: str) -> Survey:
    """Look at a folder; refuse one that nothing can be learned from."""
    raw = read_folder(DatasetSettings(kind="folder", path=path))
    counts = Counter(record.label for record in raw.records)
    if len(raw.classes) < 2:
        raise InputError(f"{path!r} has one class, {raw.classes[0]!r}; it has to hold a folder for each of two or more")
    spread = raw.records[:: max(1, -(-len(raw.records) // LOOKED_AT))]
    sides, modes, unreadable = _read(spread)
    if not sides:
        first = unreadable[0]
        raise InputError(f"{path!r}: none of {len(spread)} images can be read; {first.key}: {first.reason}")
    splits = {record.split for record in raw.records if record.split and record.label != UNLABELLED}
    return Survey(
        path=path,
        classes={name: counts[label] for label, name in enumerate(raw.classes)},
        unlabelled=counts[UNLABELLED],
        own_splits=tuple(sorted(splits)),
        looked_at=len(spread),
        sides=tuple(sorted(sides)),
        grey=modes == {1},
        unreadable=tuple(unreadable),
    )


def _read(records: Sequence[Record]) -> tuple[list[int], set[int], list[Unreadable]]:
    """Shorter sides, numbers of channels, and what cannot be read."""
    sides: list[int] = []
    channels: set[int] = set()
    unreadable: list[Unreadable] = []
    with Progress("looking", total=len(records), unit="images") as progress:
        for record in records:
            pixels = decode(record, None, None)
            if isinstance(pixels, Unreadable):
                unreadable.append(pixels)
            else:
                sides.append(min(pixels.shape[1:]))
                channels.add(pixels.shape[0])
            progress.advance()
    return sides, channels, unreadable
