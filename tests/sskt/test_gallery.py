import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sskt.gallery import Gallery
from sskt.settings import ViewSettings
from sskt.views import KINDS, TURN, make_recipe, turned
from tests.sskt.slow_views import slow_mixed, slow_view
from tests.sskt.test_view_operations import Integers

ROWS, SIZE, EDGES = 150, 7, (0, 70, 135, 136)
RECIPE = make_recipe(ViewSettings(ops=({"pad_crop": 2}, "hflip", {"invert": 0.5}), seed=11), image_size=SIZE)
IMAGES = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (ROWS, 3, SIZE, SIZE), dtype=np.uint8))
GALLERY = Gallery(RECIPE, IMAGES, EDGES)


def views_of(kind: str, ids: torch.Tensor) -> torch.Tensor:
    """Some views of a kind, several of every sample's."""
    wanted = KINDS[kind]
    return ids % 5 + torch.tensor(wanted)[ids % len(wanted)] * TURN


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_mixed_views_are_those_of_the_definition(kind):
    ids = torch.arange(EDGES[-1])
    views = views_of(kind, ids)
    shown = GALLERY.show(ids, views=views, kind=kind).numpy()
    assert shown.dtype == np.uint8
    for row in range(len(ids)):
        expected = slow_mixed(RECIPE, IMAGES.numpy(), row, int(views[row]), EDGES)
        np.testing.assert_array_equal(shown[row], expected, err_msg=f"sample {row}")
    upright = GALLERY.show(ids, views=views % TURN)
    assert (shown != upright.numpy()).any(axis=(1, 2, 3)).mean() > 0.9
    assert torch.equal(torch.from_numpy(shown[-1]), upright[-1]), "alone in its block"


@pytest.mark.parametrize("kind", KINDS)
def test_all_arithmetic_is_on_integers(kind):
    ids = torch.arange(20)
    with Integers():
        GALLERY.show(ids, views=views_of(kind, ids), kind=kind)


def test_upright_and_turned_views_are_those_of_the_recipe():
    ids = torch.arange(ROWS)
    expected = [slow_view(RECIPE, IMAGES[row].numpy(), row, row % 5) for row in range(ROWS)]
    np.testing.assert_array_equal(GALLERY.show(ids, views=ids % 5).numpy(), expected)
    views = turned(ids % 5, ids % 3 + 1)
    expected = [
        np.rot90(slow_view(RECIPE, IMAGES[row].numpy(), row, int(views[row])), row % 3 + 1, axes=(1, 2))
        for row in range(ROWS)
    ]
    np.testing.assert_array_equal(GALLERY.show(ids, views=views, kind="turned").numpy(), expected)


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_a_view_does_not_depend_on_those_beside_it(data):
    kind = data.draw(st.sampled_from(list(KINDS)))
    ids = torch.arange(EDGES[-1])
    whole = GALLERY.show(ids, views=views_of(kind, ids), kind=kind)
    some = torch.tensor(data.draw(st.lists(st.integers(0, EDGES[-1] - 1), min_size=1, max_size=30)))
    assert torch.equal(GALLERY.show(some, views=views_of(kind, some), kind=kind), whole[some])


@pytest.mark.parametrize("kind", KINDS)
def test_a_part_of_the_samples_and_a_pool_that_grew_show_the_same(kind):
    ids = torch.arange(70, 135)
    views = views_of(kind, ids)
    whole = GALLERY.show(ids, views=views, kind=kind)
    part = Gallery(RECIPE, IMAGES[70:140], EDGES, first=70)
    assert torch.equal(part.show(ids, views=views, kind=kind), whole)
    for edges in ((0, 70, 135), (0, 70, 135, 136, ROWS)):
        assert torch.equal(Gallery(RECIPE, IMAGES, edges).show(ids, views=views, kind=kind), whole)


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_views_and_kinds_and_seeds_are_mixed_differently(kind):
    ids = torch.arange(64)
    plain = Gallery(make_recipe(ViewSettings(), image_size=SIZE), IMAGES, EDGES)
    other = Gallery(make_recipe(ViewSettings(seed=1), image_size=SIZE), IMAGES, EDGES)
    number = torch.full_like(ids, KINDS[kind][0] * TURN)
    shown = plain.show(ids, views=number, kind=kind)
    for different in (plain.show(ids, views=number + 1, kind=kind), other.show(ids, views=number, kind=kind)):
        assert (different != shown).flatten(1).any(dim=1).float().mean() > 0.9
