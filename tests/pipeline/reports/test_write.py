"""All files of a report say the same: what the raw results say, recomputed without any of the report's code."""

import csv
import io
import json
import re
from collections import defaultdict

import numpy as np
import pyarrow.parquet as pq
import pytest
from scipy import stats

from cluster.storage import open_storage
from pipeline.forecasts.records import write_forecast
from pipeline.reports.report import report_experiment
from pipeline.reports.write import write_report
from tests.made_up import fill, make_plan
from tests.pipeline.forecasts.test_records import recorded

TEXT = """
training: {epochs: 5, batch_size: 64, lr: 0.05}
methods:
  - {method: scratch}
  - {method: sskt, sources: [wise]}
  - {method: sskt, sources: [fool]}
  - {method: kd, sources: [wise]}
seeds: [0, 1, 2, 3, 4]
"""


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    plan, storage = make_plan(tmp_path_factory.mktemp("written"), TEXT)
    fill(plan, storage)
    return write_report(plan, report_experiment(plan, storage), storage), storage


def raw(storage):
    """Scores by label, then by seed, from the results alone."""
    scores = defaultdict(dict)
    for key in storage.keys("results"):
        result = json.loads(storage.read(key))
        scores[result["label"]][result["spec"]["trial"]["seed"]] = result["test"]["accuracy"]
    return scores


def test_every_form_is_there_and_the_page_is_named(written):
    where, storage = written
    assert where == "reports/made_up.html"
    endings = {key.partition(".")[2] for key in storage.keys("reports")}
    assert endings == {"html", "md", "csv", "parquet", "json"}


def test_the_numbers_are_those_of_the_raw_results(written):
    _, storage = written
    scores = raw(storage)
    rows = {row["label"]: row for row in json.loads(storage.read("reports/made_up.json"))["rows"]}
    assert set(rows) == set(scores)
    ps = {}
    for label, row in rows.items():
        mine = [scores[label][seed] for seed in range(5)]
        assert (row["summary"]["mean"], row["summary"]["std"]) == pytest.approx((np.mean(mine), np.std(mine, ddof=1)))
        for field, against in (("change", "scratch"), ("against_kd", "kd wise")):
            if label in ("scratch", against):
                assert row[field] is None
                continue
            test = stats.ttest_rel(mine, [scores[against][seed] for seed in range(5)])
            ends = test.confidence_interval(0.95)
            found = [row[field][name] for name in ("low", "high", "p", "n")]
            assert found == pytest.approx([ends.low, ends.high, test.pvalue, 5])
            ps.setdefault(field, {})[label] = float(test.pvalue)
    for field, family in ps.items():
        for label, p in family.items():
            # Holm's corrected p: the largest, over the tests that are at least as clear, of p times how many are left.
            clearer = [other for other in family.values() if other <= p]
            expected = max(min(1, one * sum(other >= one for other in family.values())) for one in clearer)
            assert rows[label][field]["corrected"] == pytest.approx(expected)


def test_csv_and_parquet_hold_the_same_scores_as_the_results(written):
    _, storage = written
    lines = pq.read_table(io.BytesIO(storage.read("reports/made_up.parquet"))).to_pylist()
    spelled = list(csv.DictReader(storage.read("reports/made_up.csv").decode().splitlines()))
    scores = raw(storage)
    assert len(lines) == len(spelled) == 20
    for line, text in zip(lines, spelled, strict=True):
        assert line["test_accuracy"] == float(text["test_accuracy"]) == scores[line["trial"]][line["seed"]]
        result = json.loads(storage.read(f"results/{line['run_key']}.json"))
        best = max(result["history"], key=lambda epoch: epoch["validation_accuracy"])
        assert (line["best_epoch"], line["best_validation_accuracy"]) == (best["epoch"], best["validation_accuracy"])


def test_a_bucket_takes_a_report_like_a_folder(written, bucket_uri):
    _, storage = written
    plan, _ = make_plan(storage.path("x").parent.parent, TEXT)
    bucket = open_storage(bucket_uri)
    for key in storage.keys("results"):
        bucket.write(key, storage.read(key))
    where = write_report(plan, report_experiment(plan, bucket), bucket)
    for ending in ("html", "md", "csv", "parquet", "json"):
        key = where.replace("html", ending)
        assert bucket.read(key) == storage.read(key)


def test_a_forecast_stands_beside_what_came(tmp_path):
    plan, storage = make_plan(tmp_path, TEXT)
    page = storage.read(write_report(plan, report_experiment(plan, storage), storage)).decode()
    assert 'id="forecast"' not in page
    write_forecast(storage, recorded(plan, storage))
    fill(plan, storage)
    page = storage.read(write_report(plan, report_experiment(plan, storage), storage)).decode()
    table = page.partition('id="forecast"')[2].partition("</table>")[0]
    cells = re.search(r">trials</th>" + 3 * r"<td[^>]*>([^<]*)</td>", table)
    assert cells.groups() == ("20", "20", "1.00")
