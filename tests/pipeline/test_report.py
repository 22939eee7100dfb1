import csv
import json

import pytest

from pipeline.experiment import load_experiment
from pipeline.report import make_report, table, to_markdown, write_report
from pipeline.results import write_failure, write_result
from pipeline.stages import Stages


@pytest.fixture
def prepared(experiment_file):
    text = experiment_file.read_text().replace("seeds: [0, 1]", "seeds: [0, 1, 2]")
    experiment_file.write_text(text)
    stages = Stages(load_experiment(str(experiment_file)), lambda line: None)
    return stages.pack(), stages.storage


def record(storage, planned, score):
    result = {
        "metric": "accuracy",
        "test": {"accuracy": score},
        "seconds": 2.0,
        "label_rows": 100,
        "label": planned.trial.label,
    }
    write_result(storage, planned.run_key, result)


def test_nothing_done_is_said_as_plainly(prepared):
    plan, storage = prepared
    report = make_report(plan, storage)
    assert [line[1:3] for line in table(report)[1:]] == [("-", "0 of 3"), ("-", "0 of 3")]
    assert report.title.endswith("0 of 6 trials done")
    assert report.cost.trials == report.cost.source_passes == 0


def test_the_table_shows_mean_spread_number_and_paired_change(prepared):
    plan, storage = prepared
    for planned, score in zip(plan.trials, (80.0, 82.0, 84.0, 84.0, 85.0, 89.0), strict=True):
        record(storage, planned, score)
    report = make_report(plan, storage)
    assert table(report)[1:] == [
        ("scratch", "82.0 ± 2.0", "3", "", ""),
        # Differences 4, 3, 5: mean 4, s = 1, reach 4.3027 / sqrt(3) = 2.484.
        ("sskt wise, learn_from all", "86.0 ± 2.6", "3", "+4.0 [+1.5, +6.5]", "helps"),
    ]
    assert report.cost.training_seconds == 12.0
    assert report.cost.passes_saved == 600


def test_failures_stand_in_the_table_with_their_reason(prepared):
    plan, storage = prepared
    for planned in plan.trials[:5]:
        record(storage, planned, 80.0)
    write_failure(storage, plan.trials[5].run_key, "the loss is no longer finite in epoch 3")
    line = table(make_report(plan, storage))[2]
    assert line[2] == "2 of 3"
    assert line[4] == "1 failed: the loss is no longer finite in epoch 3"


def test_a_grid_point_is_compared_with_scratch_at_the_same_point(experiment_file):
    text = experiment_file.read_text() + "grid: {training.lr: [0.1, 0.2]}\n"
    experiment_file.write_text(text)
    stages = Stages(load_experiment(str(experiment_file)), lambda line: None)
    plan = stages.pack()
    for planned in plan.trials:
        offset = 10 if planned.trial.training.lr == 0.2 else 0
        record(stages.storage, planned, 70.0 + offset + (planned.trial.method == "sskt") * 3 + planned.trial.seed)
    changes = [row.change.mean for row in make_report(plan, stages.storage).rows if row.change]
    assert changes == [3.0, 3.0]


def test_the_written_report_says_the_same_in_three_forms(prepared):
    plan, storage = prepared
    for planned, score in zip(plan.trials[:4], (80.0, 82.0, 84.0, 84.0), strict=True):
        record(storage, planned, score)
    write_failure(storage, plan.trials[4].run_key, 'a, quoted "reason"')
    report = make_report(plan, storage)
    where = write_report(report, storage, name="small")
    assert where == "reports/small.md"
    assert storage.read("reports/small.md").decode() == to_markdown(report)
    lines = list(csv.DictReader(storage.read("reports/small.csv").decode().splitlines()))
    assert [float(line["test_accuracy"]) for line in lines if line["test_accuracy"]] == [80.0, 82.0, 84.0, 84.0]
    assert [line["failure"] for line in lines if line["failure"]] == ['a, quoted "reason"']
    rows = json.loads(storage.read("reports/small.json"))["rows"]
    assert rows[0]["scores"] == {"0": 80.0, "1": 82.0, "2": 84.0}


def test_the_markdown_is_a_table_whose_columns_line_up(prepared):
    plan, storage = prepared
    record(storage, plan.trials[0], 80.0)
    lines = to_markdown(make_report(plan, storage)).splitlines()[2:5]
    assert [cell.strip() for cell in lines[0].strip("|").split("|")] == [
        "trial",
        "test accuracy %",
        "n",
        "against scratch [95 %]",
        "verdict",
    ]
    assert len({len(line) for line in lines}) == 1
