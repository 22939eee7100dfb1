"""Every experiment file is whole, and its smaller form runs on stand-ins: noise of the right shape, random sources.

What comes out says that everything fits together; it is no result.
"""

import csv
import io
import json
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from PIL import Image

from pipeline.__main__ import main
from pipeline.planning.experiment import LAPTOP, load_experiment
from pipeline.stages import Stages
from sskt.export import export_bytes
from sskt.networks import ImageFormat, build_target
from sskt.settings import TargetSettings

ROOT = Path(__file__).parent.parent
FILES = sorted((ROOT / "experiments").rglob("*.yaml"))
OF_PAPERS = [file for file in FILES if "theirs" in file.read_text().lower()]
SHRINKING = [file for file in FILES if LAPTOP in yaml.safe_load(file.read_text())]
CLASSES, EACH = 4, 12
"""Of stand-ins; an image is in no more than two classes."""
SIDES = {"CIFAR10": 32, "CIFAR100": 32, "STL10-labelled": 96}
MULTI_LABEL = ("VOCDetection",)
LABELS = "training.labels_per_class"


def name_of(file: Path) -> str:
    return file.relative_to(ROOT / "experiments").as_posix()


def header(file: Path) -> str:
    lines = [line for line in file.read_text().splitlines() if line.startswith("#")]
    return "\n".join(line.removeprefix("#") for line in lines)


@pytest.mark.parametrize("file", FILES, ids=name_of)
def test_a_file_says_how_it_is_run_and_what_it_costs(file):
    said = header(file)
    assert f"experiments/{name_of(file)}" in said or file.stem == "demo"
    assert "Cost: " in said
    assert "COST" not in said
    assert max(map(len, file.read_text().splitlines())) <= 125  # one of the demo's has that


@pytest.mark.parametrize("file", OF_PAPERS, ids=name_of)
def test_a_file_of_a_table_says_whose_figures_it_names_what_it_needs_and_how_to_shrink_it(file):
    assert re.search(r"^ Theirs", header(file), re.M)
    assert re.search(r"^ Needs", header(file), re.M)
    whole, smaller = load_experiment(str(file)), load_experiment(str(file), changes=[LAPTOP])
    assert smaller.training.epochs <= 2 < whole.training.epochs
    assert len(smaller.trials()) <= len(whole.trials())
    assert smaller.views.count < whole.views.count


def images(folder: Path, side: int, *, multi_label: bool) -> Path:
    """Noise in Parquet, a little brighter by the class; of several labels an image, the class and the next one."""
    generator, rows = np.random.default_rng(0), []
    for number in range(CLASSES * EACH):
        label = number % CLASSES
        pixels = generator.integers(0, 150, (side, side, 3)) + 25 * label
        Image.fromarray(pixels.astype(np.uint8)).save(data := io.BytesIO(), "PNG")
        image = {"bytes": data.getvalue(), "path": None}
        rows.append({"image": image, "label": [label, (label + 1) % CLASSES] if multi_label else label})
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(rows), folder / "stand-ins.parquet")
    return folder


def clips(folder: Path, side: int) -> Path:
    """Short clips of such noise, in the layout of UCF101."""
    generator, listed = np.random.default_rng(0), {"trainlist01.txt": "", "testlist01.txt": ""}
    for number in range(CLASSES * EACH):
        clip = f"class{number % CLASSES}/clip{number}"
        (folder / "frames" / clip).mkdir(parents=True)
        for frame in range(2):
            pixels = generator.integers(0, 150, (side, side, 3)) + 25 * (number % CLASSES)
            Image.fromarray(pixels.astype(np.uint8)).save(folder / "frames" / clip / f"{frame}.png")
        listed["testlist01.txt" if number % 3 == 0 else "trainlist01.txt"] += f"{clip}.avi\n"
    for name, lines in listed.items():
        (folder / name).write_text(lines)
    return folder


def network(folder: Path, name: str, classes: int) -> Path:
    """A source with random weights, as `train --export` writes one."""
    settings = TargetSettings(architecture="small_cnn", options={"width": 4})
    with torch.random.fork_rng():
        torch.manual_seed(len(name))
        built = build_target(settings, classes=classes, image=ImageFormat(3, 32, (0.5,) * 3, (0.25,) * 3))
    (folder / f"{name}.safetensors").write_bytes(export_bytes(built, settings=settings, classes=classes))
    return folder / f"{name}.safetensors"


def stand_ins(file: Path, folder: Path, *smaller: str) -> list[str]:
    """Changes that put what this machine has in the place of the file's data, sources and devices."""
    experiment = load_experiment(str(file), changes=list(smaller))
    dataset = experiment.dataset
    side = dataset.image_size or SIDES.get(dataset.name or "", 32)
    if dataset.kind == "clips":
        data = f"{{kind: clips, path: {clips(folder / 'clips', side)}, image_size: {side}, validation: 0.25}}"
    else:
        path = images(folder / "images", side, multi_label=dataset.name in MULTI_LABEL)
        data = f"{{kind: parquet, path: {path}, validation: 0.25, test: 0.25}}"
    changes = [f"storage={folder}/store", f"dataset={data}", "resources={runner: plain}"]
    for name, source in experiment.sources.items():
        classes = CLASSES if source.architecture is None else 20
        changes.append(f"sources.{name}={{weights: {network(folder, name, classes)}}}")
    if experiment.target.weights:
        changes.append("target.weights=null")
    if experiment.training.labels_per_class:
        changes.append("training.labels_per_class=2")
    if LABELS in experiment.grid:
        changes.append(f"grid={json.dumps(experiment.grid | {LABELS: [2, 3]})}")
    return changes


@pytest.mark.parametrize("file", SHRINKING, ids=name_of)
def test_every_trial_of_a_file_passes_the_checks_before_anything_runs(file, tmp_path):
    experiment = load_experiment(str(file), changes=stand_ins(file, tmp_path))
    plan = Stages(experiment, lambda line: None).pack()
    assert len({one.run_key for one in plan.trials}) == len(experiment.trials()) > 0


@pytest.mark.slow
@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("file", SHRINKING, ids=name_of)
def test_the_smaller_form_runs_from_images_to_report(file, tmp_path, capsys):
    changes = [*stand_ins(file, tmp_path, LAPTOP), "training.steps_per_epoch=2", "training.batch_size=8"]
    words = [str(file), "--laptop", *[word for change in changes for word in ("--set", change)]]
    trials = load_experiment(str(file), changes=[LAPTOP, *changes]).trials()
    assert main(["sweep", *words]) == 0
    assert f"0 trials found, {len(trials)} done now" in capsys.readouterr().out
    assert main(["report", *words]) == 0
    with (tmp_path / "store" / "reports" / f"{file.stem}-laptop.csv").open(newline="") as lines:
        assert len(list(csv.DictReader(lines))) == len(trials)
