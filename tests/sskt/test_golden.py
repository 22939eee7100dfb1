import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sskt.errors import DamagedError
from sskt.gallery import Gallery
from sskt.golden import check_pixels, golden_samples, pixel_hashes
from sskt.settings import ViewSettings
from sskt.views import KINDS, TURN, make_recipe, turned

IMAGES = (torch.arange(10 * 3 * 6 * 6) * 37 % 251).to(torch.uint8).view(10, 3, 6, 6)
RECIPE = make_recipe(ViewSettings(ops=({"pad_crop": 2}, "hflip", "rand_augment"), seed=2), image_size=6)
GALLERY = Gallery(RECIPE, IMAGES, (0, 10))


def golden(ids: torch.Tensor, views: torch.Tensor, kind: str = "") -> dict[str, str]:
    hashes = pixel_hashes(GALLERY, ids=ids, views=views, kind=kind)
    return {f"{sample}/{view}": seen for sample, view, seen in zip(ids.tolist(), views.tolist(), hashes, strict=True)}


@given(st.integers(1, 2000), st.integers(1, 40), st.integers(1, 80))
def test_pairs_are_distinct_and_as_many_as_there_are(rows, views, count):
    ids, places = golden_samples(rows, views, count)
    pairs = set(zip(ids.tolist(), places.tolist(), strict=True))
    assert len(pairs) == len(ids) == min(count, rows * views)
    assert all(0 <= sample < rows and 0 <= view < views for sample, view in pairs)


def test_pairs_are_the_same_every_time_and_spread_over_rows_and_views():
    ids, views = golden_samples(1_281_167, 400)
    again = golden_samples(1_281_167, 400)
    assert torch.equal(ids, again[0])
    assert torch.equal(views, again[1])
    assert (ids.diff() < 3 * 1_281_167 / 64).all()
    assert len(set(views.tolist())) > 40


def test_a_hash_is_of_the_pixels_and_the_shape_and_of_no_batch():
    ids, views = torch.arange(10), turned(torch.arange(10) % 4, torch.arange(10) % 2)
    whole = pixel_hashes(GALLERY, ids=ids, views=views, kind="turned")
    assert all(len(seen) == 16 and int(seen, 16) >= 0 for seen in whole)
    assert len(set(whole)) == 10
    for row in range(10):
        alone = slice(row, row + 1)
        assert pixel_hashes(GALLERY, ids=ids[alone], views=views[alone], kind="turned") == (whole[row],)
    plain = make_recipe(ViewSettings(), image_size=2)
    zero = torch.zeros(1, dtype=torch.int64)
    shapes = [torch.zeros(1, 4, 2, 2, dtype=torch.uint8), torch.zeros(1, 1, 4, 4, dtype=torch.uint8)]
    assert len({pixel_hashes(Gallery(plain, image, (0, 1)), ids=zero, views=zero) for image in shapes}) == 2


def test_the_same_pixels_pass():
    known = {}
    for kind, numbers in KINDS.items():
        ids, views = golden_samples(10, 4)
        known |= golden(ids, views + numbers[-1] * TURN, kind)
    assert len(known) == 4 * 40
    check_pixels(GALLERY, known)
    check_pixels(GALLERY, {})


def test_one_other_pixel_names_sample_and_view():
    images, ids = IMAGES.clone(), torch.tensor([3, 7])
    known = golden(ids, torch.tensor([0, 2]))
    images[7] ^= 255
    with pytest.raises(DamagedError, match="view 2 of sample 7 is not what the sources saw"):
        check_pixels(Gallery(RECIPE, images, (0, 10)), known)


@pytest.mark.parametrize("kind", ["mixup", "cutmix"])
def test_a_mixed_view_is_of_two_samples_and_of_its_block(kind):
    ids = torch.arange(10)
    known = golden(ids, torch.full_like(ids, KINDS[kind][0] * TURN), kind)
    with pytest.raises(DamagedError, match="is not what the sources saw"):
        check_pixels(Gallery(RECIPE, IMAGES, (0, 5, 10)), known)
    for sample in range(10):
        images = IMAGES.clone()
        images[sample] ^= 255
        with pytest.raises(DamagedError, match=f"view {KINDS[kind][0] * TURN} of sample . is not what"):
            check_pixels(Gallery(RECIPE, images, (0, 10)), known)


def test_another_recipe_is_found_out():
    other = make_recipe(ViewSettings(ops=({"pad_crop": 2}, "hflip", "rand_augment"), seed=3), image_size=6)
    with pytest.raises(DamagedError, match="its labels do not fit it"):
        check_pixels(Gallery(other, IMAGES, (0, 10)), golden(*golden_samples(10, 4)))
