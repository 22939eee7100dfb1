import numpy as np
import pytest
import torch

from sskt import graphs
from sskt.graphs import nearest_neighbours


def slow_cosine(left: np.ndarray, right: np.ndarray) -> float:
    sizes = float((left @ left) ** 0.5 * (right @ right) ** 0.5)
    return float(left @ right) / sizes if sizes else 0.0


def slow_neighbours(rows: np.ndarray, count: int) -> tuple[list[list[int]], list[list[float]]]:
    """A row at a time; of equally near rows the first."""
    ids, cosines = [], []
    for own, row in enumerate(rows):
        others = [(slow_cosine(row, other), -number) for number, other in enumerate(rows) if number != own]
        best = sorted(others, reverse=True)[:count]
        ids.append([-number for _, number in best])
        cosines.append([cosine for cosine, _ in best])
    return ids, cosines


def random_rows(count: int, width: int, *, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def check(rows: torch.Tensor, count: int) -> None:
    """Against the oracle: the cosines, and, ties apart, the ids."""
    found = nearest_neighbours(rows, count)
    ids, cosines = slow_neighbours(rows.double().numpy(), count)
    assert found.ids.dtype == torch.int64
    assert found.similarity.dtype == torch.float32
    assert np.allclose(found.similarity.numpy(), cosines, atol=2e-6)
    for own, (mine, its) in enumerate(zip(found.ids.tolist(), ids, strict=True)):
        assert own not in mine
        assert len(set(mine)) == count
        for one, other, cosine in zip(mine, its, cosines[own], strict=True):
            assert one == other or slow_cosine(*rows.double().numpy()[[own, one]]) == pytest.approx(cosine, abs=2e-6)


@pytest.mark.parametrize(("count", "width", "neighbours"), [(2, 3, 1), (9, 2, 8), (30, 5, 4), (17, 1, 3)])
def test_the_neighbours_are_those_of_the_formula(count, width, neighbours):
    check(random_rows(count, width), neighbours)


@pytest.mark.parametrize("chunk", [1, 4, 7, 8, 9, 30, 31])
def test_the_borders_of_chunks_do_not_show(chunk, monkeypatch):
    rows = random_rows(31, 6)
    whole = nearest_neighbours(rows, 5)
    monkeypatch.setattr(graphs, "CHUNK", chunk)
    check(rows, 5)
    assert torch.equal(nearest_neighbours(rows, 5).ids, whole.ids)


@pytest.mark.parametrize("chunk", [2, 1024])
def test_copies_are_each_others_neighbours_and_never_their_own(chunk, monkeypatch):
    monkeypatch.setattr(graphs, "CHUNK", chunk)
    rows = random_rows(3, 8).repeat(3, 1)
    check(rows, 4)
    found = nearest_neighbours(rows, 2)
    copies = [{(own + step) % 9 for step in (3, 6)} for own in range(9)]
    assert [set(ids) for ids in found.ids.tolist()] == copies
    assert torch.allclose(found.similarity, torch.ones(9, 2))


def test_of_identical_rows_a_row_is_none_of_its_own_neighbours():
    check(torch.ones(6, 3), 5)


def test_equally_near_rows_have_the_same_similarity():
    square = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0], [0.0, -1.0]])
    check(square, 2)
    assert nearest_neighbours(square, 3).similarity.tolist() == [[0, 0, -1]] * 4


def test_a_zero_row_is_near_to_none():
    rows = random_rows(8, 4)
    rows[[2, 5]] = 0
    check(rows, 7)
    found = nearest_neighbours(rows, 7)
    assert found.similarity[[2, 5]].abs().max() == 0
    assert not nearest_neighbours(torch.zeros(4, 3), 2).similarity.any()


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_the_length_of_a_row_does_not_matter(scale):
    rows = random_rows(12, 4)
    moved = rows.clone()
    moved[::2] *= scale
    mine, its = nearest_neighbours(rows, 3), nearest_neighbours(moved, 3)
    assert torch.equal(mine.ids, its.ids)
    assert torch.allclose(mine.similarity, its.similarity, atol=1e-6)


def test_the_neighbours_move_with_the_rows():
    rows, order = random_rows(20, 6), torch.randperm(20, generator=torch.Generator().manual_seed(1))
    mine, its = nearest_neighbours(rows, 4), nearest_neighbours(rows[order], 4)
    assert torch.equal(order[its.ids], mine.ids[order])
