"""Which charts there are, and that they show the right rows."""

import pytest

from pipeline.reports.evidence import Evidence, gather_evidence
from pipeline.reports.plots import MOST_AXES, MOST_CURVES, charts_of
from pipeline.reports.report import report_experiment
from tests.made_up import fill, make_plan

METHODS = "methods: [{method: scratch}, {method: sskt, sources: [wise]}, {method: kd, sources: [wise]}]\n"
TRAINING = "training: {epochs: 4, batch_size: 64, lr: 0.05}\n"


def charts(folder, text):
    plan, storage = make_plan(folder, TRAINING + METHODS + text)
    fill(plan, storage)
    report = report_experiment(plan, storage)
    rows = sorted(report.rows, key=lambda row: -row.rank)
    return {chart.title: chart for chart in charts_of(rows, report, gather_evidence(report, storage), None)}, rows


def test_few_rows_are_all_drawn_under_the_same_colours(tmp_path):
    found, rows = charts(tmp_path, "seeds: [0, 1]\n")
    names = [(place, row.label) for place, row in enumerate(rows, 1)]
    assert list(found) == ["Learning curves", "Cost against accuracy"]
    assert list(found["Learning curves"].legend) == list(found["Cost against accuracy"].legend) == names


def test_of_a_grid_the_best_of_each_method_is_drawn_and_every_axis(tmp_path):
    found, rows = charts(tmp_path, "grid: {training.lr: [0.01, 0.05, 0.1], training.momentum: [0.5, 0.9]}\n")
    best = {row.method: row.label for row in reversed(rows)}
    assert sorted(name for _, name in found["Learning curves"].legend) == sorted(best.values())
    assert {name for _, name in found["Cost against accuracy"].legend} == {"scratch", "sskt", "kd"}
    assert {"Against training.lr", "Against training.momentum"} <= set(found)
    assert [name for _, name in found["Against training.lr"].legend] == ["scratch", "sskt wise", "kd wise"]


def test_what_does_not_vary_or_is_no_number_is_handled(tmp_path):
    found, _ = charts(tmp_path, "grid: {training.nesterov: [true, false], training.lr: [0.1]}\n")
    assert "Against training.lr" not in found
    assert all(said in found["Against training.nesterov"].svg for said in (">true<", ">false<"))


@pytest.mark.parametrize("text", ["seeds: [0]\n"])
def test_without_results_there_are_no_charts(tmp_path, text):
    plan, storage = make_plan(tmp_path, TRAINING + METHODS + text)
    report = report_experiment(plan, storage)
    assert charts_of(report.rows, report, Evidence({}), None) == []
    assert (MOST_CURVES, MOST_AXES) == (7, 6)
