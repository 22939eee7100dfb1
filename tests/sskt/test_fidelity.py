import math
from dataclasses import asdict

import pytest
import torch

from sskt.encodings import get_encoding
from sskt.errors import InputError
from sskt.fidelity import Budget, Fidelity, fidelity


def logits_of(rows: int, classes: int, *, scale: float = 3.0, seed: int = 0) -> torch.Tensor:
    return torch.randn(rows, classes, generator=torch.Generator().manual_seed(seed)) * scale


def slow_softmax(row: list[float]) -> list[float]:
    powers = [math.exp(value - max(row)) for value in row]
    return [power / sum(powers) for power in powers]


def degrees(a: list[float], b: list[float]) -> float:
    product = sum(x * y for x, y in zip(a, b, strict=True))
    return math.degrees(math.acos(max(-1.0, min(1.0, product / math.hypot(*a) / math.hypot(*b)))))


def slow_fidelity(wanted: list[list[float]], found: list[list[float]], learner: list[list[float]]) -> dict[str, float]:
    """The definitions, row by row."""
    sums = dict.fromkeys(("total_variation", "kl", "angle", "agreement"), 0.0)
    for row, other, logits in zip(wanted, found, learner, strict=True):
        p, q, r = slow_softmax(row), slow_softmax(other), slow_softmax(logits)
        sums["total_variation"] += sum(abs(x - y) for x, y in zip(p, q, strict=True)) / 2
        sums["kl"] += sum(x * math.log(x / y) for x, y in zip(p, q, strict=True) if x > 0)
        gradients = [[x - y for x, y in zip(labels, r, strict=True)] for labels in (p, q)]
        sums["angle"] += degrees(*gradients)
        sums["agreement"] += row.index(max(row)) == other.index(max(other))
    return {name: value / len(wanted) for name, value in sums.items()}


@pytest.mark.parametrize(("rows", "classes"), [(1, 2), (7, 3), (40, 25)])
@pytest.mark.parametrize("noise", [0.05, 1.0, 5.0])
def test_it_is_what_the_definitions_say(rows, classes, noise):
    logits = logits_of(rows, classes)
    decoded = logits + noise * logits_of(rows, classes, scale=1.0, seed=1)
    learner = torch.randn(rows, classes, generator=torch.Generator().manual_seed(9))
    expected = slow_fidelity(logits.tolist(), decoded.tolist(), learner.tolist())
    assert asdict(fidelity(logits, decoded, seed=9)) == pytest.approx(expected, rel=1e-6, abs=2e-6)


@pytest.mark.parametrize(
    "logits",
    [logits_of(30, 10), logits_of(30, 10, scale=1e6), logits_of(5, 1), torch.zeros(4, 3), torch.full((2, 3), -1e30)],
)
def test_what_is_the_same_differs_in_nothing(logits):
    """Exactly, so that even a budget of nothing allows what loses nothing."""
    for decoded in (logits.clone(), get_encoding("fp32", "logits").decode(logits.view(torch.uint8), logits.shape[1])):
        found = fidelity(logits, decoded)
        assert found == Fidelity(total_variation=0.0, kl=0.0, angle=0.0, agreement=1.0)
        assert Budget(total_variation=0, kl=0, angle=0, agreement=1).allows(found)


def test_a_constant_added_to_a_row_is_no_difference():
    found = fidelity(logits_of(20, 6), logits_of(20, 6) + torch.arange(20.0).view(-1, 1))
    assert max(found.total_variation, found.kl, found.angle) < 1e-5
    assert found.agreement == 1


def test_the_opposite_of_what_a_saturated_source_says():
    found = fidelity(torch.tensor([[1e4, 0.0], [0.0, 1e4]]), torch.tensor([[0.0, 1e4], [0.0, 1e4]]))
    assert found.total_variation == pytest.approx(0.5)
    assert found.kl == pytest.approx(5000)
    assert found.angle == pytest.approx(90)
    assert found.agreement == 0.5


def test_more_noise_is_less_fidelity():
    logits, noise = logits_of(500, 20), logits_of(500, 20, scale=1.0, seed=1)
    found = [asdict(fidelity(logits, logits + scale * noise)) for scale in (0.0, 0.03, 0.1, 0.3, 1.0, 3.0)]
    for name in ("total_variation", "kl", "angle"):
        values = [one[name] for one in found]
        assert values == sorted(values)
        assert len(set(values)) == len(values)
    agreements = [one["agreement"] for one in found]
    assert agreements == sorted(agreements, reverse=True)
    assert agreements[0] == 1 > agreements[-1]


def test_the_learner_is_another_by_seed_and_matters_for_the_angle_alone():
    logits, decoded = logits_of(50, 5), logits_of(50, 5, seed=1)
    first, again, other = (fidelity(logits, decoded, seed=seed) for seed in (0, 0, 1))
    assert first == again
    assert first.angle != other.angle
    assert asdict(first) | {"angle": 0} == asdict(other) | {"angle": 0}


GOOD = {"total_variation": 0.01, "kl": 0.001, "angle": 1.0, "agreement": 1.0}


@pytest.mark.parametrize(
    ("name", "worse"), [("total_variation", 0.011), ("kl", 0.0011), ("angle", 1.1), ("agreement", 0.999)]
)
def test_a_budget_allows_what_keeps_within_all_of_it(name, worse):
    assert Budget().allows(Fidelity(**GOOD))
    assert not Budget().allows(Fidelity(**GOOD | {name: worse}))
    assert Budget(**GOOD | {name: worse}).allows(Fidelity(**GOOD | {name: worse}))
    assert not Budget().allows(Fidelity(**GOOD | {name: math.nan}))


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"total_variation": -0.1}, "total_variation is -0.1; it has to be at least 0 and finite"),
        ({"kl": math.nan}, "kl is nan; it has to be at least 0 and finite"),
        ({"angle": math.inf}, "angle is inf; it has to be at least 0 and finite"),
        ({"agreement": 1.01}, "agreement is 1.01; it has to be between 0 and 1"),
        ({"agreement": -1}, "agreement is -1; it has to be between 0 and 1"),
        ({"agreement": math.nan}, "agreement is nan; it has to be between 0 and 1"),
    ],
)
def test_a_budget_that_means_nothing_is_refused(values, says):
    with pytest.raises(InputError, match=f"^{says}$"):
        Budget(**values)
