"""Preprocessing against NumPy written out by loops."""

import numpy as np
import pytest
import torch

from sskt.errors import InputError
from sskt.networks.preprocess import Preprocess, Preprocessing

RGB = Preprocessing(channels=3, size=None, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.5))
GREY = Preprocessing(channels=1, size=None, mean=(0.5,), std=(0.25,))


def random_images(channels: int, size: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(channels * 100 + size)
    return torch.randint(0, 256, (2, channels, size, size), dtype=torch.uint8, generator=generator)


def bilinear(image: np.ndarray, size: int) -> np.ndarray:
    """Half-pixel centres, borders repeated. image: [H, W]."""
    height, width = image.shape
    result = np.zeros((size, size))
    for i in range(size):
        for j in range(size):
            y = max((i + 0.5) * height / size - 0.5, 0.0)
            x = max((j + 0.5) * width / size - 0.5, 0.0)
            top, left = int(y), int(x)
            bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
            fy, fx = y - top, x - left
            upper = (1 - fx) * image[top, left] + fx * image[top, right]
            lower = (1 - fx) * image[bottom, left] + fx * image[bottom, right]
            result[i, j] = (1 - fy) * upper + fy * lower
    return result


@pytest.mark.parametrize("size", [7, 4, 3, 2])
def test_resizes_and_normalises_like_numpy(size):
    images = random_images(3, 4)
    values = Preprocessing(channels=3, size=size, mean=RGB.mean, std=RGB.std)
    ours = Preprocess(values)(images)
    assert ours.dtype == torch.float32
    for b in range(2):
        for c in range(3):
            resized = bilinear(images[b, c].numpy() / 255.0, size)
            np.testing.assert_allclose(ours[b, c].numpy(), (resized - RGB.mean[c]) / RGB.std[c], atol=2e-6)


def test_without_a_size_images_keep_theirs_even_when_oblong():
    images = torch.randint(0, 256, (2, 3, 5, 9), dtype=torch.uint8)
    expected = (images.numpy() / 255.0 - np.reshape(RGB.mean, (1, 3, 1, 1))) / np.reshape(RGB.std, (1, 3, 1, 1))
    np.testing.assert_allclose(Preprocess(RGB)(images).numpy(), expected, atol=2e-6)


def test_grey_is_repeated_and_normalised_per_channel():
    images = random_images(1, 4)
    ours = Preprocess(Preprocessing(3, 6, RGB.mean, RGB.std))(images)
    assert ours.shape == (2, 3, 6, 6)
    assert torch.equal(ours, Preprocess(Preprocessing(3, 6, RGB.mean, RGB.std))(images.expand(2, 3, 4, 4)))


def test_colour_becomes_luminance():
    images = random_images(3, 4)
    red, green, blue = (images[:, c].numpy() / 255.0 for c in range(3))
    expected = (0.299 * red + 0.587 * green + 0.114 * blue - 0.5) / 0.25
    ours = Preprocess(GREY)(images)
    assert ours.shape == (2, 1, 4, 4)
    np.testing.assert_allclose(ours[:, 0].numpy(), expected, atol=2e-6)


def test_other_channel_counts_do_not_turn_into_each_other():
    with pytest.raises(InputError, match="images have 4 channels and the network sees 3"):
        Preprocess(RGB)(random_images(4, 4))


def test_a_network_for_images_sees_the_centre_frame_of_a_clip():
    clip = random_images(48, 4)
    assert torch.equal(Preprocess(RGB)(clip), Preprocess(RGB)(clip[:, 24:27]))
    assert torch.equal(Preprocess(RGB)(clip[:, :9]), Preprocess(RGB)(clip[:, 3:6]))


def test_any_channel_count_stays_as_it_is():
    images = random_images(4, 4)
    ours = Preprocess(Preprocessing(4, None, (0.0,) * 4, (1.0,) * 4))(images)
    np.testing.assert_allclose(ours.numpy(), images.numpy() / 255.0, atol=1e-6)


def test_constants_are_not_part_of_the_state():
    preprocess = Preprocess(RGB)
    assert list(preprocess.state_dict()) == []
    assert preprocess.to(torch.float64).mean.dtype == torch.float64


@pytest.mark.parametrize(
    ("mean", "std", "message"),
    [
        ((0.5,), (0.2, 0.2, 0.2), r"input\.mean is \[0\.5\]; it has to have an entry for each of 3 channels"),
        ((0.5, 0.5, 0.5), (0.2,), r"input\.std is \[0\.2\]; it has to have an entry for each of 3 channels"),
        ((0.5, 0.5, 0.5), (0.2, 0.0, 0.2), r"input\.std is \[0\.2, 0\.0, 0\.2\]; every entry has to be above 0"),
    ],
)
def test_wrong_constants_are_named(mean, std, message):
    with pytest.raises(InputError, match=message):
        Preprocessing(channels=3, size=None, mean=mean, std=std)


def scaled(scale: float) -> Preprocessing:
    return Preprocessing(channels=3, size=None, mean=RGB.mean, std=RGB.std, scale=scale)


@pytest.mark.parametrize("scale", [7 / 3, 2.3333333, 2.3333])
@pytest.mark.parametrize(("length", "side"), [(32, 74), (96, 224), (28, 65), (64, 149), (3, 7)])
def test_seven_thirds_give_the_sides_of_the_release_however_many_digits_are_typed(scale, length, side):
    assert scaled(scale).side(length) == side


@pytest.mark.parametrize("scale", [7 / 3, 2.0, 1.4, 0.5, 1.0])
@pytest.mark.parametrize("length", [5, 32, 96, 97])
def test_sides_are_rounded_down_as_torch_does(scale, length):
    theirs = torch.nn.functional.interpolate(torch.zeros(1, 1, length, length), scale_factor=scale)
    assert scaled(scale).side(length) == theirs.shape[-1]


def test_a_scale_resizes_like_numpy_whatever_size_images_have():
    preprocess = Preprocess(scaled(1.5))
    for length, side in ((4, 6), (5, 7)):
        images = random_images(3, length)
        ours = preprocess(images)
        assert ours.shape == (2, 3, side, side)
        for c in range(3):
            resized = bilinear(images[1, c].numpy() / 255.0, side)
            np.testing.assert_allclose(ours[1, c].numpy(), (resized - RGB.mean[c]) / RGB.std[c], atol=2e-6)


def test_a_scale_keeps_oblong_images_oblong_and_a_pixel_at_least():
    assert Preprocess(scaled(2.0))(torch.zeros(1, 3, 5, 9, dtype=torch.uint8)).shape == (1, 3, 10, 18)
    assert Preprocess(scaled(0.1))(random_images(3, 4)).shape == (2, 3, 1, 1)


def test_plain_values_name_a_scale_only_where_there_is_one():
    plain = {"channels": 1, "size": None, "mean": [0.5], "std": [0.25]}
    assert GREY.plain() == plain
    assert Preprocessing(1, None, (0.5,), (0.25,), scale=1.5).plain() == plain | {"scale": 1.5}
