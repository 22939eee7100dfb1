"""The sweep and the cache as whole commands: run twice, killed, interrupted."""

import csv
import json
import os
import re
import signal
from pathlib import Path

import pytest

from sskt.methods import METHODS
from tests.conftest import write_experiment
from tests.pipeline.trials.test_trials import with_methods
from tests.processes import finish, kill_when, start
from tests.sskt.learning import QUICK
from tests.sskt.methods.test_base import needed


def table(said: str) -> str:
    return "\n".join(line for line in said.splitlines() if line.startswith("|"))


def content(said: str) -> str:
    return re.search(r"content ([0-9a-f]{16})", said).group(1)


def objects(store: Path, pattern: str) -> list[Path]:
    """What is there whole; files that a killed process was writing are no objects."""
    return sorted(path for path in store.glob(pattern) if not path.name.startswith("."))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, pictures, source_file):
    """The experiment run to its end without disturbance: its file, and what was said."""
    file = write_experiment(tmp_path_factory.mktemp("undisturbed"), pictures=pictures, source_file=source_file)
    code, said = finish("sweep", str(file))
    assert code == 0, said
    return file, said


def test_the_second_sweep_finds_everything_and_runs_no_source(undisturbed):
    file, first = undisturbed
    assert "cache   wise logits: 324 source passes;" in first
    assert "sweep   0 trials found, 4 done now" in first
    code, again = finish("sweep", str(file))
    assert code == 0
    assert "cache   wise logits: found, 0 source passes;" in again
    assert "sweep   4 trials found, 0 done now" in again
    assert table(again) == table(first)
    for noise in ("Traceback", "WARNING", "Warning", "core_worker"):
        assert noise not in first + again


def test_killed_while_caching_and_while_sweeping_it_ends_the_same(experiment_file, tmp_path, undisturbed):
    store = tmp_path / "store"
    kill_when(start("sweep", str(experiment_file)), lambda: bool(objects(store, "caches/*/*/shard-*.parquet")))
    kill_when(start("sweep", str(experiment_file)), lambda: bool(objects(store, "checkpoints/*/*")))
    assert objects(store, "caches/*/*/manifest.json")
    done_before = {file.stem: file.stat().st_mtime_ns for file in objects(store, "results/*.json")}
    code, said = finish("sweep", str(experiment_file))
    assert code == 0, said
    assert content(said) == content(undisturbed[1])
    assert table(said) == table(undisturbed[1])
    after = {file.stem: file.stat().st_mtime_ns for file in objects(store, "results/*.json")}
    assert {key: after[key] for key in done_before} == done_before
    histories = {}
    for place in (store, undisturbed[0].parent / "store"):
        results = [json.loads(file.read_text()) for file in objects(place, "results/*.json")]
        histories[place] = {result["run_key"]: result["history"] for result in results}
    assert histories[store] == histories[undisturbed[0].parent / "store"]
    assert objects(store, "checkpoints/*/*") == []


@pytest.mark.slow
@pytest.mark.parametrize(("number", "epochs"), [(signal.SIGINT, 500), (signal.SIGTERM, 501)])
def test_an_interrupted_sweep_says_how_to_go_on(undisturbed, number, epochs):
    file, _ = undisturbed
    before = objects(file.parent / "store", "checkpoints/*/*")
    process = start("sweep", str(file), "--set", f"training.epochs={epochs}")
    while objects(file.parent / "store", "checkpoints/*/*") == before:
        assert process.poll() is None, process.stdout.read()
    os.kill(process.pid, number)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert "stopped; what was finished is kept, the same command goes on from there" in said
    assert "Traceback" not in said


def test_a_failed_trial_stands_in_the_table_and_the_exit_code_says_so(undisturbed):
    code, said = finish("sweep", str(undisturbed[0]), "--set", "grid={training.lr: [1.0e+30, 0.05]}")
    assert code == 1
    assert "sweep   4 trials found, 0 done now, 4 failed" in said
    assert len(re.findall(r"2 failed: the loss is no longer finite in epoch 1", said)) == 2
    assert "Traceback" not in said


@pytest.mark.slow
def test_neighbours_turned_views_and_live_sources_go_through_a_sweep(experiment_file, source_file):
    with_methods(
        experiment_file,
        "method: propagate, sources: [wise], neighbours: 3",
        "method: sskd, sources: [wise], soft: 0, turned: 0, learn_from: all",
        "method: sskt, sources: [quick]",
    )
    quick = f"sources:\n  quick: {{weights: {source_file}, live: true, batch_norm: batch}}\n"
    text = experiment_file.read_text().replace("sources:\n", quick, 1)
    experiment_file.write_text(text.replace("seeds: [0, 1]", "seeds: [0]"))
    code, said = finish("sweep", str(experiment_file))
    assert code == 0, said
    assert "cache   wise embedding: 1296 source passes;" in said  # 108 images, 3 views upright and 9 turned
    assert "cache   wise turned embedding: 1296 source passes;" in said
    assert "quick" not in said.partition("sweep   ")[0]
    assert "graph   wise, 3 neighbours\n" in said
    assert "sweep   0 trials found, 3 done now" in said
    # Those of sskd alone: 16 labelled rows and 16 of the pool, upright and turned by three quarters, in 12 steps.
    assert f"The trials read {12 * 32 * 4} labels: the cache saved {12 * 32 * 4 - 1296} source passes." in said
    code, again = finish("sweep", str(experiment_file))
    assert code == 0
    assert "graph " not in again
    assert "sweep   3 trials found, 0 done now" in again
    assert table(again) == table(said)


@pytest.mark.slow
def test_several_classes_an_image_go_through_a_sweep(tmp_path):
    file = tmp_path / "several.yaml"
    file.write_text(f"""
storage: {tmp_path}/store
dataset: {{kind: digit_pairs}}
target: {{architecture: small_cnn, options: {{width: 4}}}}
training: {{epochs: 2, steps_per_epoch: 12, batch_size: 32, labels_per_class: 20, lr: 0.1}}
methods: [{{method: scratch}}, {{method: dml}}]
""")
    code, said = finish("sweep", str(file))
    assert code == 0, said
    assert "20 labels per class used" in said
    assert [cell.strip() for cell in table(said).splitlines()[0].split("|")][2] == "test mean AP %"
    with (tmp_path / "store" / "reports" / "several.csv").open() as written:
        lines = list(csv.DictReader(written))
    assert list(lines[0])[:4] == ["trial", "seed", "test_mean_ap", "failure"]
    stored = [json.loads(path.read_text()) for path in objects(tmp_path, "store/results/*.json")]
    results = {result["label"]: result for result in stored}
    assert set(results) == {"scratch", "dml"}
    for line in lines:
        result, score = results[line["trial"]], line["test_mean_ap"]
        assert (result["metric"], line["failure"]) == ("mean_ap", "")
        assert set(result["test"]) == set(result["validation"]) == {"mean_ap", "sample_ap"}
        assert float(score) == result["test"]["mean_ap"] > 15
        assert result["history"][-1]["validation_mean_ap"] == result["validation"]["mean_ap"]
    code, said = finish("train", str(file), "--trial", "0", "--in-process")
    told = results["scratch"]["test"]["mean_ap"]
    assert f"train   scratch, seed 0: test mean AP {told:.1f} % (found)" in said


@pytest.mark.slow
def test_every_method_goes_through_a_sweep(experiment_file, tmp_path):
    """Two seeds of each, on real pictures, from cached labels: all end with a result, and learn."""
    long = ("--set", "training.epochs=10")
    teacher = f"{tmp_path}/teacher.safetensors"
    code, said = finish("train", str(experiment_file), "--trial", "0", "--export", teacher, *long)
    assert code == 0, said
    sources = {name: "[teacher]" if needed(name) else "[]" for name in METHODS}
    quick = {name: "".join(f", {option}: {value}" for option, value in QUICK.get(name, {}).items()) for name in METHODS}
    methods = "\n".join(f"  - {{method: {name}, sources: {sources[name]}{quick[name]}}}" for name in METHODS)
    text = experiment_file.read_text()
    text = re.sub(r"sources:\n  wise: .*\n", f"sources:\n  teacher: {{weights: {teacher}}}\n", text)
    experiment_file.write_text(re.sub(r"methods:\n(  - .*\n)+", f"methods:\n{methods}\n", text))
    code, said = finish("sweep", str(experiment_file), *long)
    assert code == 0, said
    # One trial is that which made the teacher: another experiment, the same training, so it is found.
    assert f"1 trials found, {2 * len(METHODS) - 1} done now" in said
    results = [json.loads(file.read_text()) for file in objects(tmp_path / "store", "results/*.json")]
    trained = {(result["spec"]["trial"]["method"], result["spec"]["trial"]["seed"]): result for result in results}
    for name in METHODS:
        for seed in (0, 1):
            history = trained[name, seed]["history"]
            assert history[-1]["loss"] < history[0]["loss"], name
