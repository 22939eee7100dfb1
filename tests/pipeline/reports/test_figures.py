"""Charts: what is drawn is what was given, and nothing of a user's words is markup."""

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from pipeline.reports.figures import SERIES, Series, axis_chart, cost_chart, curves_chart
from pipeline.statistics import half_interval

EVIL = '<script>alert("$x$")</script> & co'
SVG = "{http://www.w3.org/2000/svg}"
SERIES_1 = "var(--series-1)"


def parsed(chart):
    assert not re.search(r"#0\d0a0a|#01010|#02020|#03030|https?://(?!www\.w3\.org)", chart.svg)
    assert not re.search(r"<g id=|<metadata|font-family: (?!var)", chart.svg)
    return ElementTree.fromstring(  # noqa: S314 (we have just drawn it)
        chart.svg.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1)
    )


def ticks(tree):
    """The labels of an axis and where they stand, from the texts of the drawing."""
    return {
        text.text: (float(text.get("x")), float(text.get("y"))) for text in tree.iter(f"{SVG}text") if text.get("x")
    }


def points(path):
    return np.array(re.findall(r"[ML] (-?[\d.]+) (-?[\d.]+)", path.get("d")), float)


def lines_of(tree, colour):
    wanted = f"fill: none; stroke: {colour};"
    return [points(path) for path in tree.iter(f"{SVG}path") if path.get("style", "").startswith(wanted)]


def band_of(tree, colour):
    """The corners of what is filled in a colour, where the drawing puts it."""
    (use,) = [use for use in tree.iter(f"{SVG}use") if use.get("style", "").startswith(f"fill: {colour}; fill-opacity")]
    name = use.get("{http://www.w3.org/1999/xlink}href").removeprefix("#")
    (path,) = [path for path in tree.iter(f"{SVG}path") if path.get("id") == name]
    return points(path) + np.array([0, float(use.get("y"))])


def test_a_curve_is_the_mean_over_seeds_and_its_band_the_interval():
    generator = np.random.default_rng(0)
    seeds = [generator.uniform(20, 80, 12) for _ in range(4)]
    tree = parsed(curves_chart({"one": seeds, "two": [np.full(12, 50.0)]}, metric="accuracy"))
    (drawn,), corners = lines_of(tree, SERIES_1), band_of(tree, SERIES_1)
    mean = np.mean(seeds, axis=0)
    slope, start = np.polyfit(drawn[:, 1], mean, 1)
    assert np.allclose(slope * drawn[:, 1] + start, mean, atol=0.05), "heights go with the mean"
    assert slope < 0
    for epoch, (x, _) in enumerate(drawn):
        heights = [slope * y + start for at, y in corners if abs(at - x) < 0.02]
        reach = half_interval([seed[epoch] for seed in seeds])
        assert max(heights) - min(heights) == pytest.approx(2 * reach, rel=0.02)


def test_curves_of_trials_that_were_cut_end_with_the_shortest():
    tree = parsed(curves_chart({"one": [np.arange(5.0), np.arange(3.0)]}, metric="accuracy"))
    assert [len(line) for line in lines_of(tree, SERIES_1)] == [3]


@pytest.mark.parametrize("name", [EVIL, "日本", ""])
def test_what_people_write_stays_text(name):
    series = [Series(name=name, x=[name, "other"], y=[1.0, 2.0])]
    charts = [
        curves_chart({name: [np.arange(3.0)]}, metric="accuracy"),
        cost_chart([Series(name=name, x=[1.0], y=[2.0])], front=[(1.0, 2.0)], metric="accuracy"),
        axis_chart(f"options.{name}", series, score="accuracy", number=0),
    ]
    for chart in charts:
        assert f"{SVG}script" not in {element.tag for element in parsed(chart).iter()}
        assert "<script" not in chart.svg
        assert [said for _, said in chart.legend] == [name]
    told = {text.text for text in parsed(charts[2]).iter(f"{SVG}text")}
    assert any((said or "").startswith(name[:17]) for said in told)


def test_numbers_that_span_decades_get_a_logarithmic_axis_with_plain_labels():
    x = [0.01, 0.1, 1.0]
    tree = parsed(axis_chart("lr", [Series(name="one", x=x, y=[1.0, 2.0, 3.0])], score="accuracy", number=0))
    places = [ticks(tree)[label][0] for label in ("0.01", "0.1", "1")]
    assert places[1] - places[0] == pytest.approx(places[2] - places[1], abs=0.1)


def test_lines_join_means_where_values_repeat_and_not_where_they_do_not():
    repeated = Series(name="one", x=[1, 1, 2, 2], y=[10.0, 20.0, 30.0, 50.0])
    (line,) = lines_of(parsed(axis_chart("k", [repeated], score="accuracy", number=0)), SERIES_1)
    assert len(line) == 2
    single = Series(name="one", x=[1, 2, 3, 4], y=[10.0, 20.0, 30.0, 50.0])
    assert lines_of(parsed(axis_chart("k", [single], score="accuracy", number=0)), SERIES_1) == []


def test_every_chart_has_words_for_those_who_cannot_see_it_and_is_the_same_every_time():
    one, again = (curves_chart({"a": [np.arange(9.0)]}, metric="accuracy") for _ in range(2))
    assert one == again
    tree = parsed(one)
    assert (tree.get("role"), tree.find(f"{SVG}title").text) == ("img", "Learning curves")
    assert all(place in one.svg for place in tree.get("aria-labelledby").split())
    assert len(SERIES) == 7
