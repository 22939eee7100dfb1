import math

import numpy as np
import pytest
import torch
from torchvision.transforms.v2 import functional as F

from sskt.rand_augment import AUGMENTATIONS, MAGNITUDES, rand_augment
from sskt.views import bounded, hash_counters
from tests.sskt import slow_views


def noise(*shape: int, low: int = 30, high: int = 220) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(low, high + 1, shape, dtype=np.uint8))


def signs(*values: int) -> torch.Tensor:
    return torch.tensor(values).view(-1, 1, 1, 1)


def test_the_order_of_the_list_is_part_of_every_view():
    assert tuple(AUGMENTATIONS) == slow_views.NAMES


@pytest.mark.parametrize("name", AUGMENTATIONS)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_magnitude_and_sign_is_as_defined(name, channels):
    images = noise(2, channels, 17 if name == "equalize" else 7, 17 if name == "equalize" else 7)
    for magnitude in range(0, MAGNITUDES + 1, 5):
        shown = AUGMENTATIONS[name](images, magnitude, signs(1, -1))
        for row, sign in enumerate((1, -1)):
            expected = slow_views.augmented(images[row].tolist(), name, magnitude, sign)
            assert shown[row].tolist() == expected, (magnitude, sign)


@pytest.mark.parametrize("name", sorted(set(AUGMENTATIONS) - {"autocontrast", "equalize"}))
def test_magnitude_zero_changes_nothing(name):
    images = noise(2, 3, 11, 11, low=0, high=254)
    assert torch.equal(AUGMENTATIONS[name](images, 0, signs(1, -1)), images)


@pytest.mark.parametrize("name", [name for name in AUGMENTATIONS if name != "identity"])
def test_the_largest_magnitude_changes_something(name):
    images = noise(2, 3, 20, 20)
    assert (AUGMENTATIONS[name](images, MAGNITUDES, signs(1, -1)) != images).flatten(1).any(dim=1).all()


@pytest.mark.parametrize("size", [31, 32])
@pytest.mark.parametrize("magnitude", [3, 9, 17, 30])
def test_moves_are_torchvisions_but_for_ties(size, magnitude):
    """The points may lie exactly between two pixels; 2 % of them at most."""
    images = noise(1, 3, size, size)
    shear, step = [math.degrees(math.atan(0.01 * magnitude)), 0.0], int(150 / 331 * size * magnitude / 30)
    still = {"angle": 0.0, "translate": [0, 0], "scale": 1.0, "shear": [0.0, 0.0], "center": [0, 0]}
    expected = {
        "shear_x": F.affine(images, **still | {"shear": shear}),
        "shear_y": F.affine(images, **still | {"shear": shear[::-1]}),
        "translate_x": F.affine(images, **still | {"translate": [step, 0]}),
        "translate_y": F.affine(images, **still | {"translate": [0, step]}),
        "rotate": F.rotate(images, float(magnitude)),
    }
    for name, there in expected.items():
        here = AUGMENTATIONS[name](images, magnitude, signs(1))
        assert (here != there).float().mean() <= 0.02, name


def test_the_tables_of_angles_are_far_from_where_rounding_could_differ():
    """So every machine's sine, right to 1e-12, gives the same whole numbers."""
    for degrees in range(MAGNITUDES + 1):
        for value in (math.sin(math.radians(degrees)), math.cos(math.radians(degrees))):
            assert abs(65536 * value % 1 - 0.5) > 1e-4


def test_operations_are_drawn_evenly_and_signed_evenly():
    count = 14_000
    ids = torch.arange(count)

    def draw(number, bound):
        return bounded(hash_counters(4, ids, number).view(-1, 1, 1, 1), bound)

    counts = draw(0, len(AUGMENTATIONS)).view(-1).bincount()
    assert (counts - 1000).abs().max() < 5 * 1000**0.5
    images = noise(1, 1, 9, 9).expand(count, -1, -1, -1)
    seen = {view.numpy().tobytes() for view in rand_augment(images, draw, (1, 20))}
    # Both signs of shears, translations, rotation and three factors (one channel has no colours); identity, which
    # equalize is on so few pixels; posterize, solarize and autocontrast.
    assert len(seen) == 2 * 8 + 1 + 3
