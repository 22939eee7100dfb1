"""The command line as a person meets it: manuals, mistakes, a new method."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.__main__ import VERBS, main, make_parser
from sskt.losses import labelled_cross_entropy
from sskt.methods import METHODS
from sskt.methods.base import SingleTarget

ROOT = Path(__file__).parent.parent.parent


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "pipeline", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_the_command_line_is_frozen():
    """A new flag is a decision: prefer a field of the experiment file."""
    verbs = make_parser()._subparsers._group_actions[0].choices
    flags = {
        name: sorted(flag for action in parser._actions for flag in action.option_strings or [action.dest])
        for name, parser in verbs.items()
    }
    usual = ["--help", "--laptop", "--set", "-h", "experiment"]
    train = sorted([*usual, "--export", "--in-process", "--profile", "--trial"])
    assert flags == dict.fromkeys(("pack", "cache"), usual) | {
        "report": sorted([*usual, "--json"]),
        "sweep": sorted([*usual, "--dry-run"]),
        "train": train,
        "demo": ["--help", "--set", "-h"],
        "results": ["--help", "-h", "page"],
        "verify-results": ["--draw", "--help", "--rows", "--seeds", "-h", "page"],
        "methods": ["--help", "-h"],
        "caches": ["--help", "-h", "storage"],
        "cache-diff": ["--help", "-h", "one", "other", "storage"],
        "verify": sorted([*usual, "--rerun"]),
        "init": ["--help", "--to", "-h", "folder"],
        "watch": sorted([*usual, "--once", "--page"]),
        "plan": sorted([*usual, "--cluster", "--json", "--measure"]),
        "inspect": sorted([*usual, "--samples", "--to"]),
        "export": sorted([*usual, "--trial", "--to"]),
        "predict": ["--help", "--to", "-h", "images", "network"],
        "gc": sorted(["--dry-run", "--help", "--laptop", "--set", "--yes", "-h", "experiments", "storage"]),
    }


@pytest.mark.parametrize("verb", VERBS)
def test_help_reads_like_a_manual(verb, capsys):
    with pytest.raises(SystemExit) as left:
        main([verb, "--help"])
    assert left.value.code == 0
    manual = capsys.readouterr().out
    assert f"python -m pipeline {verb}" in manual.partition("options:")[0].partition("\n\n")[2]
    assert len(manual.splitlines()) >= 12


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("training.lr=fast", "small.yaml: field training.lr is 'fast'; it has to be a number"),
        ("dataset.path=/nowhere", "dataset.path"),
        ("sources.wise.weights=/nowhere.pt", "sources.wise"),
        ("sources.wise.classes=7", "sources.wise"),
        ("target.architecture=resnet21", "'resnet21' is unknown; did you mean 'resnet"),
        ("target.options.depth=3", "depth"),
        ("storage=ftp://x", "the scheme 'ftp' is unknown"),
        ("views.ops=[pad_crop: 12]", "pad_crop of 12 pixels on images of 12"),
    ],
)
def test_a_mistake_is_one_line_and_exit_code_2_before_anything_starts(experiment_file, change, says, capsys):
    assert main(["sweep", str(experiment_file), "--set", change]) == 2
    told = capsys.readouterr()
    assert says in told.err
    assert told.err.startswith("error: ")
    assert len(told.err.strip().splitlines()) == 1


def test_a_trial_of_a_search_is_not_trained_by_its_number(experiment_file, capsys):
    search = "search={by: random, trials: 2, axes: {training.lr: [0.1, 0.2]}}"
    assert main(["train", str(experiment_file), "--set", search, "--trial", "0"]) == 2
    assert "small is a search, whose trials are not known beforehand; run `sweep`" in capsys.readouterr().err


def test_a_mistake_starts_no_ray(experiment_file):
    program = (
        "import sys; from pipeline.__main__ import main; "
        f"code = main(['sweep', {str(experiment_file)!r}, '--set', 'methods.1.sources=[wize]']); "
        "print(code, 'ray' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "2 False"
    assert "did you mean 'wise'?" in done.stderr


@pytest.mark.parametrize("resource", ["cpus", "gpus"])
@pytest.mark.parametrize("work", ["trial", "source_worker"])
def test_more_than_the_machine_has_is_refused(experiment_file, capsys, resource, work):
    assert main(["sweep", str(experiment_file), "--set", f"resources.{resource}_per_{work}=999"]) == 2
    told = capsys.readouterr()
    assert "999" in told.err
    assert told.out == ""


def test_no_verb_and_no_file_are_explained():
    assert run().returncode == 2
    wrong = run("sweep", "nowhere.yaml")
    assert wrong.returncode == 2
    assert wrong.stderr.strip() == (
        "error: nowhere.yaml: the experiment file cannot be read: [Errno 2] No such file or directory: 'nowhere.yaml'"
    )


def test_train_needs_to_know_which_trial(experiment_file, capsys):
    assert main(["train", str(experiment_file), "--in-process"]) == 2
    assert "name one of 4 trials by its number (0: scratch, seed 0;" in capsys.readouterr().err


def test_train_in_process_exports_a_network(experiment_file, tmp_path, capsys):
    arguments = [
        "train",
        str(experiment_file),
        "--trial",
        "0",
        "--in-process",
        "--export",
        str(tmp_path / "out.safetensors"),
    ]
    assert main(arguments) == 0
    assert main(arguments) == 0
    said = capsys.readouterr().out
    assert said.count("(found)") == 1
    assert (tmp_path / "out.safetensors").stat().st_size > 1000


class Toy(SingleTarget):
    """A method somebody adds: scratch with half the loss."""

    def losses(self, batch, logits, heads):
        return {"half": 0.5 * labelled_cross_entropy(logits, batch.labels)}


def test_a_new_method_is_a_class_and_a_line(experiment_file, monkeypatch, capsys):
    monkeypatch.setitem(METHODS, "toy", Toy)
    experiment_file.write_text(experiment_file.read_text().replace("{method: scratch}", "{method: toy}"))
    assert main(["train", str(experiment_file), "--trial", "1", "--in-process"]) == 0
    assert main(["report", str(experiment_file)]) == 0
    said = capsys.readouterr().out
    assert "toy, seed 1: test accuracy" in said
    assert "| toy " in said


def test_a_report_for_machines_is_json_and_nothing_else(experiment_file, capsys):
    assert main(["report", str(experiment_file), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [row["label"] for row in found["rows"]] == ["scratch", "sskt wise, learn_from all"]
    assert found["cost"]["passes_saved"] == 0
    written = {path.suffix for path in (experiment_file.parent / "store" / "reports").iterdir()}
    assert written == {".html", ".md", ".csv", ".parquet", ".json"}


def test_a_shell_completes_verbs_and_options(tmp_path):
    """The printed script, in a real bash."""
    command = tmp_path / "sskt"
    command.write_text("from pipeline.__main__ import run\nrun()\n")
    script = subprocess.run(
        [sys.executable, str(command), "--print-completion", "bash"],
        cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    (tmp_path / "completion").write_text(script)
    for words, wanted in (("sskt swe", "sweep"), ("sskt sweep --dry", "--dry-run"), ("sskt verify-", "verify-results")):
        program = (
            f"source completion; COMP_WORDS=({words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); "
            "_shtab_sskt; echo ${COMPREPLY[@]}"
        )
        done = subprocess.run(["bash", "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True)
        assert done.stdout.split() == [wanted], done.stderr
