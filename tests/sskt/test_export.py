"""What is exported is the network alone, and comes back the same."""

import json

import pytest
import safetensors
import safetensors.torch
import torch
from torch import nn

from sskt.errors import InputError
from sskt.export import export_bytes, exported_metadata, import_bytes
from sskt.heads import LinearHead
from sskt.methods.base import StudentWithHeads
from sskt.networks import ImageFormat, TappedNetwork, build_source, build_target
from sskt.settings import InputSettings, SourceSettings, TargetSettings

IMAGE = ImageFormat(channels=3, size=16, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.5))
TARGETS = [
    TargetSettings(architecture="small_cnn", options={"width": 6}),
    TargetSettings(architecture="resnet20", input=InputSettings(size=20, mean=(0.1,), std=(0.7,))),
    TargetSettings(architecture="shufflenet_v2_x0_5", input=InputSettings(size=32)),
    TargetSettings(architecture="small_cnn", options={"width": 5}, input=InputSettings(scale=7 / 3)),
]


def make_target(settings: TargetSettings) -> TappedNetwork:
    target = build_target(settings, classes=7, image=IMAGE)
    # Statistics of its own, so that they have to travel too.
    target(images(8))
    return target.eval()


def images(count: int = 3) -> torch.Tensor:
    return torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("settings", TARGETS, ids=lambda settings: settings.architecture)
def test_what_comes_back_is_the_same(settings):
    target = make_target(settings)
    other = import_bytes(export_bytes(target, settings=settings, classes=7))
    assert not other.training
    assert other.preprocess.values == target.preprocess.values
    assert torch.equal(other(images()).logits, target(images()).logits)
    assert other.blueprint == target.blueprint


def test_anyone_can_read_the_file(tmp_path):
    settings = TARGETS[0]
    path = tmp_path / "target.safetensors"
    path.write_bytes(export_bytes(make_target(settings), settings=settings, classes=7))
    with safetensors.safe_open(path, framework="pt") as file:
        names, metadata = set(file.keys()), file.metadata()
    assert names == set(make_target(settings).network.state_dict())
    assert json.loads(metadata["sskt_network"]) == {
        "format": 1,
        "blueprint": {"architecture": "small_cnn", "options": {"width": 6}},
        "classes": 7,
        "preprocessing": {"channels": 3, "size": None, "mean": [0.5, 0.4, 0.3], "std": [0.2, 0.25, 0.5]},
    }
    assert exported_metadata(str(path)).classes == 7


def test_heads_stay_behind_and_logits_stay_the_same():
    settings = TARGETS[0]
    target = make_target(settings)
    student = StudentWithHeads(target, nn.ModuleDict({"imagenet": LinearHead(target.embedding_dim, 1000)}))
    logits, _ = student(images())
    data = export_bytes(student.target, settings=settings, classes=7)
    assert not any("heads" in name or "imagenet" in name for name in safetensors.torch.load(data))
    assert torch.equal(import_bytes(data)(images()).logits, logits)


def test_equal_networks_are_equal_bytes():
    settings = TARGETS[0]
    target = make_target(settings)
    data = export_bytes(target, settings=settings, classes=7)
    assert data == export_bytes(import_bytes(data), settings=settings, classes=7)
    target.network.fc.bias.data[0] += 1
    assert data != export_bytes(target, settings=settings, classes=7)


def test_what_was_frozen_does_not_show():
    target = make_target(TARGETS[0])
    data = export_bytes(target, settings=TARGETS[0], classes=7)
    target.freeze(("stage1",))
    assert export_bytes(target, settings=TARGETS[0], classes=7) == data
    other = import_bytes(data)
    assert other.frozen == ()
    assert all(parameter.requires_grad for parameter in other.parameters())


def test_a_source_with_a_new_head_is_exported_as_what_it_is(tmp_path):
    """A method that trains the source itself exports another network than the target's settings describe."""
    (tmp_path / "wide.safetensors").write_bytes(export_bytes(make_target(TARGETS[0]), settings=TARGETS[0], classes=7))
    source = build_source(SourceSettings(weights=str(tmp_path / "wide.safetensors")), name="wide")
    source.replace_head(4)
    data = export_bytes(source, settings=TargetSettings(architecture="resnet20"), classes=4)
    assert torch.equal(import_bytes(data)(images()).logits, source.eval()(images()).logits)


def test_tied_weights_travel():
    settings = TARGETS[0]
    target = make_target(settings)
    target.network.stage3[1].weight = target.network.stage2[1].weight
    other = import_bytes(export_bytes(target, settings=settings, classes=7))
    assert torch.equal(other(images()).logits, target(images()).logits)


def test_other_bytes_are_refused():
    with pytest.raises(InputError, match="the bytes are not an exported network; they have to come from export_bytes"):
        import_bytes(safetensors.torch.save({"a": torch.zeros(1)}))


OWN = """
from torch import nn

def make(*, classes):
    return nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, classes))
"""


def test_code_of_ones_own_runs_only_when_named(tmp_path, monkeypatch):
    (tmp_path / "exported_nets.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    settings = TargetSettings(architecture="exported_nets:make")
    target = make_target(settings)
    data = export_bytes(target, settings=settings, classes=7)
    with pytest.raises(InputError, match=r"architecture 'exported_nets:make' .* is code of your own"):
        import_bytes(data)
    other = import_bytes(data, architecture="exported_nets:make")
    assert torch.equal(other(images()).logits, target(images()).logits)
