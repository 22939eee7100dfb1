"""A person's first hour, as the tutorial tells it: every command in a pseudo-terminal, one image is broken."""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent
TUTORIAL = ROOT / "docs" / "tutorial.md"


def commands() -> list[str]:
    """What the tutorial tells people to type, in its order."""
    blocks = re.findall(r"^```sh\n(.*?)^```", TUTORIAL.read_text(), flags=re.M | re.S)
    return [line for block in blocks for line in block.splitlines()]


def make_photos(folder: Path) -> None:
    generator = np.random.default_rng(0)
    for name, count, low in (("cat", 40, 20), ("dog", 30, 120)):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            height, width = generator.integers(17, 40, 2)
            pixels = (generator.integers(0, 100, (height, width, 3)) + low).astype(np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    (folder / "dog" / "broken.jpg").write_bytes(b"\xff\xd8 cut off")


def typed(command: str, folder: Path) -> tuple[int, str]:
    """Run a command in a terminal of 100 columns; return its exit code and everything that appeared."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        command.replace("python", sys.executable, 1).split(), cwd=folder, stdin=theirs, stdout=theirs, stderr=theirs,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TERM": "xterm", "COLUMNS": "100"},
    )  # fmt: skip
    os.close(theirs)
    seen = b""
    while True:
        try:
            chunk = os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
        if not chunk:
            break
        seen += chunk
    os.close(ours)
    return process.wait(), seen.decode().replace("\r\n", "\n")


def test_the_tutorial_has_the_whole_way():
    assert [command.split()[3] for command in commands()] == [
        "init", "sweep", "sweep", "watch", "report", "export", "predict",
    ]  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_first_hour(tmp_path):
    make_photos(tmp_path / "photos")
    screens = []
    for command in commands():
        code, screen = typed(command, tmp_path)
        screens.append(screen)
        broken = "predict" in command  # the folder still holds the image that cannot be read
        assert code == (1 if broken else 0), screen
        assert "Traceback" not in screen
        assert "Warning" not in screen
        if " init " in command:  # the edit that the tutorial proposes
            file = tmp_path / "photos.yaml"
            text = file.read_text()
            assert "epochs: 30" in text
            file.write_text(text.replace("epochs: 30", "epochs: 2"))
    init, dry, sweep, watch, report, export, predict = screens
    assert "dog/broken.jpg cannot be read" in init
    assert "trials  9 (3 scratch, 3 sskt, 3 embed)" in dry
    assert "left out: dog/broken.jpg" in sweep
    assert "9 trials found" not in sweep
    assert "9 done" in watch
    assert "scratch" in report
    assert "logits differ by" in export
    assert "1 could not be read" in predict
    assert len((tmp_path / "photos.csv").read_text().splitlines()) == 1 + 71
    assert {file.name for file in (tmp_path / "photos-best").iterdir()} == {
        "README.md", "model.json", "model.onnx", "model.pt2", "model.safetensors",
    }  # fmt: skip
