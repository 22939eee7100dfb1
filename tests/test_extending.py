"""What the document on extending says is done to a copy of the project, step by step, and it trains."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "docs" / "extending.md").read_text()


def blocks(language: str) -> list[tuple[str, str]]:
    """The blocks of a language: the file that each names in its first line, and the rest."""
    found = re.findall(rf"^```{language}\n# (\S+)\n(.*?)^```", TEXT, flags=re.M | re.S)
    assert found
    return found


def change(text: str, hunk: str) -> str:
    """Replace what the lines ` ` and `-` of a hunk hold by what its lines ` ` and `+` hold."""
    lines = hunk.splitlines()
    old, new = ("\n".join(line[1:] for line in lines if line[0] != other) for other in "+-")
    assert text.count(old) == 1, old
    return text.replace(old, new)


@pytest.fixture(scope="module")
def extended(tmp_path_factory) -> Path:
    """A copy of the project with everything that the document adds."""
    copy = tmp_path_factory.mktemp("extended")
    for package in ("sskt", "cluster", "pipeline"):
        shutil.copytree(ROOT / package, copy / package, ignore=shutil.ignore_patterns("__pycache__"))
    for name, text in blocks("python") + blocks("yaml"):
        assert not (copy / name).exists()
        (copy / name).write_text(text)
    for name, text in blocks("diff"):
        for hunk in text.strip("\n").split("\n\n"):
            (copy / name).write_text(change((copy / name).read_text(), hunk))
    return copy


def python(arguments: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(folder), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_all_of_it_trains(extended):
    (script,) = re.findall(r"^```sh\n(.*?)^```", TEXT, flags=re.M | re.S)
    commands = [shlex.split(line) for line in script.splitlines()]
    assert [command[1] for command in commands] == ["make_weights.py", "make_data.py", "-m", "-m"]
    said = ""
    for program, *arguments in commands:
        assert program == "python"
        done = python(arguments, extended)
        assert done.returncode == 0, done.stderr
        said += done.stdout
    assert "pack    stripes: 120 images" in said
    assert said.count("120 images") == 2
    assert said.count("train   hard elsewhere, weight 0.5, seed 0: test accuracy") == 2
    assert len(list((extended / "store" / "results").iterdir())) == 2


def test_what_is_added_is_listed_and_refused_like_all_else(extended):
    program = """
import sys
from pipeline.__main__ import main
from pipeline.planning.catalogue import catalogue
print(catalogue())
for change in ("methods.0.weight=-1", "methods.0.wait=1", "dataset.kind=stripe"):
    assert main(["train", "all.yaml", "--in-process", "--set", change]) == 2
"""
    done = python(["-c", program], extended)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^hard: .*learn which of its classes each source finds likeliest", done.stdout, flags=re.M)
    weight, unknown, kind = done.stderr.splitlines()
    assert re.search("weight is -1(.0)?; it has to be at least 0", weight)
    assert "wait" in unknown
    assert "did you mean 'methods[0].weight'?" in unknown
    assert "stripe" in kind


def test_the_code_is_in_the_projects_style(extended):
    files = [name for name, _ in blocks("python") if name.startswith("sskt/")]
    assert len(files) == 2
    command = [sys.executable, "-m", "ruff", "check", "--config", str(ROOT / "pyproject.toml"), *files]
    done = subprocess.run(command, cwd=extended, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
