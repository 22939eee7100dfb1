import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from pipeline.statistics import compare, correct, expected_mean, half_interval, holm, paired_p, summarise


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


@pytest.mark.parametrize("count", [2, 3, 5, 40])
def test_p_is_what_scipy_finds_and_agrees_with_the_interval(count):
    generator = np.random.default_rng(count)
    for shift in (0.0, 1.0, 3.0):
        one, other = generator.normal(shift, 1, count), generator.normal(0, 1, count)
        change = compare(dict(enumerate(one)), dict(enumerate(other)))
        assert change.p == pytest.approx(stats.ttest_rel(one, other).pvalue, rel=1e-6)
        assert (change.p < 0.05) == (change.verdict in ("helps", "hurts"))


def test_differences_that_are_all_alike_leave_no_doubt():
    assert (paired_p([2.0, 2.0]), paired_p([0.0, 0.0, 0.0])) == (0.0, 1.0)


def test_holm_is_the_textbook_one():
    # Ordered 0.01, 0.03, 0.04 times 3, 2, 1, never falling.
    assert holm([0.04, 0.01, 0.03]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_rejects_as_the_step_down_rule_does(ps):
    """By the rule itself: from the smallest on, each against 0.05 / (how many are left), until one does not pass."""
    rejected, left = set(), sorted(range(len(ps)), key=lambda place: ps[place])
    while left and ps[left[0]] * len(left) < 0.05:
        rejected.add(left.pop(0))
    assert {place for place, p in enumerate(holm(ps)) if p < 0.05} == rejected


def test_only_what_was_tested_counts_for_the_correction():
    sure = compare({0: 3.0, 1: 3.1, 2: 2.9}, dict.fromkeys(range(3), 0.0))
    single = compare({0: 1.0}, {0: 0.0})
    found = correct([None, sure, single])
    assert (found[0], found[1].corrected, found[2].corrected) == (None, sure.p, None)
    assert correct([sure, sure])[0].corrected == pytest.approx(2 * sure.p)


def test_a_correct_table_without_effects_seldom_claims_one():
    """The family's error: of tables of 5 rows without any effect at most 5 % (and some) call something sure."""
    generator, wrong = np.random.default_rng(0), 0
    for _ in range(1000):
        baseline = dict(enumerate(generator.normal(0, 1, 5)))
        rows = [compare(dict(enumerate(generator.normal(0, 1, 5))), baseline) for _ in range(5)]
        wrong += any(change.corrected < 0.05 for change in correct(rows))
    assert wrong / 1000 < 0.065


def test_new_means_lie_where_they_are_predicted_95_times_in_100():
    generator, inside = np.random.default_rng(0), 0
    for _ in range(4000):
        old, new = generator.normal(80, 2, 4), generator.normal(80, 2, 2)
        low, high = expected_mean(summarise(old.tolist()), 2)
        inside += low <= new.mean() <= high
    assert 0.94 < inside / 4000 < 0.96
