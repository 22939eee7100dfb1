"""What is released is what was trained, or nothing."""

import json

import pytest
import safetensors
import safetensors.torch
import torch
from torchvision.models import resnet18

from pipeline.release import bundle
from pipeline.release.bundle import best_trial, make_programs, release
from pipeline.release.card import read_card
from pipeline.trials.results import write_result
from pipeline.trials.trials import gather_materials, network_key, run_trial
from sskt.deployed import sample_images
from sskt.errors import DamagedError, InputError, SsktError
from sskt.export import export_bytes, import_bytes
from sskt.networks import ImageFormat, build_target
from sskt.settings import TargetSettings
from tests.pipeline.trials.test_trials import CPU, prepared


@pytest.fixture
def trained(experiment_file):
    plan, storage = prepared(experiment_file, "training.epochs=1")
    run_trial(plan.trials[0], gather_materials(plan, storage, plan.trials[:1]), CPU)
    return plan, storage


def test_a_released_folder_holds_the_network_its_programs_and_what_is_said_of_it(trained, tmp_path):
    plan, storage = trained
    planned = plan.trials[0]
    differences = release(planned, plan, storage, folder=tmp_path / "new" / "best")
    assert set(differences) == {"model.pt2", "model.onnx"}
    assert max(differences.values()) <= 1e-4
    written = {file.name: file.read_bytes() for file in (tmp_path / "new" / "best").iterdir()}
    assert set(written) == {"model.safetensors", "model.pt2", "model.onnx", "model.json", "README.md"}
    assert written["model.safetensors"] == storage.read(network_key(planned.run_key))
    card = read_card(written["model.json"], label="model.json")
    assert (card.classes, card.image_size, card.channels) == (plan.packed.classes, plan.packed.size, 1)
    assert card.run_key == planned.run_key
    text = written["README.md"].decode()
    assert all(f"`{name}`" in text for name in plan.packed.classes)
    assert planned.run_key in text


def test_torchvision_takes_the_weights_and_the_header_says_how_pixels_are_normalised(tmp_path):
    settings = TargetSettings(architecture="resnet18")
    network = build_target(settings, classes=5, image=ImageFormat(3, 32, (0.5,) * 3, (0.25,) * 3)).eval()
    file = tmp_path / "model.safetensors"
    file.write_bytes(export_bytes(network, settings=settings, classes=5))
    model = resnet18(num_classes=5).eval()
    model.load_state_dict(safetensors.torch.load_file(file))
    with safetensors.safe_open(file, framework="pt") as opened:
        said = json.loads(opened.metadata()["sskt_network"])["preprocessing"]
    mean, std = (torch.tensor(said[name]).view(1, 3, 1, 1) for name in ("mean", "std"))
    images = sample_images(2, channels=3, size=32)
    with torch.no_grad():
        assert torch.equal(model((images / 255 - mean) / std), network(images).logits)


def test_the_best_is_the_best_on_validation(trained):
    plan, storage = trained
    with pytest.raises(InputError, match="no trial of the experiment has a result yet"):
        best_trial(plan.trials[1:], storage)
    for planned, validation, test in zip(plan.trials[1:3], (120.0, 110.0), (10.0, 90.0), strict=True):
        result = {"metric": "accuracy", "validation": {"accuracy": validation}, "test": {"accuracy": test}}
        write_result(storage, planned.run_key, result)
    assert best_trial(plan.trials, storage) is plan.trials[1]


def test_what_is_not_there_is_said(trained, tmp_path):
    plan, storage = trained
    with pytest.raises(InputError, match="has no result yet; run `sweep` or `train`"):
        release(plan.trials[1], plan, storage, folder=tmp_path)
    storage.delete(network_key(plan.trials[0].run_key))
    with pytest.raises(DamagedError, match=r"networks/.* is missing"):
        release(plan.trials[0], plan, storage, folder=tmp_path)
    assert list(tmp_path.glob("model*")) == []


def test_a_program_that_says_something_else_is_not_written(trained, tmp_path, monkeypatch):
    plan, storage = trained
    wrong = {name: lambda data, images: torch.full((len(images), 3), float("nan")) for name in bundle._RUNS}
    monkeypatch.setattr(bundle, "_RUNS", wrong)
    with pytest.raises(SsktError, match="its logits differ from the network's by nan; nothing was written"):
        release(plan.trials[0], plan, storage, folder=tmp_path / "wrong")
    assert not (tmp_path / "wrong").exists()


def test_programs_are_those_of_the_network(trained):
    plan, storage = trained
    network = import_bytes(storage.read(network_key(plan.trials[0].run_key)))
    programs, differences = make_programs(network, channels=1, size=plan.packed.size)
    assert set(programs) == set(differences)
    assert json.dumps(differences)
