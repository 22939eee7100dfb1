import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sskt.errors import InputError
from sskt.settings import ViewSettings
from sskt.views import bounded, hash_counters, make_recipe, turn, turned, view_of_pass
from tests.sskt.slow_views import MASK, slow_hash, slow_view

ALL_OPS = ({"pad_crop": 2}, "hflip", "rot90", {"cutout": 3})


def random_images(count: int, *, channels: int = 3, size: int = 9) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(0).integers(1, 256, (count, channels, size, size), dtype=np.uint8))


@given(st.integers(0, 2**63 - 1), st.integers(0, 2**63 - 1), st.integers(0, 2**40), st.integers(0, 20))
def test_hash_is_the_definition_in_unbounded_integers(seed, sample, view, operation):
    hashed = hash_counters(seed, torch.tensor([sample]), torch.tensor([view]), operation)
    assert int(hashed[0]) & MASK == slow_hash(seed, sample, view, operation)


@pytest.mark.parametrize(
    "ops", [ALL_OPS, ALL_OPS[::-1], *[(op,) for op in ALL_OPS], ("rot90", {"pad_crop": 3}, "rot90", "hflip")]
)
def test_views_equal_the_operations_applied_one_by_one(ops):
    recipe = make_recipe(ViewSettings(ops=ops, count=5, seed=11), image_size=9)
    images = random_images(40)
    ids, views = torch.arange(1000, 1040), torch.arange(40) % 5
    fast = recipe.apply(images, ids=ids, views=views).numpy()
    for row in range(40):
        np.testing.assert_array_equal(fast[row], slow_view(recipe, images[row].numpy(), 1000 + row, row % 5))


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_a_view_depends_on_nothing_but_sample_and_view(data):
    recipe = make_recipe(ViewSettings(ops=ALL_OPS, count=4, seed=3), image_size=9)
    images, ids, views = random_images(24), torch.arange(24) * 7, torch.arange(24) % 4
    whole = recipe.apply(images, ids=ids, views=views)
    order = torch.tensor(data.draw(st.permutations(range(24))))
    cut = data.draw(st.integers(1, 23))
    for part in (order[:cut], order[cut:]):
        assert torch.equal(recipe.apply(images[part], ids=ids[part], views=views[part]), whole[part])


def test_another_seed_sample_or_view_shows_other_pixels():
    images = random_images(1).expand(64, -1, -1, -1)
    here = make_recipe(ViewSettings(ops=ALL_OPS, seed=0), image_size=9)
    there = make_recipe(ViewSettings(ops=ALL_OPS, seed=1), image_size=9)
    ids, zeros = torch.arange(64), torch.zeros(64, dtype=torch.int64)
    by_sample = here.apply(images, ids=ids, views=zeros)
    by_view = here.apply(images, ids=zeros, views=ids)
    by_seed = there.apply(images, ids=ids, views=zeros)
    assert len({view.numpy().tobytes() for view in by_sample}) > 50
    assert len({view.numpy().tobytes() for view in by_view}) > 50
    assert (by_sample != by_seed).flatten(1).any(dim=1).sum() > 50


def test_draws_are_uniform():
    ids = torch.arange(200_000)
    for bound in (2, 5, 9):
        counts = bounded(hash_counters(0, ids, 0, 0), bound).bincount(minlength=bound)
        assert counts.sum() == 200_000
        assert (counts - 200_000 / bound).abs().max() < 5 * (200_000 / bound) ** 0.5


def test_every_view_is_seen_equally_often_and_trials_differ():
    ids = torch.arange(50).repeat_interleave(12)
    passes = torch.arange(12).repeat(50)
    views = view_of_pass(ids, passes, count=4, seed=1).view(50, 12)
    for row in views:
        assert row.bincount(minlength=4).tolist() == [3, 3, 3, 3]
    assert (views[:, :4] == views[:, 4:8]).all()
    assert not torch.equal(views, view_of_pass(ids, passes, count=4, seed=2).view(50, 12))
    assert len({tuple(row.tolist()) for row in views[:, :4]}) > 10


def test_no_operations_show_the_images_themselves():
    images = random_images(3)
    recipe = make_recipe(ViewSettings(), image_size=9)
    assert torch.equal(recipe.apply(images, ids=torch.arange(3), views=torch.zeros(3, dtype=torch.int64)), images)


def test_a_recipe_says_what_changes_its_pixels_as_it_always_has():
    """Fingerprints of caches hold this: a change of form would make every cache anew."""
    recipe = make_recipe(ViewSettings(ops=(*ALL_OPS, "rand_augment"), seed=3), image_size=9)
    operations = [["pad_crop", 2], ["hflip", 0], ["rot90", 0], ["cutout", 3], ["rand_augment", 2, 9]]
    assert recipe.identity() == {"version": 1, "operations": operations, "seed": 3}


@pytest.mark.parametrize(
    ("ops", "says"),
    [
        (("padcrop",), "views.ops: operation 'padcrop' is unknown; did you mean 'pad_crop'?"),
        (("pad_crop",), "write `pad_crop: pixels`"),
        (({"hflip": 1},), "hflip takes no value; write `hflip`"),
        (({"cutout": 0},), "cutout is 0; it has to be a whole number, at least 1"),
        (({"pad_crop": 9},), "pad_crop of 9 pixels on images of 9; it has to be below 9"),
        (({"pad_crop": 1, "cutout": 2},), "write each as an entry of its own"),
        (({},), "is unknown"),
    ],
)
def test_wrong_operations_are_refused(ops, says):
    with pytest.raises(InputError, match=r"views\.ops") as caught:
        make_recipe(ViewSettings(ops=ops), image_size=9)
    assert says in str(caught.value)


@pytest.mark.parametrize("quarters", [0, 1, 2, 3])
def test_a_turned_view_is_drawn_anew_and_then_turned(quarters):
    recipe = make_recipe(ViewSettings(ops=({"pad_crop": 2}, "hflip"), seed=3), image_size=6)
    images = torch.randint(0, 256, (5, 2, 6, 6), dtype=torch.uint8)
    ids, views = torch.arange(5), turned(torch.arange(5) % 3, quarters)
    expected = torch.rot90(recipe.apply(images, ids=ids, views=views), quarters, dims=(2, 3))
    assert torch.equal(recipe.apply_turned(images, ids=ids, views=views), expected)


def test_each_image_is_turned_by_its_own_quarters():
    images = torch.randint(0, 256, (8, 1, 5, 5), dtype=torch.uint8)
    quarters = torch.tensor([3, 0, 1, 2, 2, 0, 3, 1])
    expected = torch.stack(
        [torch.rot90(image, int(by), dims=(1, 2)) for image, by in zip(images, quarters, strict=True)]
    )
    assert torch.equal(turn(images, quarters), expected)


def test_only_squares_can_be_turned():
    with pytest.raises(InputError, match="images are 4 by 6; only square ones can be turned"):
        turn(torch.zeros(1, 1, 4, 6, dtype=torch.uint8), torch.tensor([1]))
