"""`init` writes one file, never over another, and says what comes next."""

import pytest

from pipeline.__main__ import main
from pipeline.planning.experiment import load_experiment


def test_init_writes_a_file_that_is_taken(pictures, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["init", str(pictures), "--to", "first/mine.yaml"]) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "init    180 images in 3 classes: dark 60, light 60, middle 60."
    assert said[-2:] == [
        "init    first/mine.yaml: 9 trainings. Read it, change what you like, then",
        "        python -m pipeline sweep first/mine.yaml --dry-run",
    ]
    assert load_experiment("first/mine.yaml").name == "mine"
    before = (tmp_path / "first" / "mine.yaml").read_bytes()
    assert main(["init", str(pictures), "--to", "first/mine.yaml"]) == 2
    assert capsys.readouterr().err == "error: 'first/mine.yaml' exists; name another file with --to, or remove it\n"
    assert (tmp_path / "first" / "mine.yaml").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nowhere"], "dataset.path is 'nowhere'; there is no such file or folder"),
        (["nowhere", "--to", "mine.txt"], "--to is 'mine.txt'; an experiment file ends in .yaml"),
    ],
)
def test_a_mistake_writes_nothing(arguments, said, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["init", *arguments]) == 2
    assert capsys.readouterr().err == f"error: {said}\n"
    assert list(tmp_path.iterdir()) == []
