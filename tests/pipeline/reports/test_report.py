import re

import pytest

from benchmarks import sweep_size
from pipeline.planning.experiment import load_experiment
from pipeline.reports.report import make_report, report_experiment
from pipeline.reports.tables import table
from pipeline.stages import Stages
from pipeline.sweeps.search import search_id
from pipeline.trials.results import Stopped, write_failure, write_result, write_stopped


def plan_of(experiment_file):
    stages = Stages(load_experiment(str(experiment_file)), lambda line: None)
    return stages.pack(), stages.storage


@pytest.fixture
def prepared(experiment_file):
    text = experiment_file.read_text().replace("seeds: [0, 1]", "seeds: [0, 1, 2]")
    experiment_file.write_text(text)
    return plan_of(experiment_file)


def record(storage, planned, score, validation=50.0, **more):
    result = {
        "metric": "accuracy",
        "test": {"accuracy": score},
        "validation": {"accuracy": validation},
        "seconds": 2.0,
        "label_rows": 100,
        "label": planned.trial.label,
    }
    result |= more
    write_result(storage, planned.run_key, result)


def stopped_early(planned):
    return Stopped(
        run_key=planned.run_key, label=planned.trial.label, epoch=1, epochs=3, score=40.0, by="asha", reason="low"
    )


def test_nothing_done_is_said_as_plainly(prepared):
    plan, storage = prepared
    report = make_report(plan, storage)
    assert [line[1:3] for line in table(report)[1:]] == [("-", "0 of 3"), ("-", "0 of 3")]
    assert report.title.endswith("0 of 6 trials done")
    assert report.cost.trials == report.cost.source_passes == 0


def test_the_title_names_all_that_the_rows_have(prepared, experiment_file):
    plan, storage = prepared
    assert "8 labels per class used; target small_cnn; 0 of 6" in make_report(plan, storage).title
    text = experiment_file.read_text().replace(
        "seeds:", "grid: {training.labels_per_class: [2, null, 5], target.options.width: [4, 8]}\nseeds:"
    )
    experiment_file.write_text(text)
    title = make_report(*plan_of(experiment_file)).title
    assert "2, 5 labels per class or all labelled ones used; target small_cnn; 0 of 36" in title
    experiment_file.write_text(
        text.replace("null, ", "").replace(
            "target.options.width: [4, 8]", "target: [{architecture: small_cnn}, {architecture: resnet20}]"
        )
    )
    assert (
        "2, 5 labels per class used; target small_cnn, resnet20; 0 of 24"
        in make_report(*plan_of(experiment_file)).title
    )


def test_rows_hold_mean_spread_number_and_paired_change(prepared):
    plan, storage = prepared
    for planned, score in zip(plan.trials, (80.0, 82.0, 84.0, 84.0, 85.0, 89.0), strict=True):
        record(storage, planned, score, validation=score - 3 * planned.trial.seed, earlier_seconds=planned.trial.seed)
    report = make_report(plan, storage)
    scratch, sskt = report.rows
    assert scratch.scores == {0: 80.0, 1: 82.0, 2: 84.0}
    assert scratch.validation_scores == {0: 80.0, 1: 79.0, 2: 78.0}
    assert (scratch.validation.mean, scratch.validation.std, scratch.rank) == (79.0, 1.0, 79.0)
    assert scratch.change is None
    # Differences 4, 3, 5: mean 4, s = 1, reach 4.3027 / sqrt(3) = 2.484.
    assert (sskt.change.low, sskt.change.mean, sskt.change.high) == pytest.approx((1.516, 4.0, 6.484), abs=1e-3)
    assert report.cost.training_seconds == 12.0 + 2 * (0 + 1 + 2)
    assert report.cost.passes_saved == 600


def test_a_failed_trial_is_a_failure_until_it_has_a_result(prepared):
    plan, storage = prepared
    last = {"epoch": 2, "validation_accuracy": 71.2}
    for planned in plan.trials[:2]:
        write_failure(storage, planned.run_key, "diverged", tries=2, last=last)
    record(storage, plan.trials[1], 80.0)
    row = make_report(plan, storage).rows[0]
    (failed,) = row.unfinished
    assert (failed.state, failed.seed, failed.reason, failed.tries) == ("failed", 0, "diverged", 2)
    assert (failed.epoch, failed.epochs, failed.validation, failed.last) == (2, 3, 71.2, last)
    assert row.scores == {1: 80.0}


def test_a_failure_before_the_first_epoch_ended_has_no_metrics(prepared):
    plan, storage = prepared
    write_failure(storage, plan.trials[0].run_key, "out of memory")
    (failed,) = make_report(plan, storage).trials
    assert (failed.epoch, failed.validation, failed.last, failed.tries) == (0, None, None, 1)


def test_the_table_has_the_trials_it_is_given_and_what_was_tried_beside_them(prepared):
    plan, storage = prepared
    chosen, tried = plan.trials[:2], plan.trials
    for planned in plan.trials[:3]:
        record(storage, planned, 80.0)
    cut = stopped_early(plan.trials[3])
    report = make_report(
        plan, storage, trials=chosen, tried=tried, stopped={cut.run_key: cut}, search_lines=["best of 6"]
    )
    assert report.title.endswith("2 of 2 trials done")
    assert [(row.label, row.wanted, set(row.scores)) for row in report.rows] == [("scratch", 2, {0, 1})]
    assert [(one.label, one.seed, one.state) for one in report.trials] == [
        *(("scratch", seed, "done") for seed in range(3)),
        ("sskt wise, learn_from all", 0, "stopped"),
    ]
    assert (report.trials[3].epoch, report.trials[3].validation, report.trials[3].reason) == (1, 40.0, "asha: low")
    assert report.search_lines == ("best of 6",)
    assert report.cost.trials == 3, "what a search cost counts"


def test_a_member_of_a_population_is_told_where_it_ended(prepared):
    plan, storage = prepared
    record(storage, plan.trials[0], 80.0, lineage=[{"point": {"training.lr": 0.1}}, {"point": {"training.lr": 0.08}}])
    record(storage, plan.trials[1], 80.0)
    assert [one.point for one in make_report(plan, storage).trials] == [{"training.lr": 0.08}, {}]


def test_a_stopped_trial_that_was_trained_to_its_end_after_all_is_done(prepared):
    plan, storage = prepared
    record(storage, plan.trials[0], 80.0)
    cut = {planned.run_key: stopped_early(planned) for planned in plan.trials[:2]}
    row = make_report(plan, storage, stopped=cut).rows[0]
    assert (set(row.scores), [one.seed for one in row.unfinished]) == ({0}, [1])


def test_a_grid_point_is_compared_with_scratch_at_the_same_point(experiment_file):
    text = experiment_file.read_text() + "grid: {training.lr: [0.1, 0.2]}\n"
    experiment_file.write_text(text)
    plan, storage = plan_of(experiment_file)
    for planned in plan.trials:
        offset = 10 if planned.trial.training.lr == 0.2 else 0
        record(storage, planned, 70.0 + offset + (planned.trial.method == "sskt") * 3 + planned.trial.seed)
    report = make_report(plan, storage)
    assert [row.change.mean for row in report.rows if row.change] == [3.0, 3.0]
    assert [one.point for one in report.trials[::2]] == [{"training.lr": 0.1}, {"training.lr": 0.2}] * 2


def test_of_a_search_the_chosen_points_are_the_rows_compared_with_the_best_of_scratch(experiment_file):
    search = "search: {by: grid, axes: {training.lr: [0.1, 0.2]}}\n"
    experiment_file.write_text(experiment_file.read_text() + search)
    plan, storage = plan_of(experiment_file)
    trials = {
        (entry, lr, seed): plan.plan(plan.experiment.at(entry, {"training.lr": lr}, seed=seed))
        for entry in (0, 1)
        for lr in (0.1, 0.2)
        for seed in (0, 1)
    }
    record(storage, trials[0, 0.1, 0], 70.0, validation=61.0)
    record(storage, trials[0, 0.2, 0], 90.0, validation=60.0)  # better on the test split, which chooses nothing
    record(storage, trials[1, 0.2, 0], 75.0, validation=60.0)
    cut = stopped_early(trials[1, 0.1, 0])
    write_stopped(storage, search_id(plan, 1), cut.run_key, cut)
    report = report_experiment(plan, storage)
    assert [(row.label, row.scores, row.wanted) for row in report.rows] == [
        ("scratch, lr 0.1", {0: 70.0}, 2),
        ("sskt wise, learn_from all, lr 0.2", {0: 75.0}, 2),
    ]
    assert [row.change and row.change.mean for row in report.rows] == [None, 5.0]
    assert sorted((one.label, one.state) for one in report.trials) == [
        ("scratch, lr 0.1", "done"),
        ("scratch, lr 0.2", "done"),
        ("sskt wise, learn_from all, lr 0.1", "stopped"),
        ("sskt wise, learn_from all, lr 0.2", "done"),
    ]
    assert [line.split(":")[0] for line in report.search_lines] == [row.label for row in report.rows]


@pytest.mark.parametrize("points", [100, pytest.param(1000, marks=pytest.mark.slow)])
def test_a_large_report_takes_5_seconds_and_20_kb_a_trial_at_most(points, capfd):
    assert sweep_size.main(points) == 0
    said, trials = capfd.readouterr().out, 5 * points
    assert f"{trials} trials, {trials} results found, {trials} reported in {points} rows" in said
    lines = re.findall(r"^(.+?) +(\S+) s +(\S+) kB$", said, re.M)
    seconds, kilobytes = ({line[0]: float(line[column]) for line in lines} for column in (1, 2))
    assert seconds["existing"] + seconds["report"] + seconds["written"] <= 5
    assert kilobytes["in all"] / trials <= 20
