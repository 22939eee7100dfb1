import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sskt.mixing import GROUP, cutmix, group_range, mixup, partners
from sskt.settings import ViewSettings
from sskt.views import KINDS, TURN, drawer, hash_counters, make_recipe
from tests.sskt.slow_views import slow_draw, slow_partner

RECIPE = make_recipe(ViewSettings(seed=11), image_size=9)
blocks = st.lists(st.integers(1, 200), min_size=1, max_size=4).map(lambda sizes: (0, *itertools.accumulate(sizes)))


def drawn(ids: torch.Tensor, view: int, operation: int):
    return drawer(hash_counters(RECIPE.seed, ids, torch.full_like(ids, view)), operation)


def partners_of(ids: torch.Tensor, edges: tuple[int, ...], view: int = 4 * TURN) -> torch.Tensor:
    return partners(ids, drawn(ids, view, 0), edges=edges)


def numbers(kind: str) -> int:
    return KINDS[kind][0] * TURN


@settings(max_examples=50, deadline=None)
@given(blocks, st.integers(0, 9))
def test_a_partner_is_another_one_of_the_same_group(edges, view):
    ids = torch.arange(edges[-1])
    found = partners_of(ids, edges, numbers("cutmix") + view)
    assert found.tolist() == [slow_partner(RECIPE, one, numbers("cutmix") + view, edges) for one in range(edges[-1])]
    for first, stop in itertools.pairwise(edges):
        own, other = ids[first:stop], found[first:stop]
        assert torch.equal((own - first) // GROUP, (other - first) // GROUP)
        assert ((other >= first) & (other < stop)).all()
        alone = (own == stop - 1) & ((stop - first) % GROUP == 1)
        assert torch.equal(own == other, alone)


@settings(max_examples=50, deadline=None)
@given(blocks, st.integers(1, 300))
def test_a_pool_that_grows_keeps_its_partners(edges, more):
    ids = torch.arange(edges[-1])
    assert torch.equal(partners_of(ids, edges), partners_of(ids, (*edges, edges[-1] + more)))


def test_a_partner_does_not_depend_on_the_samples_beside_it():
    edges, ids = (0, 100, 230), torch.randperm(230, generator=torch.Generator().manual_seed(0))
    whole = partners_of(ids, edges)
    for some in ids.split(17):
        assert torch.equal(partners_of(some, edges), whole[torch.isin(ids, some)])


def test_all_others_are_equally_likely_partners():
    """Chi-square with 63 degrees of freedom: above 110 once in 5000 times."""
    edges, ids = (0, 64_000 * 4), torch.arange(64_000 * 4)
    counts = ((partners_of(ids, edges) - ids) % GROUP).bincount(minlength=GROUP)
    assert counts[0] == 0
    assert chi_square(counts[1:]) < 110


def chi_square(counts: torch.Tensor) -> float:
    expected = counts.sum() / len(counts)
    return float(((counts - expected) ** 2 / expected).sum())


@settings(max_examples=100, deadline=None)
@given(blocks, st.data())
def test_the_range_of_some_samples_is_that_of_their_groups(edges, data):
    first, stop = data.draw(st.sampled_from(list(itertools.pairwise(edges))))
    begin = data.draw(st.integers(first, stop - 1))
    ids = range(begin, data.draw(st.integers(begin + 1, stop)))
    groups = {(one - first) // GROUP for one in ids}
    assert list(group_range(ids, range(first, stop))) == [
        one for one in range(first, stop) if (one - first) // GROUP in groups
    ]


def test_the_weight_is_uniform_and_the_mean_is_rounded():
    """A black and a white image show the weight: 257 of them, above 345 once in 5000 times."""
    ids = torch.arange(100_000)
    white, black = torch.full((len(ids), 1, 1, 1), 255, dtype=torch.uint8), torch.zeros(len(ids), 1, 1, 1).byte()
    draw = drawn(ids, numbers("mixup"), 1)
    weights = draw(0, 257).view(-1)
    assert chi_square(weights.bincount(minlength=257)) < 345
    shown = mixup(white, black, draw).view(-1).double()
    assert torch.equal(shown, torch.floor(weights.double() * 255 / 256 + 0.5))
    assert torch.equal(mixup(black, white, draw).view(-1), mixup(white, black, lambda *_: 256 - draw(0, 257)).view(-1))


@pytest.mark.parametrize("size", [1, 2, 9, 32])
def test_the_square_has_the_share_that_was_drawn_where_it_fits(size):
    ids, view = torch.arange(3000), numbers("cutmix")
    own, other = torch.zeros(3000, 1, size, size).byte(), torch.ones(3000, 1, size, size).byte()
    inside = cutmix(own, other, drawn(ids, view, 1)).sum(dim=(1, 2, 3))
    shares = torch.tensor([slow_draw(RECIPE, one, view, 1, 2, 257) for one in range(3000)])
    sides = torch.tensor([math.isqrt(size * size * int(share) // 256) for share in shares])
    assert (inside <= sides**2).all()
    assert (sides**2 <= size * size * shares / 256).all()
    assert ((sides + 1) ** 2 > size * size * shares / 256).all()
    if size > 2:
        fits = inside == sides**2
        assert 0.2 < fits.float().mean() < 0.9, "some are cut by the border and some are not"
        np.testing.assert_array_less(0, inside[sides == size])


def test_what_is_mixed_with_itself_stays_as_it_is():
    images = torch.randint(0, 256, (50, 3, 7, 7), dtype=torch.uint8)
    for mixture in (mixup, cutmix):
        assert torch.equal(mixture(images, images, drawn(torch.arange(50), 0, 1)), images)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("mixture", [mixup, cutmix])
def test_a_gpu_mixes_alike(mixture):
    ids, edges = torch.arange(3000), (0, 1000, 3000)
    own, other = (torch.randint(0, 256, (3000, 3, 9, 9), dtype=torch.uint8) for _ in range(2))
    assert torch.equal(partners_of(ids.cuda(), edges).cpu(), partners_of(ids, edges))
    there = mixture(own.cuda(), other.cuda(), drawn(ids.cuda(), 4 * TURN, 1))
    assert torch.equal(there.cpu(), mixture(own, other, drawn(ids, 4 * TURN, 1)))
