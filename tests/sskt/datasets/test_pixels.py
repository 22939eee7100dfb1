import io
import random
import warnings

import numpy as np
import pytest
from PIL import Image

from sskt.datasets import Record
from sskt.datasets.pixels import Unreadable, decode, to_pixels
from tests.sskt.datasets.pictures import picture


def pixels(image, channels=None, size=None):
    return to_pixels(image, channels=channels, size=size)


def test_channels_come_first_and_nothing_else_changes():
    image = picture(1, (5, 3))
    found = pixels(image)
    assert (found.shape, found.dtype) == ((3, 3, 5), np.uint8)
    np.testing.assert_array_equal(found.transpose(1, 2, 0), np.asarray(image))
    grey = picture(1, (5, 3), "L")
    np.testing.assert_array_equal(pixels(grey), np.asarray(grey)[None])


def test_grey_and_colour_become_each_other_when_asked():
    grey = pixels(picture(1, mode="L"), channels=3)
    assert grey.shape == (3, 8, 8)
    assert (grey == grey[:1]).all()
    colour = picture(1)
    weights = np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(pixels(colour, channels=1)[0], np.asarray(colour) @ weights, atol=1)


def test_sixteen_bits_keep_the_upper_eight():
    values = np.array([[0, 255, 256, 65535]], np.uint16)
    np.testing.assert_array_equal(pixels(Image.fromarray(values)), [[[0, 0, 1, 255]]])
    wide = np.array([[0, 255, 256, 70000]], np.int32)
    np.testing.assert_array_equal(pixels(Image.fromarray(wide)), [[[0, 0, 1, 255]]])


def test_what_is_transparent_is_white():
    clear = Image.new("RGBA", (2, 1), (10, 20, 30, 0))
    clear.putpixel((1, 0), (10, 20, 30, 255))
    np.testing.assert_array_equal(pixels(clear)[:, 0], [[255, 10], [255, 20], [255, 30]])
    grey = Image.new("LA", (2, 1), (10, 0))
    grey.putpixel((1, 0), (10, 255))
    np.testing.assert_array_equal(pixels(grey), [[[255, 10]]])


def test_a_palette_is_resolved():
    image = Image.new("P", (2, 1))
    image.putpalette([1, 2, 3, 200, 100, 50])
    image.putpixel((1, 0), 1)
    np.testing.assert_array_equal(pixels(image)[:, 0], [[1, 200], [2, 100], [3, 50]])


def test_bilevel_and_cmyk_are_grey_and_colour():
    np.testing.assert_array_equal(pixels(Image.new("1", (1, 1), 1)), [[[255]]])
    np.testing.assert_array_equal(pixels(Image.new("CMYK", (1, 1), (0, 255, 255, 0))), [[[255]], [[0]], [[0]]])


def test_the_camera_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise to see it upright
    file = io.BytesIO()
    image = picture(1, (4, 2))
    image.save(file, "PNG", exif=exif)
    np.testing.assert_array_equal(
        pixels(Image.open(file)).transpose(1, 2, 0), np.rot90(np.asarray(image), k=-1, axes=(0, 1))
    )


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_the_shorter_side_is_resized_and_the_centre_cut_out(mode):
    image = picture(1, (40, 20), mode)
    found = pixels(image, size=10)
    assert found.shape[1:] == (10, 10)
    expected = np.asarray(image.resize((20, 10), Image.Resampling.BILINEAR))[:, 5:15]
    np.testing.assert_array_equal(found, np.atleast_3d(expected).transpose(2, 0, 1))


def test_an_image_of_the_right_height_is_only_cut():
    image = picture(1, (9, 5))
    np.testing.assert_array_equal(pixels(image, size=5).transpose(1, 2, 0), np.asarray(image)[:, 2:7])


@pytest.mark.parametrize("size", [(3, 2), (2, 3), (7, 1), (33, 32), (1, 1)])
def test_any_shape_becomes_square(size):
    assert pixels(picture(1, size), size=32).shape == (3, 32, 32)


def test_floating_point_images_are_unreadable():
    record = Record("a", 0, None, lambda: Image.new("F", (2, 2)))
    assert decode(record, None, None) == Unreadable(
        "a", "its pixels are floating-point numbers, whose range is unknown"
    )


def test_a_lazily_opened_truncated_file_is_unreadable():
    file = io.BytesIO()
    picture(1, (64, 64)).save(file, "JPEG")
    record = Record("a", 0, None, lambda: Image.open(io.BytesIO(file.getvalue()[:-500])))
    found = decode(record, None, None)
    assert isinstance(found, Unreadable)
    assert "truncated" in found.reason


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF", "PPM"])
def test_damaged_files_never_end_the_packing(kind):
    file = io.BytesIO()
    picture(1, (20, 20)).save(file, kind)
    choose = random.Random(kind)  # noqa: S311  repeatable damage
    unreadable = 0
    for _ in range(60):
        data = bytearray(file.getvalue())
        for _ in range(4):
            data[choose.randrange(min(len(data), 120))] = choose.randrange(256)
        data = bytes(data[: choose.randrange(1, len(data) + 1)])
        with warnings.catch_warnings(action="ignore"):
            found = decode(Record("a", 0, None, lambda data=data: Image.open(io.BytesIO(data))), 3, 8)
        unreadable += isinstance(found, Unreadable)
        assert isinstance(found, Unreadable) or found.shape == (3, 8, 8)
    assert unreadable > 20
