import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional as F

from sskt import view_colours as colours
from tests.sskt import slow_views

BY_FACTOR = ("brightness", "contrast", "saturation", "sharpness")
WITHOUT = ("invert", "autocontrast", "equalize")


def noise(*shape: int, low: int = 0, high: int = 255) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(low, high + 1, shape, dtype=np.uint8))


def factors(*values: int) -> torch.Tensor:
    return torch.tensor(values).view(-1, 1, 1, 1)


def pictures(channels: int, size: int) -> st.SearchStrategy:
    levels = st.sampled_from([0, 1, 127, 128, 254, 255]) | st.integers(0, 255)
    rows = st.lists(levels, min_size=size, max_size=size)
    return st.lists(st.lists(rows, min_size=size, max_size=size), min_size=channels, max_size=channels)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(BY_FACTOR), st.integers(0, 512), st.sampled_from([1, 3]), st.sampled_from([1, 2, 4]), st.data())
def test_factors_act_as_defined(name, factor, channels, size, data):
    picture = data.draw(pictures(channels, size))
    here = getattr(colours, name)(torch.tensor([picture], dtype=torch.uint8), factors(factor))
    assert here[0].tolist() == getattr(slow_views, name)(picture, factor)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(WITHOUT), st.sampled_from([1, 3]), st.sampled_from([1, 2, 4]), st.data())
def test_what_takes_no_number_acts_as_defined(name, channels, size, data):
    picture = data.draw(pictures(channels, size))
    here = getattr(colours, name)(torch.tensor([picture], dtype=torch.uint8))
    assert here[0].tolist() == getattr(slow_views, name)(picture)


@pytest.mark.parametrize("low", [0, 100])
@pytest.mark.parametrize("high", [101, 255])
def test_histograms_are_flattened_as_defined(low, high):
    images = noise(3, 2, 20, 20, low=low, high=high)
    assert colours.equalize(images).tolist() == [slow_views.equalize(image.tolist()) for image in images]


def test_bits_and_thresholds_act_as_defined():
    ramp = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    for bits in range(1, 9):
        assert colours.posterize(ramp, bits)[0].tolist() == slow_views.posterize(ramp[0].tolist(), bits)
    for threshold in (0, 1, 128, 255):
        assert colours.solarize(ramp, threshold)[0].tolist() == slow_views.solarize(ramp[0].tolist(), threshold)


@pytest.mark.parametrize("name", BY_FACTOR)
@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_the_factor_one_changes_nothing(name, channels):
    images = noise(4, channels, 7, 7)
    assert torch.equal(getattr(colours, name)(images, factors(256)), images)


def test_each_image_has_its_own_factor():
    images = noise(3, 3, 5, 5)
    for name in BY_FACTOR:
        colour = getattr(colours, name)
        whole = colour(images, factors(0, 200, 500))
        for row, factor in enumerate((0, 200, 500)):
            assert torch.equal(whole[row : row + 1], colour(images[row : row + 1], factors(factor)))


def test_images_without_three_channels_have_no_colours():
    images = noise(4, 1, 6, 6)
    assert torch.equal(colours.saturation(images, factors(0)), images)
    assert torch.equal(colours.grey(images), images)


def test_extremes_stay_within_a_byte():
    for value in (0, 255):
        images = torch.full((1, 3, 4, 4), value, dtype=torch.uint8)
        for name in BY_FACTOR:
            for factor in (0, 512):
                expected = 0 if name == "brightness" and factor == 0 else value
                assert (getattr(colours, name)(images, factors(factor)) == expected).all()
        for name in ("autocontrast", "equalize"):
            assert torch.equal(getattr(colours, name)(images), images)


@pytest.mark.parametrize("factor", [0, 100, 179, 256, 300, 358, 512])
@pytest.mark.parametrize(("name", "levels"), [("brightness", 1), ("contrast", 2), ("saturation", 2), ("sharpness", 2)])
def test_factors_look_like_torchvisions_within_a_few_levels(name, levels, factor):
    """It cuts fractions off where these round, twice in the last three."""
    images = noise(2, 3, 16, 16)
    there = getattr(F, f"adjust_{name}")(images, factor / 256)
    assert (getattr(colours, name)(images, factors(factor)).int() - there.int()).abs().max() <= levels


def test_the_others_look_like_torchvisions():
    images = noise(6, 3, 24, 24, low=20, high=200)
    assert torch.equal(colours.equalize(images), F.equalize(images))
    assert torch.equal(colours.invert(images), F.invert(images))
    assert torch.equal(colours.posterize(images, 3), F.posterize(images, 3))
    assert torch.equal(colours.solarize(images, 99), F.solarize(images, 99))
    assert (colours.autocontrast(images).int() - F.autocontrast(images).int()).abs().max() <= 1
    assert (colours.grey(images).int() - F.rgb_to_grayscale(images).int()).abs().max() <= 1
