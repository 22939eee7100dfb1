"""What the page's script knows of trials is all there is to know."""

import json

from pipeline.reports.evidence import Evidence, gather_evidence
from pipeline.reports.report import report_experiment
from pipeline.reports.trial_data import trial_data
from pipeline.trials.results import write_failure
from tests.made_up import fill, make_plan

TEXT = """
training: {epochs: 4, batch_size: 64, lr: 0.05}
methods: [{method: scratch, label: "</script><b>"}, {method: sskt, sources: [wise]}]
seeds: [0, 1]
"""


def leaves(value, path=()):
    if isinstance(value, dict) and value:
        return {leaf: one for key, below in value.items() for leaf, one in leaves(below, (*path, key)).items()}
    return {".".join(path): value}


def test_common_and_own_settings_together_are_the_spec_of_each(tmp_path):
    plan, storage = make_plan(tmp_path, TEXT)
    fill(plan, storage)
    report = report_experiment(plan, storage)
    spelled = trial_data(report.trials, report, gather_evidence(report, storage))
    assert "<" not in spelled, "nothing may end the element it stands in"
    found = json.loads(spelled)
    for planned, shown in zip(plan.trials, found["trials"], strict=True):
        assert found["shared"]["common"] | shown["own"] == leaves(planned.spec)
        history = json.loads(storage.read(f"results/{planned.run_key}.json"))["history"]
        assert [f"{epoch['validation_accuracy']:.4g}" for epoch in history] == [f"{one:.4g}" for one in shown["curve"]]
        assert shown["lines"][0].startswith(f"Run key {planned.run_key}; epoch 4 of 4; ")
    own = {key for shown in found["trials"] for key in shown["own"]}
    assert {"trial.seed", "trial.method"} <= own
    assert "trial.training.lr" not in own


def test_a_trial_that_failed_tells_why_and_how_far_it_came(tmp_path):
    plan, storage = make_plan(tmp_path, TEXT)
    last = {"epoch": 2, "validation_accuracy": 12.3456}
    write_failure(storage, plan.trials[0].run_key, "out of memory </script>", tries=2, last=last)
    report = report_experiment(plan, storage)
    (shown,) = json.loads(trial_data(report.trials, report, Evidence({})))["trials"]
    assert (shown["curve"], shown["losses"]) == ([], [])
    assert shown["lines"][1:] == ["out of memory </script>", "epoch 2, validation_accuracy 12.35"]


def test_no_trials_are_no_trouble(tmp_path):
    plan, storage = make_plan(tmp_path, TEXT)
    report = report_experiment(plan, storage)
    assert json.loads(trial_data([], report, Evidence({})))["trials"] == []
