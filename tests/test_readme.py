"""The README is true: its commands exist, its experiment is valid, its output is what the demo prints."""

import re
import shlex
from pathlib import Path

import pytest

from pipeline.__main__ import main, make_parser
from pipeline.demo import SOURCE_NAME
from pipeline.planning.experiment import load_experiment
from sskt.datasets import READERS
from sskt.methods import METHODS
from sskt.networks import ARCHITECTURES
from sskt.views import OPERATIONS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def demo_block() -> list[str]:
    block = re.search(r"<!-- demo output -->\n```\n(.*?)```\n<!-- end of demo output -->", README, re.S).group(1)
    return block.splitlines()


def without_figures(lines: list[str]) -> list[str]:
    """What is said, without what was measured: figures, ids, paths, verdicts, widths."""
    shapes = []
    for line in lines:
        line = re.sub(r"\[[0-9a-f]{12,16}\]|content [0-9a-f]{16}|\S*/\S*", "ID", line)
        line = re.sub(r"helps|hurts|no clear change|too few seeds to say", "VERDICT", line)
        line = re.sub(r"[-+]?\d+(\.\d+)?( ± #)?", "#", line)
        line = re.sub(r"# ± #|#", "#", line)
        line = re.sub(r"#( \[#, #\])?( +\| VERDICT)", r"#\2", line)
        line = re.sub(r"-{3,}|\s+", " ", line)
        shapes.append(line.strip())
    return shapes


def test_the_first_command_is_on_the_first_screen():
    lines = README.splitlines()
    assert next(number for number, line in enumerate(lines, 1) if line.startswith("make demo")) <= 30


def test_make_has_the_targets():
    makefile = (ROOT / "Makefile").read_text()
    for text in (README, (ROOT / "CONTRIBUTING.md").read_text()):
        for target in re.findall(r"^make ([\w-]+)|`make ([\w-]+)`", text, re.M):
            assert f"\n{''.join(target)}:" in makefile


def test_every_command_is_understood():
    commands = re.findall(r"^python -m pipeline (.*?)(?:\s+#.*)?$", README, re.M)
    assert len(commands) >= 6
    for command in commands:
        make_parser().parse_args(shlex.split(command))


def test_the_experiment_is_valid(tmp_path):
    text = re.search(r"```yaml\n(.*?)```", README, re.S).group(1)
    (tmp_path / "mine.yaml").write_text(text)
    experiment = load_experiment(str(tmp_path / "mine.yaml"))
    assert len(experiment.trials()) == 3 * (1 + 2 + 2 + 1)
    assert len(text.splitlines()) <= 40


def test_the_lists_are_whole():
    table = dict(re.findall(r"^\| (\w+) \| (.*) \|$", README, re.M))
    assert set(re.findall(r"`(\w+)`", table["datasets"])) == {*READERS, "parquet"}
    assert set(re.findall(r"`(\w+)`", table["methods"])) == set(METHODS)
    assert set(re.findall(r"`(\w+)`", table["views"])) == set(OPERATIONS)
    named = re.sub(r"/(\d+)", r"` `resnet\1", table["targets"]) + table["sources"]
    assert set(re.findall(r"`(\w+)`", named)) == set(ARCHITECTURES)


@pytest.mark.usefixtures("ray_session")
def test_the_demo_prints_what_the_readme_shows(tmp_path, capsys):
    """A demo of two seeds and a few steps: other figures, the same words."""
    changes = [
        f"storage={tmp_path}/demo", f"sources.{SOURCE_NAME}.weights={tmp_path}/{SOURCE_NAME}.safetensors",
        "training.epochs=2", "training.steps_per_epoch=3", "seeds=[0,1]", "views.count=1",
    ]  # fmt: skip
    arguments = ["demo", *[part for change in changes for part in ("--set", change)]]
    assert main(arguments) == 0
    first = capsys.readouterr().out.splitlines()
    assert without_figures(first) == without_figures(demo_block())
    assert main(arguments) == 0
    again = capsys.readouterr().out
    assert again.count("found, 0 source passes") == 2
    assert "sweep   12 trials found, 0 done now" in again
    assert [line for line in again.splitlines() if line.startswith("|")] == [
        line for line in first if line.startswith("|")
    ]
