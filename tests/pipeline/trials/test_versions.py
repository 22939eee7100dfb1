import re
import subprocess
from pathlib import Path

import torch

from pipeline.trials.versions import git_commit, versions

ROOT = Path(__file__).parents[3]


def test_the_commit_is_that_of_the_code_and_not_of_the_folder_somebody_stands_in(tmp_path, monkeypatch):
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    monkeypatch.chdir(tmp_path)
    assert git_commit() == head.stdout.strip()


def test_what_arithmetic_depends_on_is_named():
    told = versions()
    assert told["torch"] == torch.__version__
    assert re.fullmatch(r"3\.\d+\.\d+", told["python"])
    assert told["device"]
