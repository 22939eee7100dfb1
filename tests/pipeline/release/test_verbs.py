"""From a trained experiment to predictions, by the command line."""

import csv

import pytest

from pipeline.__main__ import main
from pipeline.trials.trials import gather_materials, run_trial
from tests.pipeline.trials.test_trials import CPU, prepared


def test_export_then_predict(experiment_file, pictures, tmp_path, capsys):
    changes = ["--set", "training.epochs=3"]
    plan, storage = prepared(experiment_file, "training.epochs=3")
    run_trial(plan.trials[0], gather_materials(plan, storage, plan.trials[:1]), CPU)
    best, answers = tmp_path / "best", tmp_path / "answers.csv"
    assert main(["export", str(experiment_file), *changes, "--to", str(best)]) == 0
    assert (
        f"export  {plan.trials[0].trial.label}, seed 0: {best} (logits differ by model.pt2" in capsys.readouterr().out
    )
    assert main(["predict", str(best), str(pictures / "dark"), "--to", str(answers)]) == 0
    assert f"predict 60 images: {answers}" in capsys.readouterr().out
    with answers.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 60
    (pictures / "dark" / "broken.png").write_bytes(b"")
    try:
        assert main(["predict", str(best), str(pictures / "dark"), "--to", str(answers)]) == 1
    finally:
        (pictures / "dark" / "broken.png").unlink()
    assert "1 could not be read" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--to", "x"], "no trial of the experiment has a result yet"),
        (["--trial", "99", "--to", "x"], "--trial is 99; the experiment has trials 0 to "),
    ],
)
def test_bad_input_is_one_line(experiment_file, capsys, arguments, said):
    assert main(["export", str(experiment_file), *arguments]) == 2
    told = capsys.readouterr().err.strip()
    assert told.startswith("error: ")
    assert said in told
    assert "\n" not in told
