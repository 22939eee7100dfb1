import json

import pytest

from pipeline.__main__ import main
from pipeline.forecasts import verbs
from pipeline.forecasts.records import read_forecast
from tests.pipeline.forecasts.test_forecast import packed, record
from tests.pipeline.forecasts.test_workload import rates_of
from tests.pipeline.trials.test_trials import prepared


def test_it_counts_what_is_packed_starts_no_ray_and_keeps_the_forecast(experiment_file, monkeypatch, capsys):
    _, storage = packed(experiment_file)
    monkeypatch.setattr("ray.init", None)
    assert main(["plan", str(experiment_file)]) == 0
    said = capsys.readouterr().out
    assert "trials  4 to do, 0 found; 12 epochs" in said
    assert "unknown seconds a step of scratch alone: run with --measure" in said
    found, _ = read_forecast(storage, "small")
    assert found.forecast.trials == 4


def test_what_is_not_packed_is_refused(experiment_file, capsys):
    assert main(["plan", str(experiment_file)]) == 2
    assert "run `pack`" in capsys.readouterr().err


def test_finished_trials_calibrate(experiment_file, capsys):
    plan, storage = prepared(experiment_file)
    for planned in (plan.trials[0], plan.trials[2]):
        record(storage, planned, seconds=600)
    assert main(["plan", str(experiment_file), "--json", "--set", "resources.cpus_per_trial=1"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["trials"], told["found"], told["unknown"]) == (2, 2, [])
    assert told["cached"]["training_hours"] == pytest.approx(2 * 600 / 3600)


def test_what_was_measured_is_used_and_known_the_next_time(experiment_file, tmp_path, monkeypatch, capsys):
    plan, _ = packed(experiment_file)
    asked = []

    def measured(plan, storage, *, trials):
        asked.extend(planned.run_key for planned in trials)
        return rates_of(plan, session=5.0, cache_start=1.0, sweep_start=1.0, turn=0.0)

    monkeypatch.setattr(verbs, "measure", measured)
    assert main(["plan", str(experiment_file), "--measure", "--json"]) == 0
    first = json.loads(capsys.readouterr().out)
    assert asked == [planned.run_key for planned in plan.trials]
    assert first["unknown"] == []
    cluster = tmp_path / "cluster.yaml"
    cluster.write_text("{nodes: [1, 50], cpus: 4, memory_gb: 8, price_per_hour: 1, suppose: {trials: 1000}}")
    assert main(["plan", str(experiment_file), "--cluster", str(cluster)]) == 0
    said = capsys.readouterr().out
    assert "trials  1000 to do" in said
    assert "stops scaling at" in said or "scales to 50 nodes" in said
    found, _ = read_forecast(packed(experiment_file)[1], "small")
    assert found.forecast.trials == 4  # a run that is only supposed is compared with nothing


def test_a_description_that_is_wrong_is_one_line(experiment_file, tmp_path, capsys):
    packed(experiment_file)
    cluster = tmp_path / "cluster.yaml"
    cluster.write_text("{cpus: 4, memory: 8}")
    assert main(["plan", str(experiment_file), "--cluster", str(cluster)]) == 2
    assert "'memory' is unknown; did you mean 'memory_gb'?" in capsys.readouterr().err
    cluster.write_text("{cpus: 0.5, memory_gb: 8}")
    assert main(["plan", str(experiment_file), "--cluster", str(cluster)]) == 2
    assert "a trial or worker needs 1 CPUs" in capsys.readouterr().err
