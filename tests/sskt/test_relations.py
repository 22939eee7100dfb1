"""The relation losses against the papers' formulas, a pair or a triple at a time in NumPy float64."""

import itertools
import math

import numpy as np
import pytest
import torch

from sskt.errors import InputError, UnknownNameError
from sskt.relations import KERNELS, PRESETS, Relation, other_rows

SHAPES = [(3, 4, 4), (5, 3, 7), (6, 8, 2), (4, 1, 3)]


def slow_huber(a, b):
    gap = abs(a - b)
    return gap**2 / 2 if gap <= 1 else gap - 0.5


def slow_cosine(a, b):
    return float(a @ b / (math.sqrt(a @ a) * math.sqrt(b @ b)))


def slow_distances(x):
    """Park 2019, equation 6: distances over their mean over pairs of distinct rows."""
    pairs = list(itertools.permutations(range(len(x)), 2))
    distance = {(i, j): math.sqrt(sum((x[i] - x[j]) ** 2)) for i, j in pairs}
    mean = sum(distance.values()) / len(pairs)
    return {pair: value / mean for pair, value in distance.items()}


def slow_angles(x):
    """Park 2019, equation 8: <e_ij, e_kj> of distinct i, j, k."""
    triples = itertools.permutations(range(len(x)), 3)
    return {(i, j, k): slow_cosine(x[i] - x[j], x[k] - x[j]) for i, j, k in triples}


def slow_rkd(s, t):
    rows, total = len(s), 0.0
    for weight, potential, size in ((25, slow_distances, rows**2), (50, slow_angles, rows**3)):
        mine, its = potential(s), potential(t)
        total += weight * sum(slow_huber(mine[key], its[key]) for key in mine) / size
    return total


def slow_sp(s, t):
    def gram(x):
        g = np.array([[sum(a * b for a, b in zip(left, right, strict=True)) for right in x] for left in x])
        return np.array([row / math.sqrt(sum(row**2)) for row in g])

    return float(np.sum((gram(t) - gram(s)) ** 2)) / len(s) ** 2


def slow_pkt(s, t):
    def shares(x):
        kernel = [[(slow_cosine(a, b) + 1) / 2 for b in x] for a in x]
        return [[value / (sum(row) - row[i]) for value in row] for i, row in enumerate(kernel)]

    q, p = shares(s), shares(t)
    pairs = list(itertools.permutations(range(len(s)), 2))
    return sum(p[i][j] * math.log(p[i][j] / q[i][j]) for i, j in pairs) / len(pairs)


def slow_cc(s, t):
    def kernel(x, i, j):
        c = slow_cosine(x[i], x[j])
        return math.exp(-0.8) * (1 + 0.8 * c + 0.8**2 / 2 * c**2)

    pairs = itertools.product(range(len(s)), repeat=2)
    return sum((kernel(t, i, j) - kernel(s, i, j)) ** 2 for i, j in pairs) / len(s) ** 2


def slow_batch_similarity(s, t):
    def softmax(x, i):
        row = {j: math.exp(slow_cosine(x[i], x[j]) / 0.1) for j in range(len(x)) if j != i}
        return {j: value / sum(row.values()) for j, value in row.items()}

    total = 0.0
    for i in range(len(s)):
        q, p = softmax(s, i), softmax(t, i)
        total += sum(p[j] * math.log(p[j] / q[j]) for j in p)
    return total / len(s)


SLOW = {"rkd": slow_rkd, "sp": slow_sp, "pkt": slow_pkt, "cc": slow_cc, "batch_similarity": slow_batch_similarity}


def spaces(rows, width, source_width, *, seed=0):
    generator = np.random.default_rng(seed)
    return generator.normal(size=(rows, width)) + 0.3, generator.normal(size=(rows, source_width)) * 4


def value_of(name, target, source):
    return PRESETS[name](torch.as_tensor(target), torch.as_tensor(source)).item()


def rotation(width, *, seed=5):
    return np.linalg.qr(np.random.default_rng(seed).normal(size=(width, width)))[0]


def test_every_preset_has_an_oracle():
    assert set(SLOW) == set(PRESETS)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("shape", SHAPES)
def test_value_is_the_formula(name, shape):
    target, source = spaces(*shape)
    if min(shape[1:]) == 1 and name == "pkt":
        target = np.abs(target)  # opposite rows have no probability, and the formula is infinite
    assert value_of(name, target, source) == pytest.approx(SLOW[name](target, source), rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("shape", SHAPES[:3])
def test_gradient_is_that_of_the_formula(name, shape):
    (target, source), step = spaces(*shape, seed=1), 1e-6
    student = torch.tensor(target, requires_grad=True)
    PRESETS[name](student, torch.tensor(source)).backward()
    assert student.grad.abs().max() > 1e-4
    for index in np.ndindex(target.shape):
        up, down = target.copy(), target.copy()
        up[index] += step
        down[index] -= step
        slope = (SLOW[name](up, source) - SLOW[name](down, source)) / (2 * step)
        assert student.grad[index].item() == pytest.approx(slope, rel=1e-5, abs=1e-7)


def test_values_worked_out_by_hand():
    orthogonal, same = torch.eye(2), torch.ones(2, 2)
    # Rows (1, 0), (0, 1) against (1, 1) / sqrt 2, twice.
    assert PRESETS["sp"](orthogonal, same).item() == pytest.approx((2 * (1 - 0.5**0.5) ** 2 + 2 * 0.5) / 4)
    # Off the diagonal cos is 0 against 1.
    assert PRESETS["cc"](orthogonal, same).item() == pytest.approx((math.exp(-0.8) * (0.8 + 0.32)) ** 2 / 2)
    # 1 against 2 on the diagonal, 0 against 2 off it.
    frobenius = Relation(kernel="dot", divergence="frobenius")
    assert frobenius(orthogonal, same).item() == pytest.approx(10**0.5)
    equilateral, line = torch.eye(3), torch.tensor([[0.0], [1.0], [2.0]])
    # Distances 1, 1, 1 against 3/4, 3/4, 3/2; cosines 1/2 each against 1, -1, 1; each pair and each triple twice.
    distance = 2 * (2 * 0.25**2 / 2 + 0.5**2 / 2) / 9
    angle = 2 * (2 * 0.5**2 / 2 + 1.5 - 0.5) / 27
    assert PRESETS["rkd"](equilateral, line).item() == pytest.approx(25 * distance + 50 * angle, rel=1e-5)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("change", ["rotation", "scale", "permutation", "wider"])
def test_what_a_preset_is_blind_to(name, change):
    target, source = spaces(6, 4, 5)
    before = value_of(name, target, source)
    if change == "permutation":
        order = np.random.default_rng(0).permutation(6)
        assert value_of(name, target[order], source[order]) == pytest.approx(before, rel=1e-9)
        assert value_of(name, target[order], source) != pytest.approx(before, rel=1e-3)
        return
    changes = {
        "rotation": lambda x: x @ rotation(x.shape[1]),
        "scale": lambda x: x * 37.5,
        "wider": lambda x: np.concatenate([x, np.zeros((6, 3))], axis=1),
    }
    assert value_of(name, changes[change](target), source) == pytest.approx(before, rel=1e-9)
    assert value_of(name, target, changes[change](source)) == pytest.approx(before, rel=1e-9)


def test_only_rkd_is_blind_to_a_shift():
    target, source = spaces(6, 4, 5)
    for name in PRESETS:
        moved = value_of(name, target + 2.0, source)
        assert (moved == pytest.approx(value_of(name, target, source), rel=1e-9)) == (name == "rkd")


@pytest.mark.parametrize("name", PRESETS)
def test_a_perfect_copy_is_the_minimum_zero(name):
    target, source = spaces(6, 4, 5)
    student = torch.tensor(source @ rotation(5) * 0.1, requires_grad=True)
    value = PRESETS[name](student, torch.tensor(source))
    value.backward()
    assert value.item() == pytest.approx(0, abs=1e-12)
    assert student.grad.abs().max() < 1e-6
    assert value_of(name, target, source) > 1e-4


def degenerate(kind, rows=6, width=4):
    rest = torch.randn(rows, width, generator=torch.Generator().manual_seed(3))
    return {
        "ordinary": rest,
        "all rows identical": rest[:1].expand(rows, -1).clone(),
        "two rows identical": torch.cat([rest[:1], rest[:-1]]),
        "opposite rows": torch.cat([rest[:3], -rest[:3]]),
        "all zero": torch.zeros(rows, width),
        "one row zero": torch.cat([torch.zeros(1, width), rest[1:]]),
        "huge": rest * 1e37,
        "tiny": rest * 1e-30,
        "huge and tiny": rest * torch.logspace(-30, 30, rows).unsqueeze(1),
        "one column": rest[:, :1].clone(),
    }[kind]


KINDS = ("ordinary", "all rows identical", "two rows identical", "opposite rows", "all zero", "one row zero")
SIZES = ("huge", "tiny", "huge and tiny", "one column")


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("kind", KINDS + SIZES)
def test_degenerate_embeddings_stay_finite(name, kind):
    for other in ("ordinary", "one row zero", kind):
        for mine, its in ((kind, other), (other, kind)):
            student = degenerate(mine).requires_grad_()
            value = PRESETS[name](student, degenerate(its))
            value.backward()
            assert value.isfinite(), (mine, its)
            assert value >= -1e-6, (mine, its)
            assert student.grad.isfinite().all(), (mine, its)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("factor", [1e-30, 1e37])
def test_huge_and_tiny_embeddings_keep_their_relations(name, factor):
    plain, source = degenerate("ordinary"), degenerate("two rows identical")
    assert value_of(name, plain * factor, source) == pytest.approx(value_of(name, plain, source), rel=1e-4)


@pytest.mark.parametrize("name", PRESETS)
@pytest.mark.parametrize("rows", [0, 1, 2])
def test_too_few_rows_are_a_finite_zero(name, rows):
    target, source = torch.randn(rows, 4, requires_grad=True), torch.randn(rows, 5)
    value = PRESETS[name](target, source)
    (target.sum() + value).backward()
    assert value.isfinite()
    assert target.grad.isfinite().all()
    assert value.item() == 0 or rows == PRESETS[name].rows == 2
    if rows == 2:
        assert all(relation(target, source).isfinite() for _, relation in PRESETS[name].relations)


@pytest.mark.parametrize("name", PRESETS)
def test_gradient_descent_finds_the_sources_relations(name):
    generator = torch.Generator().manual_seed(0)
    source = torch.randn(12, 3, generator=generator)
    student = torch.randn(12, 5, generator=generator).requires_grad_()
    optimizer, values = torch.optim.Adam([student], lr=0.02), []
    for _ in range(150):
        value = PRESETS[name](student, source)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(value.item())
    assert values[-1] < 0.1 * values[0]


@pytest.mark.parametrize("kernel", ["dot", "cosine", "shifted_cosine", "euclidean", "rbf"])
def test_a_kernel_of_pairs_is_symmetric(kernel):
    matrix = KERNELS[kernel](torch.randn(5, 3, dtype=torch.float64))
    assert torch.allclose(matrix, matrix.T, atol=1e-14)


def test_the_series_of_cc_is_near_the_gaussian():
    unit = torch.nn.functional.normalize(torch.randn(8, 6, dtype=torch.float64))
    gaussian = torch.exp(-0.4 * torch.cdist(unit, unit) ** 2)
    # The first power left out, 0.8^3 / 3! of exp(-0.8), and what is beyond it.
    assert (KERNELS["rbf"](unit) - gaussian).abs().max() < 0.05


def test_other_rows_leave_out_the_diagonal():
    assert other_rows(torch.arange(9).view(3, 3)).tolist() == [[1, 2], [3, 5], [6, 7]]
    assert other_rows(torch.ones(1, 1)).shape == (1, 0)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"kernel": "dott"}, "kernel 'dott' is unknown; did you mean 'dot'"),
        ({"pairs": "some"}, "pairs 'some' is unknown"),
        ({"normalise": "row_l3"}, "normalise 'row_l3' is unknown"),
        ({"divergence": "l2"}, "divergence 'l2' is unknown"),
    ],
)
def test_an_unknown_part_lists_the_known_ones(changes, message):
    with pytest.raises(UnknownNameError, match=message):
        Relation(**({"kernel": "dot", "divergence": "mean_square"} | changes))


def test_parts_that_do_not_go_together_are_refused():
    with pytest.raises(InputError, match=r"temperature is 0; it has to be above 0"):
        Relation(kernel="dot", divergence="huber", temperature=0)
    with pytest.raises(InputError, match=r"pairs is 'others'; kernel 'angle' has triples and needs pairs 'all'"):
        Relation(kernel="angle", divergence="huber", pairs="others")
    for normalise, divergence in (("row_l2", "kl"), ("none", "kl_mean"), ("row_softmax", "huber")):
        with pytest.raises(InputError, match=f"normalise is '{normalise}' and divergence '{divergence}'"):
            Relation(kernel="dot", divergence=divergence, normalise=normalise)
