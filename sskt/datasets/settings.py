"""Which images a person trains on, frozen and checked where they are named."""

from dataclasses import dataclass
from typing import Literal

from sskt.errors import InputError, unknown_name

Kind = Literal["digits", "digit_pairs", "mnist5k", "torchvision", "folder", "clips", "parquet"]

_NEEDED: dict[str, tuple[str, ...]] = {
    "digits": (),
    "digit_pairs": (),
    "mnist5k": (),
    "torchvision": ("name", "path"),
    "folder": ("path",),
    "clips": ("path",),
    "parquet": ("path",),
}
FRAMES = 16
"""Of a clip; they are packed as 48 channels."""
_OPTIONAL: dict[str, tuple[str, ...]] = {"parquet": ("test_path",)}


@dataclass(frozen=True, kw_only=True)
class DatasetSettings:
    """A set of labelled images, and how it is packed."""

    kind: Kind
    name: str | None = None
    """Class of torchvision.datasets, such as CIFAR10."""
    path: str | None = None
    """Root folder of torchvision's files, folder of images or clips, or Parquet file or folder of the training rows."""
    test_path: str | None = None
    """Parquet file or folder of the rows of the test split."""
    image_size: int | None = None
    """Side in pixels that images are packed at; None needs images that share one square size."""
    channels: Literal[1, 3] | None = None
    """None is 1 if every image is grey, else 3."""
    validation: float = 0.1
    """Part of each class held out for choosing, where the data has no such split of its own."""
    test: float = 0.2
    """Part of each class held out for testing, where the data has no such split of its own."""
    seed: int = 0
    """Of the packed order, and so of what is held out."""
    max_unreadable: int = 0
    """Images that may be left out because they cannot be read."""

    def __post_init__(self) -> None:
        if self.kind not in _NEEDED:
            raise unknown_name("dataset.kind", self.kind, _NEEDED)
        self._check_fields()
        self._check_fractions()
        if self.image_size is not None and self.image_size < 1:
            raise InputError(f"dataset.image_size is {self.image_size}; it has to be at least 1")
        if self.channels not in (None, 1, 3):
            raise InputError(f"dataset.channels is {self.channels}; it has to be 1 (grey) or 3 (colour)")
        if self.kind == "clips" and self.channels is not None:
            raise InputError(f"dataset.channels is {self.channels}; kind 'clips' packs frames in colour, leave it out")
        if self.max_unreadable < 0:
            raise InputError(f"dataset.max_unreadable is {self.max_unreadable}; it has to be at least 0")

    @property
    def stored_channels(self) -> int:
        """Channels of a packed image in colour, or of a clip."""
        return 3 * FRAMES if self.kind == "clips" else self.channels or 3

    def _check_fields(self) -> None:
        needed, used = _NEEDED[self.kind], _NEEDED[self.kind] + _OPTIONAL.get(self.kind, ())
        for field in ("name", "path", "test_path"):
            value = getattr(self, field)
            if field in needed and not value:
                raise InputError(f"dataset.{field} is missing; kind {self.kind!r} needs it")
            if field not in used and value is not None:
                raise InputError(f"dataset.{field} is {value!r}; kind {self.kind!r} does not use it, leave it out")

    def _check_fractions(self) -> None:
        for field in ("validation", "test"):
            value = getattr(self, field)
            if not 0 <= value < 1:
                raise InputError(f"dataset.{field} is {value}; it has to be at least 0 and below 1")
        if self.validation + self.test >= 1:
            raise InputError(
                f"dataset.validation is {self.validation} and dataset.test is {self.test}; "
                "their sum has to be below 1, for something to train on"
            )
