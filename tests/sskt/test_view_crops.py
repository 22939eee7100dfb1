import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchvision.transforms.v2 import functional as F

from sskt.view_crops import AREAS, random_resized_crop, stretch
from sskt.view_grids import ONE
from sskt.views import bounded, hash_counters
from tests.sskt import slow_views


def noise(*shape: int) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))


def box(*shares: int, count: int = 1) -> dict[str, torch.Tensor]:
    names = ("top", "left", "height", "width")
    return {name: torch.full((count, 1, 1, 1), share) for name, share in zip(names, shares, strict=True)}


def draws(count: int):
    ids = torch.arange(count)
    return lambda number, bound: bounded(hash_counters(1, ids, number).view(-1, 1, 1, 1), bound)


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 7), st.integers(1, 3), st.integers(1, ONE), st.integers(1, ONE), st.data())
def test_any_box_is_stretched_as_defined(size, channels, height, width, data):
    top, left = data.draw(st.integers(0, ONE - height)), data.draw(st.integers(0, ONE - width))
    image = noise(1, channels, size, size)
    expected = slow_views.stretch(image[0].tolist(), top=top, left=left, height=height, width=width)
    assert stretch(image, **box(top, left, height, width))[0].tolist() == expected


@pytest.mark.parametrize("size", [1, 2, 9, 32])
def test_the_whole_image_stays_as_it_is(size):
    image = noise(2, 3, size, size)
    assert torch.equal(stretch(image, **box(0, 0, ONE, ONE, count=2)), image)
    assert torch.equal(random_resized_crop(image, draws(2), (AREAS, AREAS, ONE, ONE)), image)


@pytest.mark.parametrize("places", [(0, 0, 16, 16), (3, 7, 20, 11), (29, 30, 3, 2), (5, 0, 2, 32), (0, 0, 32, 32)])
@pytest.mark.parametrize("antialias", [False, True])
def test_boxes_of_whole_pixels_look_like_torchvisions_within_two_levels(places, antialias):
    """Noise is the worst case: weights of 8 bits are off by at most 1/512 per axis. Enlarging needs no antialiasing.

    Between the outermost pixels of the box, that is: beyond them torchvision goes on with the box's edge, and here the
    pixels beside the box are seen.
    """
    image = noise(1, 3, 32, 32)
    here = stretch(image, **box(*(place * ONE // 32 for place in places)))
    there = F.resized_crop(image, *places, size=[32, 32], antialias=antialias)
    middle = (torch.arange(32) + 0.5) / 32
    rows, columns = (
        (middle * length - 0.5 >= (0 if start else -1)) & (middle * length - 0.5 <= length - (start + length < 32))
        for start, length in (places[0::2], places[1::2])
    )
    inside = rows.view(-1, 1) & columns
    assert inside.any()
    assert ((here.int() - there.int()).abs() * inside).max() <= 2


def test_areas_are_uniform_and_ratios_log_uniform_where_they_fit(monkeypatch):
    seen = {}
    monkeypatch.setattr("sskt.view_crops.stretch", lambda _images, **places: seen.update(places))
    count = 20_000
    low, high = round(0.1 * AREAS), round(0.4 * AREAS)
    random_resized_crop(torch.zeros(count, 1, 1, 1), draws(count), (low, high, ONE * 3 // 4, ONE * 4 // 3))
    height, width, top, left = (seen[name].view(-1).double() / ONE for name in ("height", "width", "top", "left"))
    area, ratio = height * width, (width / height).log()
    assert (area - area.mul(AREAS).round() / AREAS).abs().max() < 1e-4
    for values, edges in ((area, (0.1, 0.4)), (ratio, (-math.log(4 / 3), math.log(4 / 3)))):
        assert edges[0] - 1e-3 <= values.min() < values.max() <= edges[1] + 1e-3
        counts = values.histc(8, min=edges[0] - 1e-9, max=edges[1] + 1e-9)
        assert (counts - count / 8).abs().max() < 6 * (count / 8) ** 0.5
    assert (top + height).max() <= 1
    assert (left + width).max() <= 1
    assert abs(float((top / (1 - height)).mean()) - 0.5) < 0.02


@settings(max_examples=50, deadline=None)
@given(st.data())
def test_no_box_leaves_the_image_whatever_the_ranges(data):
    low, high = sorted(data.draw(st.lists(st.integers(10, AREAS), min_size=2, max_size=2)))
    ratios = sorted(data.draw(st.lists(st.integers(ONE // 10, 10 * ONE), min_size=2, max_size=2)))
    seen = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sskt.view_crops.stretch", lambda _images, **places: seen.update(places))
        random_resized_crop(torch.zeros(64, 1, 1, 1), draws(64), (low, high, *ratios))
    for start, length in (("top", "height"), ("left", "width")):
        assert seen[start].min() >= 0
        assert seen[length].min() >= 1
        assert (seen[start] + seen[length]).max() <= ONE
    area = seen["height"] * seen["width"] / ONE**2
    assert low / AREAS - 1e-3 <= area.min() <= area.max() <= high / AREAS + 1e-3
