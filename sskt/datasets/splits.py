"""Stable identities of samples, and what is held out; neither depends on the order in which samples are read."""

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from sskt.datasets.records import SPLITS, UNLABELLED, Record, Split
from sskt.datasets.settings import DatasetSettings
from sskt.errors import InputError


class Identity(NamedTuple):
    """Digests of one sample."""

    picture: bytes
    """Of its pixels alone."""
    sample: bytes
    """Of its pixels and its key, because the same picture may occur twice."""


def identify(pixels: NDArray[np.uint8], key: str) -> Identity:
    """Tell what a sample is from its pixels, uint8 [C, H, W], and its key."""
    digest = hashlib.blake2b(pixels.tobytes(), digest_size=16)
    picture = digest.digest()
    digest.update(key.encode())
    return Identity(picture, digest.digest())


def order_key(digest: bytes, seed: int) -> bytes:
    """Place of a sample in the shuffled order; adding another sample does not change it."""
    return hashlib.blake2b(digest, key=str(seed).encode(), digest_size=16).digest()


def assign_splits(
    records: Sequence[Record],
    order: Sequence[bytes],
    *,
    classes: Sequence[str],
    settings: DatasetSettings,
    kept: Mapping[int, Split] | None = None,
) -> NDArray[np.int8]:
    """Return each record's split as its code in `SPLITS`; of every class, the first in `order` are held out.

    An image of several classes counts as one of the rarest of them; images of no class are divided as if they were one.
    Rows in `kept` stay in the split they have there, and only the others are divided.
    """
    kept = kept or {}
    if not classes:
        raise InputError("dataset: no image has a label, so there is no class to learn; label some")
    own = {record.split for record in records}
    held: dict[Split, float] = {
        "test": 0 if "test" in own else settings.test,
        "validation": 0 if "validation" in own else settings.validation,
    }
    assigned: list[Split] = [_own_split(record) for record in records]
    labelled = _training_images(records, assigned)
    strata = _strata(records, assigned, labelled)
    for row, split in kept.items():
        assigned[row] = split
    for rows in strata:
        new = sorted((row for row in rows if row not in kept), key=lambda row: order[row])
        rest = new
        for split, fraction in held.items():
            already = sum(kept.get(row) == split for row in rows)
            count = _held_out(fraction, rows=len(rows), new=len(new), already=already)
            for row in rest[:count]:
                assigned[row] = split
            rest = rest[count:]
    left = _training_images(records, assigned)
    for label, name in enumerate(classes):
        if not left[label]:
            raise _no_training_image(name, labelled[label], held)
    return np.array([SPLITS.index(split) for split in assigned], np.int8)


def _own_split(record: Record) -> Split:
    split = record.split or "train"
    if record.label == UNLABELLED and split != "train":
        raise InputError(f"dataset: image {record.key!r} of the {split} split has no label; label it or take it out")
    return split


def _training_images(records: Sequence[Record], assigned: Sequence[Split]) -> Counter[int]:
    """Number of training images by class that holds."""
    pairs = zip(records, assigned, strict=True)
    return Counter(label for record, split in pairs if split == "train" for label in record.holds)


def _strata(
    records: Sequence[Record], assigned: Sequence[Split], labelled: Mapping[int, int]
) -> Iterable[Sequence[int]]:
    """Rows of the labelled training images, by their rarest class."""
    strata: dict[int | None, list[int]] = defaultdict(list)
    for row, record in enumerate(records):
        if assigned[row] == "train" and record.label != UNLABELLED:
            rarest = min(record.holds, key=lambda label: (labelled[label], label), default=None)
            strata[rarest].append(row)
    return strata.values()


def _held_out(fraction: float, *, rows: int, new: int, already: int) -> int:
    """How many of the new rows: their share, and no more than all rows lack, or images that come singly all are."""
    return max(min(_ceil(fraction * new), _ceil(fraction * rows) - already), 0)


def _ceil(count: float) -> int:
    return math.ceil(round(count, 6))  # 0.1 * 30 is 3.0000000000000004


def _no_training_image(name: str, labelled: int, held: dict[Split, float]) -> InputError:
    if labelled == 0:
        return InputError(f"dataset: class {name!r} has no labelled image to train on; add some or take the class out")
    fractions = " and ".join(f"dataset.{split} {fraction}" for split, fraction in held.items())
    return InputError(
        f"{fractions} leave nothing to train on of class {name!r}, which has {labelled} labelled image(s); "
        "lower them or add images"
    )
