"""Orders: that of a window of parts against a slow one, written from its definition."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sskt.orders import IndexStream, Share, WindowStream, part_of
from sskt.seeds import derive


def test_a_stream_gives_every_id_once_a_pass_in_changing_order():
    ids = torch.tensor([3, 5, 8, 13, 21])
    stream = IndexStream(ids, seed=1)
    taken, passes = stream.take(0, 15)
    assert passes.tolist() == [0] * 5 + [1] * 5 + [2] * 5
    rounds = [taken[at : at + 5].tolist() for at in (0, 5, 10)]
    assert all(sorted(one) == ids.tolist() for one in rounds)
    assert len({tuple(one) for one in rounds}) > 1


def test_a_stream_can_be_entered_anywhere():
    whole = IndexStream(torch.arange(7), seed=1).take(0, 100)
    for start, count in ((0, 1), (6, 2), (13, 30), (99, 1), (50, 50)):
        part = IndexStream(torch.arange(7), seed=1).take(start, count)
        assert torch.equal(part[0], whole[0][start : start + count])
        assert torch.equal(part[1], whole[1][start : start + count])


EDGES = (0, 30, 60, 95, 100, 130, 160, 190, 201)
SOME = torch.tensor([number for number in range(201) if number % 3 and not 95 <= number < 100])
"""Two thirds of all ids, none of the fourth part."""


def window_stream(ids=SOME, *, edges=EDGES, window=3, size=8, seed=1, share=None) -> WindowStream:
    return WindowStream(ids, edges=edges, window=window, size=size, seed=seed, share=share or Share())


def slow_pass(ids, edges, *, window, size, seed, number):
    """One pass from the definition, an id at a time; draws come from torch in the order that is stated."""
    parts = sorted({next(at for at, edge in enumerate(edges[1:]) if one < edge) for one in ids})
    generator = torch.Generator().manual_seed(derive(seed, f"pass {number}"))
    places = torch.randperm(len(parts), generator=generator).tolist()
    draws = torch.rand(len(ids), dtype=torch.float64, generator=generator).tolist()
    stretches, drawn = max(1, len(parts) - window + 1), []
    for one, draw in zip(ids, draws, strict=True):
        part = next(at for at, edge in enumerate(edges[1:]) if one < edge)
        place = places[parts.index(part)]
        begin, end = max(0, place - window + 1), min(place + 1, stretches)
        drawn.append((begin + draw * (end - begin), one, place))
    drawn.sort()
    batches = {}
    for at, (_, one, place) in enumerate(drawn):
        batches.setdefault((number * len(ids) + at) // size, []).append((place % window, at, one))
    return [one for batch in sorted(batches) for _, _, one in sorted(batches[batch])]


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_window_gives_what_its_definition_says(data):
    counts = data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=9))
    edges = [0, *torch.tensor(counts).cumsum(0).tolist()]
    ids = sorted(data.draw(st.sets(st.integers(0, edges[-1] - 1), min_size=1)))
    shape = {name: data.draw(st.integers(1, 11), label=name) for name in ("window", "size")}
    stream = window_stream(torch.tensor(ids), edges=edges, seed=5, **shape)
    expected = [slow_pass(ids, edges, seed=5, number=number, **shape) for number in range(3)]
    taken, passes = stream.take(0, 3 * len(ids))
    whole = [one for some in expected for one in some]
    assert taken.tolist() == whole
    assert all(sorted(one) == ids for one in expected), "each id once a pass"
    assert passes.tolist() == [number for number in range(3) for _ in ids]
    start, count = data.draw(st.integers(0, 2 * len(ids))), data.draw(st.integers(1, len(ids)))
    again = window_stream(torch.tensor(ids), edges=edges, seed=5, **shape)
    assert again.take(start, count)[0].tolist() == whole[start : start + count]


def test_a_window_of_all_parts_shuffles_like_any_permutation():
    """Mean distance of neighbours in the order is that of a permutation: a third of the length."""
    ids = torch.arange(2000)
    taken, _ = window_stream(ids, edges=range(0, 2001, 100), window=20, size=1).take(0, 2000)
    assert taken.diff().abs().float().mean().item() == pytest.approx(2000 / 3, rel=0.05)


@pytest.mark.parametrize("window", [1, 4, 16])
def test_no_stretch_of_a_pass_needs_more_parts_than_the_window_and_each_mixes_them(window):
    edges, size, rows = range(0, 4001, 100), 32, 4000
    stream = window_stream(torch.arange(rows), edges=edges, window=window, size=size)
    parts = [part_of(stream.take(step * size, size)[0], edges).unique().tolist() for step in range(rows // size)]
    first, last = {}, {}
    for step, some in enumerate(parts):
        for part in some:
            first.setdefault(part, step)
            last[part] = step
    open_at_once = [sum(first[part] <= step <= last[part] for part in first) for step in range(len(parts))]
    assert max(open_at_once) <= window + 1, "a batch may lie in two stretches"
    mixed = sorted(len(some) for some in parts)
    # 32 rows, evenly from 16 parts, are from 14 of them on average; the first and last stretches weigh parts unevenly.
    assert mixed[len(mixed) // 2] >= {1: 1, 4: 4, 16: 13}[window]
    assert mixed[0] >= {1: 1, 4: 2, 16: 8}[window]


def test_passes_differ_and_so_do_seeds():
    orders = [
        window_stream(seed=seed).take(start, len(SOME))[0].tolist() for seed in (1, 2) for start in (0, len(SOME))
    ]
    assert len({tuple(order) for order in orders}) == 4


def test_what_is_wanted_is_what_the_steps_take_and_what_comes_next():
    stream, steps = window_stream(), 60
    taken = [part_of(stream.take(step * 8, 8)[0], EDGES).unique().tolist() for step in range(steps)]
    order = list(dict.fromkeys(part for some in taken for part in some))
    for step in range(40):
        needed, coming = stream.wanted(step, ahead=2)
        assert set(taken[step]) <= set(needed)
        assert not set(needed) & set(coming)
        later = dict.fromkeys(part for some in taken[step + 1 :] for part in some if part not in needed)
        assert len(coming) == min(2, len(order) - len(needed))
        assert set(coming) <= set(later)
        assert window_stream().wanted(step, ahead=2) == (needed, coming), "whoever resumes wants the same"
    assert 3 not in order, "nothing of the fourth part is in the stream"


@pytest.mark.parametrize(("window", "world", "most"), [(16, 2, 10), (16, 4, 7), (32, 8, 8)])
def test_several_processes_read_a_few_of_the_parts_each(window, world, most):
    """Together their rows are the batch; which batch that is does not depend on them."""
    edges, size = range(0, 10001, 100), 64
    ids = torch.arange(10_000)
    alone = window_stream(ids, edges=edges, window=window, size=size)
    ranks = [
        window_stream(ids, edges=edges, window=window, size=size, share=Share(rank=rank, world=world))
        for rank in range(world)
    ]
    for step in range(40, 60):
        taken = alone.take(step * size, size)[0]
        held = []
        for rank, stream in enumerate(ranks):
            assert torch.equal(stream.take(step * size, size)[0], taken)
            needed = set(stream.wanted(step, ahead=0)[0])
            mine = taken[rank * size // world :][: size // world]
            assert set(part_of(mine, edges).tolist()) <= needed
            held.append(len(needed))
        assert sum(held) / world <= most < window


@pytest.mark.parametrize(("ids", "size", "world"), [([7], 8, 4), ([3, 199], 6, 2), ([0, 1, 2], 2, 2)])
def test_few_ids_are_given_again_and_again(ids, size, world):
    for rank in range(world):
        stream = window_stream(torch.tensor(ids), size=size, share=Share(rank=rank, world=world))
        for step in range(5):
            needed, coming = stream.wanted(step, ahead=2)
            mine = stream.take(step * size, size)[0][rank * size // world :][: size // world]
            assert set(part_of(mine, EDGES).tolist()) <= set(needed) | set(coming)
