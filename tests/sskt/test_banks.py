import pytest
import torch

from sskt import banks
from sskt.banks import draw, make_bank, same_class
from sskt.feeds import Pool
from tests.sskt.learning import POOL, feed, source, training

CPU = torch.device("cpu")


def pool():
    return feed(training(), sources=[source()]).pool()


def test_a_bank_as_large_as_the_pool_is_the_whole_pool_whatever_the_seed():
    for size, seed in ((POOL, 0), (10**6, 1)):
        assert make_bank(pool(), ["wise"], size=size, seed=seed).ids.tolist() == list(range(POOL))


def test_a_smaller_bank_is_a_sample_that_the_seed_decides():
    first, again, other = (make_bank(pool(), ["wise"], size=9, seed=seed).ids.tolist() for seed in (0, 0, 1))
    assert first == again != other
    assert first == sorted(set(first))
    assert len(first) == 9
    assert set(first) < set(range(POOL))


@pytest.mark.parametrize("chunk", [4, 9, 256])
def test_the_rows_are_unit_embeddings_of_first_views(monkeypatch, chunk):
    monkeypatch.setattr(banks, "CHUNK", chunk)
    bank = make_bank(pool(), ["wise"], size=9, seed=2)
    wanted = pool().ask("wise", bank.ids, view=0)["embedding"]
    assert torch.allclose(bank.rows["wise"], wanted / wanted.norm(dim=1, keepdim=True), atol=1e-6)
    assert torch.allclose(bank.rows["wise"].norm(dim=1), torch.ones(9))


def test_a_source_is_asked_of_few_images_at_a_time(monkeypatch):
    monkeypatch.setattr(banks, "CHUNK", 16)
    asked = []

    def ask(name, ids, **_):
        asked.append((name, len(ids)))
        return {"embedding": torch.ones(len(ids), 3)}

    bank = make_bank(Pool(torch.zeros(POOL), ask), ["a", "b"], size=POOL, seed=0)
    assert asked == [("a", 16), ("a", 16), ("a", 4), ("b", 16), ("b", 16), ("b", 4)]
    assert {name: rows.shape for name, rows in bank.rows.items()} == {"a": (POOL, 3), "b": (POOL, 3)}


def test_a_draw_is_a_function_of_the_step():
    first, again, other = (draw(50, among=1000, step=step, device=CPU).tolist() for step in (3, 3, 4))
    assert first == again != other
    assert draw(20, among=1000, step=3, device=CPU).tolist() == first[:20]


def test_every_row_is_drawn_as_often_as_another():
    rows = torch.cat([draw(100, among=7, step=step, device=CPU) for step in range(200)])
    counts = rows.bincount(minlength=8)
    assert counts[7] == 0
    # 20000 / 7 on average, with a standard deviation of about 50.
    assert (counts[:7] - 20000 / 7).abs().max() < 250


def test_a_class_in_common_has_to_be_known():
    left, right = torch.tensor([0, 1, -1]), torch.tensor([1, 0, -1, 0])
    assert same_class(left, right).int().tolist() == [[0, 1, 0, 1], [1, 0, 0, 0], [0, 0, 0, 0]]


def test_one_of_several_classes_in_common_is_enough():
    left = torch.tensor([[1, 1, 0], [0, 0, 0], [-1, -1, -1], [0, -1, 1]], dtype=torch.int8)
    right = torch.tensor([[0, 1, 1], [1, 0, 0], [-1, -1, -1]], dtype=torch.int8)
    assert same_class(left, right).int().tolist() == [[1, 1, 0], [0, 0, 0], [0, 0, 0], [1, 0, 0]]
