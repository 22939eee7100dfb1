"""Gains and mix-ups of classes, by hand."""

import numpy as np
import pytest

from pipeline.reports.classes import MOST_CLASSES, gains_of, mixups_of
from pipeline.reports.evidence import Fate
from pipeline.reports.report import Row
from pipeline.statistics import summarise

CLASSES = ("cat", "dog", "owl")


def row(label, *, sources=("wise",), validation=50.0):
    made = Row(label, label.split()[0], sources=sources)
    made.validation = summarise([validation])
    return made


SCRATCH = row("scratch", sources=())
SSKT, KD = row("sskt wise"), row("kd fool", sources=("fool",))
BEFORE = np.array([[80.0, 20, 0], [10, 70, 20], [0, 0, 100]])
AFTER = np.array([[90.0, 0, 10], [10, 75, 15], [0, 30, 70]])
FATES = {
    "scratch": Fate(score=np.diag(BEFORE), confusion=BEFORE),
    "sskt wise": Fate(score=np.diag(AFTER), confusion=AFTER),
    "kd fool": Fate(score=np.array([70.0, np.nan, 100.0])),
}


def test_gains_are_differences_to_scratch():
    found = gains_of([SSKT, SCRATCH, KD], FATES, CLASSES)
    assert (found.baseline, found.classes, found.hidden, found.largest) == ("scratch", CLASSES, 0, 30.0)
    assert found.rows == (("sskt wise", (10.0, 5.0, -30.0)), ("kd fool", (-10.0, None, 0.0)))


def test_of_several_baselines_the_best_by_validation_is_taken():
    better = row("scratch lr 2", sources=(), validation=60.0)
    better.method = "scratch"
    found = gains_of([SCRATCH, better, SSKT], FATES | {better.label: Fate(score=np.zeros(3))}, CLASSES)
    assert found.baseline == "scratch lr 2"


def test_without_a_baseline_or_without_anything_else_there_are_no_gains():
    assert gains_of([SSKT], FATES, CLASSES) is None
    assert gains_of([SCRATCH], FATES, CLASSES) is None
    assert gains_of([], {}, CLASSES) is None


def test_of_many_classes_those_that_changed_most_are_shown_from_gain_to_loss():
    changes = np.random.default_rng(0).permutation(100) - 50.0
    names = [str(number) for number in range(100)]
    fates = {"scratch": Fate(score=np.full(100, 50.0)), "sskt wise": Fate(score=50 + changes)}
    found = gains_of([SSKT, SCRATCH], fates, names)
    ((_, shown),) = found.rows
    assert len(shown) == MOST_CLASSES
    assert found.hidden == 100 - MOST_CLASSES
    assert list(shown) == sorted(shown, reverse=True)
    assert min(abs(value) for value in shown) >= 50 - MOST_CLASSES / 2
    assert [changes[int(name)] for name in found.classes] == list(shown)


def test_how_sources_agree_is_the_correlation_over_classes():
    other = np.array([75.0, 90, 60])
    fates = FATES | {"kd fool": Fate(score=other)}
    r = np.corrcoef(other - np.diag(BEFORE), np.diag(AFTER - BEFORE))[0, 1]
    assert gains_of([SSKT, SCRATCH, KD], fates, CLASSES).agreement == (f"wise with fool r = {r:+.2f}",)
    assert gains_of([SSKT, SCRATCH, KD], FATES, CLASSES).agreement == (), "two known classes always correlate"


def test_the_confusions_that_changed_most_come_first_and_the_diagonal_is_none():
    found = mixups_of(SSKT, SCRATCH, FATES, CLASSES)
    told = [[(one.truth, one.said, one.before, one.after) for one in part] for part in (found.fewer, found.more)]
    assert told == [
        [("cat", "dog", 20.0, 0.0), ("dog", "owl", 20.0, 15.0)],
        [("owl", "dog", 0.0, 30.0), ("cat", "owl", 0.0, 10.0)],
    ]
    assert found.matrix[0] == ("cat", ((10.0, True), (-20.0, True), (10.0, False)))
    assert found.matrix[2] == ("owl", ((0.0, True), (30.0, False), (-30.0, False)))


@pytest.mark.parametrize("label", ["kd fool"])
def test_where_confusions_were_not_kept_there_are_none(label):
    assert mixups_of(KD, SCRATCH, FATES, CLASSES) is None
