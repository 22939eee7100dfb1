import hashlib
import re
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from pipeline.planning.validation import validate
from sskt.errors import InputError
from sskt.mixing import MIXTURES
from sskt.settings import ViewSettings
from sskt.view_operations import OPERATIONS
from sskt.views import Operation, Recipe, make_recipe
from tests.sskt.slow_views import slow_view

EACH = {
    "pad_crop": {"pad_crop": 2},
    "hflip": "hflip",
    "rot90": "rot90",
    "cutout": {"cutout": 3},
    "random_resized_crop": {"random_resized_crop": {"scale": [0.2, 1], "ratio": [0.5, 2]}},
    "brightness": {"brightness": 0.4},
    "contrast": {"contrast": 1},
    "saturation": {"saturation": 0.7},
    "sharpness": {"sharpness": 0.9},
    "grayscale": {"grayscale": 0.5},
    "invert": {"invert": 0.5},
    "autocontrast": {"autocontrast": 0.7},
    "equalize": {"equalize": 0.7},
    "solarize": {"solarize": {"threshold": 100, "probability": 0.9}},
    "posterize": {"posterize": {"bits": 3}},
    "rand_augment": {"rand_augment": {"number": 2, "magnitude": 14}},
}
"""Every operation, as a person writes it."""

SIZE = dict.fromkeys(EACH, 9) | {"equalize": 20}
"""Images of fewer than 256 pixels have too few to equalize."""


def recipe_of(*ops, seed=5, size=9) -> Recipe:
    return make_recipe(ViewSettings(ops=ops, seed=seed), image_size=size)


def images_of(count: int, *, channels: int = 3, size: int = 9, low: int = 30, high: int = 220) -> torch.Tensor:
    """Noise within low..high, so that contrasts can be spread."""
    shape = (count, channels, size, size)
    return torch.from_numpy(np.random.default_rng(1).integers(low, high + 1, shape, dtype=np.uint8))


def shown(recipe: Recipe, images: torch.Tensor) -> torch.Tensor:
    ids = torch.arange(len(images))
    return recipe.apply(images, ids=ids + 70, views=ids % 3)


def assert_as_defined(recipe: Recipe, images: torch.Tensor) -> None:
    fast = shown(recipe, images)
    assert (fast.dtype, fast.shape) == (torch.uint8, images.shape)
    for row, image in enumerate(images.numpy()):
        np.testing.assert_array_equal(fast[row].numpy(), slow_view(recipe, image, row + 70, row % 3), err_msg=str(row))


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize("channels", [1, 3])
def test_every_pixel_is_as_defined(name, channels):
    size = SIZE[name]
    assert_as_defined(recipe_of(EACH[name], size=size), images_of(24, channels=channels, size=size))


@pytest.mark.parametrize("name", OPERATIONS)
@pytest.mark.parametrize(("channels", "size"), [(3, 4), (2, 5)])
def test_every_pixel_is_as_defined_in_black_in_white_and_in_one_colour(name, channels, size):
    recipe = recipe_of(EACH[name], size=size)
    for value in (0, 77, 255):
        assert_as_defined(recipe, torch.full((6, channels, size, size), value, dtype=torch.uint8))
    halves = torch.zeros(6, channels, size, size, dtype=torch.uint8)
    halves[:, :, size // 2 :] = 255
    assert_as_defined(recipe, halves)


@pytest.mark.parametrize("name", [name for name in OPERATIONS if name not in ("pad_crop", "cutout")])
@pytest.mark.parametrize("size", [1, 2, 3])
def test_tiny_images_are_no_exception(name, size):
    assert_as_defined(recipe_of(EACH[name], size=size), images_of(12, size=size))


@pytest.mark.parametrize(
    "ops",
    [
        ("random_resized_crop", "hflip", {"brightness": 0.4}, {"contrast": 0.4}, {"saturation": 0.4}),
        ({"pad_crop": 2}, "hflip", "rand_augment", {"cutout": 3}, "rot90", "solarize"),
        ({"autocontrast": 0.5}, {"pad_crop": 1}, "random_resized_crop"),
    ],
)
def test_operations_go_one_after_the_other(ops):
    assert_as_defined(recipe_of(*ops), images_of(20))


@settings(max_examples=30, deadline=None)
@given(st.data())
def test_a_view_depends_on_nothing_but_seed_sample_and_view(data):
    names = data.draw(st.lists(st.sampled_from(sorted(OPERATIONS)), min_size=1, max_size=3))
    recipe = recipe_of(*(EACH[name] for name in names), seed=data.draw(st.integers(0, 2**63 - 1)))
    images, ids, views = images_of(16), torch.arange(16) * 7, torch.arange(16) % 4
    whole = recipe.apply(images, ids=ids, views=views)
    order = torch.tensor(data.draw(st.permutations(range(16))))
    cut = data.draw(st.integers(0, 16))
    for part in (order[:cut], order[cut:]):
        assert torch.equal(recipe.apply(images[part], ids=ids[part], views=views[part]), whole[part])


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_changes_something_by_sample_by_view_and_by_seed(name):
    images, ids, zeros = images_of(1, size=SIZE[name]), torch.arange(48), torch.zeros(48, dtype=torch.int64)
    images = images.expand(48, -1, -1, -1)
    recipe = recipe_of(EACH[name])
    by_sample, by_view = recipe.apply(images, ids=ids, views=zeros), recipe.apply(images, ids=zeros, views=ids)
    by_seed = recipe_of(EACH[name], seed=6).apply(images, ids=ids, views=zeros)
    for views in (by_sample, by_view):
        assert (views != images).flatten(1).any(dim=1).sum() >= 10
        assert len({view.numpy().tobytes() for view in views}) >= 2
    assert (by_sample != by_seed).any()


@pytest.mark.parametrize("name", OPERATIONS)
def test_the_images_themselves_are_left_alone(name):
    images = images_of(12)
    before = images.clone()
    shown(recipe_of(EACH[name]), images)
    assert torch.equal(images, before)


@pytest.mark.parametrize("name", OPERATIONS)
def test_no_batch_is_an_empty_one(name):
    assert shown(recipe_of(EACH[name]), images_of(0)).shape == (0, 3, 9, 9)


class Integers(TorchDispatchMode):
    """Refuses every operation whose result is not of integers or booleans."""

    def __torch_dispatch__(self, func, _types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for result in out if isinstance(out, list | tuple) else [out]:
            assert not isinstance(result, torch.Tensor) or not result.is_floating_point(), func
        return out


def test_the_watch_for_floats_sees_one():
    with Integers(), pytest.raises(AssertionError):
        torch.arange(3) / 2


@pytest.mark.parametrize("name", OPERATIONS)
def test_all_arithmetic_is_on_integers(name):
    images = images_of(12)
    with Integers():
        shown(recipe_of(EACH[name]), images)


GOLDEN_PIXELS = {
    "pad_crop": "94a13f5c0e826ac3",
    "hflip": "1763646a62261f93",
    "rot90": "aa840211d6d67b4d",
    "cutout": "a48b6554f58612b9",
    "random_resized_crop": "2a1ab2b5da27786e",
    "brightness": "6345063b79b31271",
    "contrast": "3c5c792fdb0d64b2",
    "saturation": "a3d57c5f26911214",
    "sharpness": "ceb779508bbf0f62",
    "grayscale": "d6689a65ba428667",
    "invert": "c7623aa9a45fc8bf",
    "autocontrast": "76cc875fa69df009",
    "equalize": "1d123ecf167dd028",
    "solarize": "d0ba9ad3fcd3f9ec",
    "posterize": "05422836a44b4ac9",
    "rand_augment": "8baea7ee6072fe13",
}
"""By operation: the first 16 hex digits of the SHA-256 of 24 views. Whoever changes one raises RECIPE_VERSION."""


def golden_images() -> torch.Tensor:
    """24 images of 3x20x20 without a generator that a library could change."""
    values = [zlib.crc32(number.to_bytes(4, "big")) >> 24 for number in range(24 * 3 * 20 * 20)]
    return torch.tensor(values, dtype=torch.uint8).view(24, 3, 20, 20) // 2 + 40


@pytest.mark.parametrize("name", OPERATIONS)
def test_pixels_are_those_of_the_first_release(name):
    views = shown(recipe_of(EACH[name], size=20), golden_images())
    assert hashlib.sha256(views.numpy().tobytes()).hexdigest()[:16] == GOLDEN_PIXELS[name]


def test_a_probability_counts_whole_parts_of_65536():
    images = images_of(1)
    for drawn, changed in ((16383, True), (16384, False)):
        shown = OPERATIONS["invert"].change(images, lambda _number, _bound, drawn=drawn: torch.tensor(drawn), (16384,))
        assert torch.equal(shown, images ^ 255 if changed else images)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here")
def test_a_gpu_shows_the_same_bytes():
    images, ids = images_of(48, size=32), torch.arange(48)
    for name in OPERATIONS:
        recipe = recipe_of(EACH[name], size=32)
        there = recipe.apply(images.cuda(), ids=ids.cuda(), views=ids.cuda() % 3)
        assert torch.equal(there.cpu(), recipe.apply(images, ids=ids, views=ids % 3)), name


def test_the_page_on_views_describes_every_operation_and_mixture():
    page = (Path(__file__).parents[2] / "docs" / "views.md").read_text()
    assert set(re.findall(r"^\| `(\w+)", page, re.M)) == {*OPERATIONS, *MIXTURES}


def test_what_is_written_is_kept_in_whole_numbers():
    recipe = recipe_of(
        "hflip", {"pad_crop": 2}, "random_resized_crop", {"random_resized_crop": {"scale": [0.5, 1]}},
        {"brightness": 0.4}, {"grayscale": 1}, "solarize", {"posterize": {"probability": 0.25}}, "rand_augment",
    )  # fmt: skip
    ratio = (49152, 87381)
    assert recipe.operations == (
        Operation("hflip"), Operation("pad_crop", (2,)), Operation("random_resized_crop", (82, 1024, *ratio)),
        Operation("random_resized_crop", (512, 1024, *ratio)), Operation("brightness", (102,)),
        Operation("grayscale", (65536,)), Operation("solarize", (128, 32768)), Operation("posterize", (4, 16384)),
        Operation("rand_augment", (2, 9)),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("op", "says"),
    [
        ("random_resize", "views.ops: operation 'random_resize' is unknown; did you mean 'random_resized_crop'?"),
        ("brightness", "views.ops: brightness takes amount; write `brightness: amount`"),
        ({"brightness": None}, "views.ops: brightness takes amount; write `brightness: amount`"),
        ({"brightness": "much"}, "views.ops: brightness is 'much'; it has to be a number from 0.01 to 1"),
        ({"brightness": True}, "views.ops: brightness is True; it has to be a number from 0.01 to 1"),
        ({"brightness": 1.2}, "views.ops: brightness is 1.2; it has to be a number from 0.01 to 1"),
        ({"brightness": float("nan")}, "views.ops: brightness is nan; it has to be a number from 0.01 to 1"),
        ({"contrast": {"amount": 0.3}}, "views.ops: contrast is {'amount': 0.3}; it has to be a number from 0.01 to 1"),
        ({"contrast": [0.3]}, "views.ops: contrast is [0.3]; it has to be a number from 0.01 to 1"),
        ({"grayscale": 0}, "views.ops: grayscale is 0; it has to be a number from 0.01 to 1"),
        ({"pad_crop": 2.5}, "views.ops: pad_crop is 2.5; it has to be a whole number, at least 1"),
        ({"rand_augment": 9}, "views.ops: rand_augment is 9; write `rand_augment: {number: ..., magnitude: ...}`"),
        (
            {"rand_augment": {"level": 9}},
            "views.ops: rand_augment: parameter 'level' is unknown; known: magnitude, num",
        ),
        (
            {"rand_augment": {"magnitude": 31}},
            "rand_augment.magnitude is 31; it has to be a whole number, from 0 to 30",
        ),
        ({"rand_augment": {"number": None}}, "rand_augment.number is None; it has to be a whole number, at least 1"),
        ({"posterize": {"bits": 8}}, "views.ops: posterize.bits is 8; it has to be a whole number, from 1 to 7"),
        (
            {"random_resized_crop": {"scale": 0.08}},
            "random_resized_crop.scale is 0.08; it has to be two numbers from 0.01 to 1, the smaller first",
        ),
        ({"random_resized_crop": {"scale": [1, 0.1]}}, "it has to be two numbers from 0.01 to 1, the smaller first"),
        ({"random_resized_crop": {"scale": [0.1, 0.2, 1]}}, "it has to be two numbers from 0.01 to 1"),
        ({"random_resized_crop": {"ratio": [0, 1]}}, "it has to be two numbers from 0.1 to 10, the smaller first"),
        ({"random_resized_crop": {"ratio": ["a", "b"]}}, "it has to be two numbers from 0.1 to 10"),
    ],
)
def test_what_is_wrong_is_refused_in_one_line(op, says):
    with pytest.raises(InputError) as caught:
        recipe_of(op)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("op", list(EACH.values()), ids=list(EACH))
def test_settings_from_a_file_reach_the_recipe(op):
    settings = validate(ViewSettings, {"ops": [op], "seed": 5})
    assert make_recipe(settings, image_size=9) == recipe_of(op)
