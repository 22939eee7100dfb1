"""What is read beside the numbers, against the results themselves."""

import json

import numpy as np
import pytest

from pipeline.reports import evidence
from pipeline.reports.evidence import gather_evidence
from pipeline.reports.report import report_experiment
from tests.made_up import fill, make_plan

TEXT = """
training: {epochs: 4, batch_size: 64, lr: 0.05}
methods: [{method: scratch}, {method: sskt, sources: [wise]}]
seeds: [0, 1, 2]
"""


@pytest.fixture
def sweep(tmp_path):
    plan, storage = make_plan(tmp_path, TEXT)
    fill(plan, storage)
    return plan, storage


def results(storage, plan):
    return {one.run_key: json.loads(storage.read(f"results/{one.run_key}.json")) for one in plan.trials}


def test_curves_and_versions_are_those_of_the_results(sweep):
    plan, storage = sweep
    found = gather_evidence(report_experiment(plan, storage), storage)
    for key, result in results(storage, plan).items():
        assert found.seen[key].curve == pytest.approx([one["validation_accuracy"] for one in result["history"]])
        assert found.seen[key].losses == pytest.approx([one["loss"] for one in result["history"]])
    assert found.hardware == {"x86_64, 1 process(es) each": 6}
    assert found.versions == {"torch 2.14.1, Python 3.11.7, commit 0123456789ab": 6}
    assert found.stalled is None


def test_the_fate_of_classes_is_counted_over_all_seeds(sweep):
    plan, storage = sweep
    fates = gather_evidence(report_experiment(plan, storage), storage).fates
    for label in ("scratch", "sskt wise"):
        mine = [one["by_class"]["confusion"] for one in results(storage, plan).values() if one["label"] == label]
        for truth in range(10):
            images = sum(sum(matrix[truth]) for matrix in mine)
            for said in range(10):
                part = 100 * sum(matrix[truth][said] for matrix in mine) / images
                assert fates[label].confusion[truth, said] == pytest.approx(part)
            assert fates[label].score[truth] == fates[label].confusion[truth, truth]


@pytest.mark.parametrize(
    ("counted", "score"),
    [
        ([{"images": [10, 0, 5], "hits": [5, 0, 5]}, {"images": [10, 0, 5], "hits": [10, 0, 0]}], [75, np.nan, 50]),
        ([{"average_precision": [50.0, None]}, {"average_precision": [70.0, None]}], [60, np.nan]),
        ([{"confusion": [[1, 1], [0, 0]]}], [50, np.nan]),
    ],
)
def test_every_kind_of_count_has_a_score_and_a_class_without_images_none(sweep, counted, score):
    plan, storage = sweep
    mine = [one for one in plan.trials if one.trial.method == "scratch"]
    for place, planned in enumerate(mine):
        file = storage.path(f"results/{planned.run_key}.json")
        result = json.loads(file.read_text())
        result["by_class"] = counted[place % len(counted)]
        file.write_text(json.dumps(result))
    found = gather_evidence(report_experiment(plan, storage), storage).fates["scratch"]
    weights = np.bincount([place % len(counted) for place in range(3)])
    if len(counted) > 1:  # the first counts twice
        score = {3: [200 / 3, np.nan, 200 / 3], 2: [170 / 3, np.nan]}[len(score)]
    assert weights.sum() == 3
    assert found.score == pytest.approx(score, nan_ok=True)


def test_a_row_one_of_whose_results_is_older_has_no_fate(sweep):
    plan, storage = sweep
    file = storage.path(f"results/{plan.trials[0].run_key}.json")
    result = json.loads(file.read_text())
    del result["by_class"], result["versions"]
    file.write_text(json.dumps(result | {"waited_seconds": 1.0}))
    found = gather_evidence(report_experiment(plan, storage), storage)
    assert set(found.fates) == {"sskt wise"}
    assert found.stalled == 0.25
    assert found.versions["torch unknown, Python unknown, commit unknown"] == 1


def test_of_a_long_sweep_as_many_trials_as_fit_are_shown(sweep, monkeypatch):
    plan, storage = sweep
    monkeypatch.setattr(evidence, "MOST_TRIALS", 4)
    found = gather_evidence(report_experiment(plan, storage), storage)
    assert found.shown == tuple(one.run_key for one in plan.trials[:4])
    assert set(found.seen) == set(found.shown)
