import numpy as np
import pytest
import torch

from sskt.losses import soft_kl
from sskt.sskd_losses import error_levels, kept_kl, least_wrong, parent_cross_entropy, parents, similarities
from tests.sskt.test_losses import assert_gradient, slow_softmax


def slow_similarities(turned: np.ndarray, upright: np.ndarray) -> np.ndarray:
    """Cosines, a pair at a time."""
    matrix = np.zeros((len(turned), len(upright)))
    for i, row in enumerate(turned):
        for j, other in enumerate(upright):
            size = np.sqrt(sum(row * row)) * np.sqrt(sum(other * other))
            matrix[i, j] = sum(row * other) / size if size > 0 else 0.0
    return matrix


def slow_parent_cross_entropy(similarity: np.ndarray) -> float:
    """The turned row i shows the upright image i modulo N."""
    rows, upright = similarity.shape
    return -sum(np.log(slow_softmax(similarity[i])[i % upright]) for i in range(rows)) / rows


def slow_levels(scores: np.ndarray, truth: list[int]) -> list[int]:
    """The place of the true answer when the answers are sorted, best first."""
    places = []
    for row, true in zip(scores, truth, strict=True):
        order = sorted(range(len(row)), key=lambda answer, row=row, true=true: (-row[answer], answer != true))
        places.append(order.index(true) if true >= 0 else 0)
    return places


def slow_kept(levels: list[int], keep: float) -> list[bool]:
    """Sort the wrong rows by how wrong they are, cut the list, and add the correct ones."""
    wrong = sorted((level, row) for row, level in enumerate(levels) if level > 0)
    chosen = {row for _, row in wrong[: int(keep * len(wrong))]}
    return [level == 0 or row in chosen for row, level in enumerate(levels)]


def slow_kept_kl(logits: np.ndarray, wanted: np.ndarray, kept: list[bool], temperature: float) -> float:
    """The divergence, a class of a kept row at a time."""
    total = 0.0
    for row in [row for row, keeps in enumerate(kept) if keeps]:
        q, p = slow_softmax(logits[row] / temperature), slow_softmax(wanted[row] / temperature)
        total += sum(p_c * np.log(p_c / q_c) for q_c, p_c in zip(q, p, strict=True))
    return total / max(sum(kept), 1) * temperature**2


@pytest.mark.parametrize(("images", "width"), [(1, 3), (2, 1), (4, 5), (7, 2)])
def test_the_head_learns_by_the_cross_entropy_of_the_parent(images, width):
    generator = np.random.default_rng(images)
    turned, upright = generator.normal(size=(3 * images, width)), generator.normal(size=(images, width))
    matrix = similarities(torch.tensor(turned), torch.tensor(upright))
    assert np.allclose(matrix.numpy(), slow_similarities(turned, upright), atol=1e-12)
    assert parents(matrix).tolist() == [i % images for i in range(3 * images)]
    loss = parent_cross_entropy(matrix).item()
    assert loss == pytest.approx(slow_parent_cross_entropy(slow_similarities(turned, upright)), rel=1e-10)


def test_its_gradient_is_that_of_the_formula_for_both_sides():
    generator = np.random.default_rng(0)
    turned, upright = generator.normal(size=(9, 4)), generator.normal(size=(3, 4))
    assert_gradient(
        lambda leaf: parent_cross_entropy(similarities(leaf, torch.tensor(upright))),
        lambda at: slow_parent_cross_entropy(slow_similarities(at, upright)),
        turned,
    )
    assert_gradient(
        lambda leaf: parent_cross_entropy(similarities(torch.tensor(turned), leaf)),
        lambda at: slow_parent_cross_entropy(slow_similarities(turned, at)),
        upright,
    )


@pytest.mark.parametrize("rows", [torch.zeros(2, 4), torch.ones(2, 4), torch.eye(2, 4) * 1e30, torch.eye(2, 4) * 1e-30])
def test_zero_identical_huge_and_tiny_rows_stay_finite(rows):
    upright = rows.clone().requires_grad_()
    turned = rows.repeat(3, 1).requires_grad_()
    loss = parent_cross_entropy(similarities(turned, upright))
    loss.backward()
    alike = torch.equal(rows[0], rows[1])
    assert loss.item() == pytest.approx(np.log(2) if alike else np.log(1 + np.exp(-1)), rel=1e-5)
    assert upright.grad.isfinite().all()
    assert turned.grad.isfinite().all()


@pytest.mark.parametrize("shape", [(1, 2), (12, 4), (9, 3), (5, 1), (30, 100)])
def test_the_error_level_is_the_place_of_the_true_answer(shape):
    generator = np.random.default_rng(3)
    scores = generator.integers(0, 6, size=shape).astype(float)  # ties: the true answer comes first among its equals
    truth = generator.integers(-1, shape[1], size=shape[0])
    levels = error_levels(torch.tensor(scores), torch.tensor(truth))
    assert levels.tolist() == slow_levels(scores, truth.tolist())


def test_an_unknown_answer_is_not_wrong():
    assert error_levels(torch.tensor([[0.0, 5.0], [0.0, 5.0]]), torch.tensor([0, -1])).tolist() == [1, 0]


@pytest.mark.parametrize("keep", [0.0, 0.25, 0.5, 0.75, 1.0])
@pytest.mark.parametrize("rows", [1, 2, 7, 64])
@pytest.mark.parametrize("most", [1, 2, 50])
def test_correct_rows_and_the_least_wrong_fraction_are_kept(keep, rows, most):
    levels = np.random.default_rng(rows + most).integers(0, most + 1, size=rows)
    kept = least_wrong(torch.tensor(levels), keep=keep)
    assert kept.tolist() == slow_kept(levels.tolist(), keep)
    assert kept[torch.tensor(levels) == 0].all()


def test_nothing_is_kept_where_all_is_wrong_and_no_wrong_row_may_stay():
    assert least_wrong(torch.tensor([3, 1, 2]), keep=0.0).tolist() == [False, False, False]
    assert least_wrong(torch.tensor([3, 1, 2]), keep=0.5).tolist() == [False, True, False]


def test_the_choice_follows_the_rows_where_they_are_permuted():
    levels, order = torch.tensor([0, 7, 2, 0, 5, 1, 9, 3]), torch.tensor([5, 1, 7, 0, 3, 6, 2, 4])
    kept = least_wrong(levels, keep=0.5)
    assert kept.sum() == 5
    assert torch.equal(least_wrong(levels[order], keep=0.5), kept[order])


@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize("shape", [(1, 2), (6, 10), (3, 200), (6, 1)])
def test_the_divergence_of_kept_rows_is_the_formula(temperature, shape):
    generator = np.random.default_rng(4)
    logits, wanted = generator.normal(size=shape) * 3, generator.normal(size=shape) * 3
    kept = [row % 3 != 1 for row in range(shape[0])]
    mask = torch.tensor(kept)
    value = kept_kl(torch.tensor(logits), torch.tensor(wanted), mask, temperature=temperature)
    assert value.item() == pytest.approx(slow_kept_kl(logits, wanted, kept, temperature), rel=1e-9, abs=1e-12)


def test_its_gradient_is_that_of_the_formula_and_dropped_rows_get_none():
    generator, kept = np.random.default_rng(5), [True, False, True, True]
    logits, wanted = generator.normal(size=(4, 3)), generator.normal(size=(4, 3))
    assert_gradient(
        lambda leaf: kept_kl(leaf, torch.tensor(wanted), torch.tensor(kept), temperature=0.5),
        lambda at: slow_kept_kl(at, wanted, kept, 0.5),
        logits,
    )
    student = torch.tensor(logits, requires_grad=True)
    kept_kl(student, torch.tensor(wanted), torch.tensor(kept), temperature=0.5).backward()
    assert (student.grad[1] == 0).all()
    assert (student.grad[[0, 2, 3]] != 0).all()


def test_with_all_rows_it_is_the_soft_divergence_and_without_any_it_is_zero():
    logits, wanted = torch.randn(2, 6, 5, dtype=torch.float64) * 3
    every = kept_kl(logits, wanted, torch.ones(6, dtype=torch.bool), temperature=4.0)
    assert every.item() == pytest.approx(soft_kl(logits, wanted, temperature=4.0).item(), rel=1e-12)
    logits.requires_grad_()
    none = kept_kl(logits, wanted, torch.zeros(6, dtype=torch.bool), temperature=4.0)
    none.backward()
    assert none == 0
    assert (logits.grad == 0).all()


def test_a_perfect_copy_has_no_divergence_and_saturated_scores_stay_finite():
    scores, mask = torch.randn(6, 4) * 5, torch.ones(6, dtype=torch.bool)
    assert kept_kl(scores, scores + 2.0, mask, temperature=0.5).item() == pytest.approx(0, abs=1e-6)
    student = (torch.eye(4) * 1e4).requires_grad_()
    loss = kept_kl(student, torch.eye(4).flip(0) * 1e4, mask[:4], temperature=0.5)
    loss.backward()
    assert loss.item() == pytest.approx(1e4 / 0.5 * 0.25)
    assert student.grad.isfinite().all()
