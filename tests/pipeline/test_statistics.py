import numpy as np
import pytest
from scipy import stats

from pipeline.statistics import compare, half_interval, summarise


def test_summary():
    summary = summarise([90.0, 92.0, 94.0])
    assert (summary.mean, summary.std, summary.n) == (92.0, 2.0, 3)
    assert summarise([90.0]).std is None


def test_the_paired_interval_is_the_textbook_one():
    change = compare({0: 92.0, 1: 91.0, 2: 95.0}, {0: 90.0, 1: 90.0, 2: 91.0})
    # Differences 2, 1, 4: mean 7/3, s = 1.5275, t(0.975, 2) = 4.302653.
    assert change.mean == pytest.approx(7 / 3)
    reach = 4.302653 * 1.527525 / 3**0.5
    assert (change.low, change.high) == pytest.approx((7 / 3 - reach, 7 / 3 + reach), rel=1e-5)
    assert change.verdict == "no clear change"


@pytest.mark.parametrize("count", [2, 3, 5, 40])
def test_half_an_interval_is_what_scipy_makes_of_the_numbers(count):
    values = np.random.default_rng(count).normal(90, 2, count)
    whole = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert half_interval(values.tolist()) == pytest.approx((whole.high - whole.low) / 2, rel=1e-9)
    assert half_interval([]) is half_interval([90.0]) is None


def test_only_seeds_that_both_have_count():
    change = compare({0: 92.0, 1: 91.0, 7: 10.0}, {0: 90.0, 1: 90.0, 2: 91.0})
    assert (change.mean, change.n) == (1.5, 2)
    assert compare({0: 1.0}, {1: 1.0}) is None


@pytest.mark.parametrize(("shift", "verdict"), [(3.0, "helps"), (-3.0, "hurts")])
def test_a_steady_difference_is_called_by_its_name(shift, verdict):
    assert compare({s: s + shift + s * 0.01 for s in range(4)}, {s: float(s) for s in range(4)}).verdict == verdict


def test_one_seed_says_nothing():
    change = compare({0: 92.0}, {0: 90.0})
    assert (change.low, change.verdict) == (None, "too few seeds to say")


def test_the_interval_covers_the_truth_as_often_as_it_says():
    generator = np.random.default_rng(0)
    hits = 0
    for _ in range(2000):
        scores = {seed: 1.0 + generator.normal() for seed in range(4)}
        change = compare(scores, dict.fromkeys(range(4), 0.0))
        hits += change.low <= 1.0 <= change.high
    assert 0.935 < hits / 2000 < 0.965
