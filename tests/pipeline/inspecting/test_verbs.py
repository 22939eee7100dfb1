"""`inspect` writes a picture of what is there, and makes nothing."""

import pytest
from PIL import Image

from pipeline.__main__ import main
from tests.pipeline.trials.test_trials import prepared


def test_inspect(experiment_file, tmp_path, capsys):
    _, storage = prepared(experiment_file)
    before = list(storage.keys(""))
    assert main(["inspect", str(experiment_file), "--samples", "3", "--to", str(tmp_path / "new" / "x.png")]) == 0
    assert capsys.readouterr().out == f"inspect {tmp_path / 'new' / 'x.png'}: 3 images, wise\n"
    assert Image.open(tmp_path / "new" / "x.png").format == "PNG"
    assert list(storage.keys("")) == before


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--to", "x.png", "--samples", "0"], "--samples is 0; it has to be at least 1"),
        (["--to", "x.jpg"], "--to is 'x.jpg'; a picture ends in .png"),
        (["--to", "x.png"], "is not packed on"),
    ],
)
def test_bad_input_is_one_line(experiment_file, capsys, arguments, said):
    assert main(["inspect", str(experiment_file), *arguments]) == 2
    told = capsys.readouterr().err.strip()
    assert said in told
    assert "\n" not in told
