"""What is said at the top, for every way a sweep can end."""

import pytest

from pipeline.reports.answer import answer, counted, interval, p_value, representatives, signed, verdict
from pipeline.reports.costs import Cost
from pipeline.reports.report import Report, Row
from pipeline.statistics import Change, compare, correct, summarise

SEEDS = range(5)


def row(label, *, scores=None, validation=None, sources=("wise",), method=None, wanted=5):
    made = Row(label, method or label.split()[0], sources=sources, wanted=wanted)
    if scores:
        made.scores = dict(enumerate(scores))
        made.validation_scores = dict(enumerate(validation or scores))
        made.summary, made.validation = summarise(scores), summarise(list(made.validation_scores.values()))
    return made


def scratch(scores=(80.0, 81.0, 79.0, 80.5, 79.5), **more):
    return row("scratch", scores=scores, sources=(), **more)


def answered(*rows):
    baseline = next((one for one in rows if one.method == "scratch"), None)
    others = [one for one in rows if one is not baseline]
    changes = correct([compare(one.scores, baseline.scores) if baseline else None for one in others])
    for one, change in zip(others, changes, strict=True):
        one.change = change
    return answer(Report("", "accuracy", list(rows), [], (), Cost()))


def shifted(by, *, noise=0.1):
    return [score + by + noise * (-1) ** place for place, score in enumerate((80.0, 81.0, 79.0, 80.5, 79.5))]


def test_what_helps_is_named_with_its_gain_and_how_sure_it_is():
    found = answered(scratch(), row("sskt wise", scores=shifted(5)))
    assert found.headline == (
        "sskt wise helps: 85.0 % accuracy on the test split, 5.0 points above training from scratch."
    )
    assert found.kind == "up"
    assert "among 2 rows; the test split had no part" in found.details[0]
    assert (
        "+5.0 [+4.9, +5.2], 95 % interval of 5 paired seeds; paired t test, p < 0.001, a single test"
        in found.details[1]
    )


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ([], "Nothing has been trained to its end yet."),
        ([row("sskt wise")], "Nothing has been trained to its end yet."),
        ([scratch()], "Only training from scratch is done, 80.0 % accuracy on the test split."),
        (
            [scratch(), row("sskt wise", scores=shifted(-4))],
            "No source helped: training from scratch is best, 80.0 % accuracy on the test split.",
        ),
        (
            [scratch(), row("sskt wise", scores=shifted(0.5, noise=4))],
            "No source helped for sure: the best, sskt wise, is 1.3 points above training from scratch, "
            "within what seeds alone do.",
        ),
        (
            [scratch(), row("sskt wise", scores=shifted(-4), validation=[99.0] * 5)],
            "No source helped: the best on validation, sskt wise, is 4.0 points below training from scratch on the "
            "test split.",
        ),
        (
            [row("sskt wise", scores=[85.0] * 5)],
            "sskt wise is best, 85.0 % accuracy on the test split; no training from scratch is there to compare it "
            "with.",
        ),
        (
            [scratch([80.0], wanted=1), row("sskt wise", scores=[85.0], wanted=1)],
            "sskt wise leads, 85.0 % accuracy on the test split, 5.0 points above training from scratch; one seed "
            "cannot tell that from luck.",
        ),
        (
            [scratch(), row("ema", scores=shifted(3), sources=())],
            "ema helps, without any source: 83.0 % accuracy on the test split, 3.0 points above training from scratch.",
        ),
    ],
)
def test_every_outcome_has_its_plain_words(rows, says):
    assert answered(*rows).headline == says


def test_validation_chooses_whatever_the_test_split_says():
    rows = scratch(), row("kd wise", scores=shifted(9), validation=[70.0] * 5), row("sskt wise", scores=shifted(2))
    assert answered(*rows).best.label == "sskt wise"


def test_a_row_that_misses_seeds_does_not_win_over_whole_ones():
    lucky = row("kd wise", scores=[99.0])
    assert answered(scratch(), lucky, row("sskt wise", scores=shifted(2))).best.label == "sskt wise"
    assert answered(row("sskt wise", scores=[70.0]), lucky).best is lucky


def test_of_every_set_of_sources_the_best_by_validation_speaks_and_harm_is_named():
    rows = [
        scratch(),
        row("sskt wise", scores=shifted(4)),
        row("kd wise", scores=shifted(-4)),
        row("kd fool", scores=shifted(-6), sources=("fool",)),
    ]
    found = answered(*rows)
    assert [one.label for one in found.by_sources] == ["sskt wise", "kd fool"]
    assert found.details[-1] == "Negative transfer even at their best: fool."


def test_a_long_label_gives_way_to_what_matters_of_it():
    found = answered(scratch(), row(f"sskt wise, {'x' * 40}", scores=shifted(5)))
    assert found.headline.startswith("sskt with wise helps: ")
    assert found.details[0].startswith("It is the row sskt wise, xxx")


@pytest.mark.parametrize(
    ("p", "corrected", "mean", "says"),
    [
        (0.01, 0.04, 2.0, ("helps", "up")),
        (0.01, 0.04, -2.0, ("hurts", "down")),
        (0.01, 0.06, 2.0, ("may help", "unsure")),
        (0.01, 0.06, -2.0, ("may hurt", "unsure")),
        (0.06, 0.06, 2.0, ("no clear change", "none")),
        (None, None, 2.0, ("too few seeds to say", "none")),
    ],
)
def test_only_what_survives_the_correction_is_sure(p, corrected, mean, says):
    ends = (None, None) if p is None else (mean - 1, mean + 1)
    assert verdict(Change(mean, *ends, 5, p, corrected)) == says
    assert verdict(None).words == ""


def test_numbers_are_spelled_for_readers():
    assert (signed(-1.26), signed(1.26), signed(-0.01), signed(0.0)) == ("−1.3", "+1.3", "0.0", "0.0")
    assert interval(Change(-0.04, -2.0, 1.9, 5)) == "0.0 [−2.0, +1.9]"
    assert interval(Change(2.0, None, None, 1)) == "+2.0"
    assert (p_value(0.0004), p_value(0.0234)) == ("< 0.001", "0.023")
    assert (counted(1, "row"), counted(2, "row")) == ("1 row", "2 rows")


def test_of_many_rows_the_first_of_each_method_and_sources_stand_for_all():
    rows = [row(f"sskt wise {at}") for at in range(3)] + [row("kd wise"), row("kd fool", sources=("fool",))]
    assert representatives(rows, 5) == rows
    assert [one.label for one in representatives(rows, 4)] == ["sskt wise 0", "kd wise", "kd fool"]
    assert [one.label for one in representatives(rows, 2)] == ["sskt wise 0", "kd wise"]
