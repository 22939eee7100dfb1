"""The sweep and the cache as whole commands: run twice, killed, interrupted."""

import json
import os
import re
import signal
from pathlib import Path

import pytest

from sskt.methods import METHODS
from tests.conftest import write_experiment
from tests.processes import finish, kill_when, start


def table(said: str) -> str:
    return "\n".join(line for line in said.splitlines() if line.startswith("|"))


def content(said: str) -> str:
    return re.search(r"content ([0-9a-f]{16})", said).group(1)


def objects(store: Path, pattern: str) -> list[Path]:
    return sorted(store.glob(pattern))


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
    kill_when(start("sweep", str(experiment_file)), lambda: bool(objects(store, "caches/*/shard-*.parquet")))
    kill_when(start("sweep", str(experiment_file)), lambda: bool(objects(store, "checkpoints/*/*")))
    assert objects(store, "caches/*/manifest.json")
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


def test_an_interrupted_sweep_says_how_to_go_on(undisturbed):
    file, _ = undisturbed
    process = start("sweep", str(file), "--set", "training.epochs=500")
    while not objects(file.parent / "store", "checkpoints/*/*"):
        assert process.poll() is None, process.stdout.read()
    os.kill(process.pid, signal.SIGINT)
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
def test_every_method_goes_through_a_sweep(experiment_file, tmp_path):
    """Two seeds of each, on real pictures, from cached labels: all end with a result, and learn."""
    code, said = finish("train", str(experiment_file), "--trial", "0", "--export", f"{tmp_path}/teacher.safetensors")
    assert code == 0, said
    without = {name for name in METHODS if not METHODS[name].needs(METHODS[name].Options()).outputs}
    sources = {name: "[]" if name in without - {"finetune", "probe"} else "[teacher]" for name in METHODS}
    methods = "\n".join(f"  - {{method: {name}, sources: {named}}}" for name, named in sources.items())
    text = experiment_file.read_text()
    text = re.sub(
        r"sources:\n  wise: .*\n", f"sources:\n  teacher: {{weights: {tmp_path}/teacher.safetensors}}\n", text
    )
    experiment_file.write_text(re.sub(r"methods:\n(  - .*\n)+", f"methods:\n{methods}\n", text))
    code, said = finish("sweep", str(experiment_file))
    assert code == 0, said
    # One trial is that which made the teacher: another experiment, the same training, so it is found.
    assert f"1 trials found, {2 * len(METHODS) - 1} done now" in said
    results = [json.loads(file.read_text()) for file in objects(tmp_path / "store", "results/*.json")]
    trained = {(result["spec"]["trial"]["method"], result["spec"]["trial"]["seed"]): result for result in results}
    for name in METHODS:
        for seed in (0, 1):
            history = trained[name, seed]["history"]
            assert history[-1]["loss"] < history[0]["loss"], name
