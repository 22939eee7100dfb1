"""torchvision's classifiers, and its weights from a local cache that stands for its download site."""

import copy
import re

import pytest
import torch
import torchvision
from torch import nn
from torchvision.models import get_model_weights

from sskt.errors import InputError
from sskt.networks.preprocess import Preprocess, Preprocessing
from sskt.networks.tapped import TappedNetwork, last_linear
from sskt.networks.torchvision_nets import TAPS, current_names, torchvision_architecture, torchvision_names
from sskt.networks.weights import fingerprint, load_into

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}


def build(name: str, *, classes: int = 7, **options) -> nn.Module:
    return torchvision_architecture(name).build(classes=classes, channels=3, options=options)


# RegNets compute their widths with tensors, so they cannot be built without memory; the smallest two stand for them.
LARGE_REGNETS = {name for name in torchvision_names() if name.startswith("regnet") and "400mf" not in name}


@pytest.mark.parametrize("name", sorted(set(torchvision_names()) - LARGE_REGNETS))
def test_every_classifier_builds_with_its_classes_and_ends_in_its_last_linear_layer(name):
    with torch.device("cpu" if name.startswith("regnet") else "meta"):
        network = build(name)
    head = network.get_submodule(last_linear(network))
    assert head.out_features == 7
    modules = dict(network.named_modules())
    assert set(TAPS.get(name, ())) <= set(modules)


def test_squeezenets_are_the_only_ones_left_out():
    left_out = set(torchvision.models.list_models(module=torchvision.models)) - set(torchvision_names())
    assert left_out == {"squeezenet1_0", "squeezenet1_1"}


@pytest.mark.parametrize(
    ("name", "shapes"),
    [
        ("resnet18", [(64, 16), (128, 8), (256, 4), (512, 2)]),
        ("mobilenet_v2", [(24, 16), (32, 8), (64, 4), (96, 4), (160, 2), (320, 2)]),
        ("densenet121", [(128, 8), (256, 4), (512, 2)]),
    ],
)
def test_taps(name, shapes):
    architecture = torchvision_architecture(name)
    network = build(name)
    preprocess = Preprocess(Preprocessing(channels=3, size=None, **IMAGENET))
    tapped = TappedNetwork(network, taps=architecture.taps, head=last_linear(network), preprocess=preprocess).eval()
    with torch.no_grad():
        features = tapped(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    assert [tuple(tap.shape[1:]) for tap in features.taps] == [(width, size, size) for width, size in shapes]
    assert tapped.tap_shapes(64, 3) == tuple((width, size, size) for width, size in shapes)
    assert features.embedding.shape == (1, tapped.embedding_dim)


@pytest.mark.parametrize("name", ["googlenet", "inception_v3"])
def test_networks_with_auxiliary_classifiers_return_one_tensor_in_training_too(name):
    with torch.device("meta"):
        network = build(name).train()
        assert network(torch.zeros(2, 3, 96, 96)).shape == (2, 7)
    # The pretrained weights come from another framework, whose scaling of pixels this switch adds.
    assert network.transform_input


@pytest.mark.parametrize(
    ("name", "size"), [("resnet18", 224), ("inception_v3", 299), ("efficientnet_b1", 240), ("mobilenet_v2", 224)]
)
def test_preprocessing_is_that_of_the_default_weights(name, size):
    assert torchvision_architecture(name).preprocessing() == Preprocessing(channels=3, size=size, **IMAGENET)


def test_options_reach_the_network():
    assert build("resnet18", width_per_group=64, zero_init_residual=True).layer1[0].bn2.weight.abs().sum() == 0
    with torch.device("meta"):
        assert build("vit_b_16", image_size=32).seq_length == 5


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"width": 3}, "options entry 'width' is unknown; .*groups, width_per_group, zero_init_residual"),
        ({"groups": "two"}, r"options\.groups is 'two'; it has to be of type int"),
        ({"groups": 2}, r"options {'groups': 2} do not fit resnet18"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(InputError, match=message):
        build("resnet18", **options)


@pytest.fixture
def torch_home(tmp_path, monkeypatch):
    """An empty cache, and no way to the outside: nothing listens on port 9."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    for variable in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(variable, "http://127.0.0.1:9")
    for variable in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    folder = tmp_path / "hub" / "checkpoints"
    folder.mkdir(parents=True)
    return folder


@pytest.mark.parametrize("name", ["shufflenet_v2_x0_5", "mnasnet0_5"])
def test_named_weights_load_from_the_local_cache(name, torch_home):
    network = build(name, classes=1000)
    url = get_model_weights(name).DEFAULT.url
    torch.save(network.state_dict(), torch_home / url.rpartition("/")[2])
    weights = torchvision_architecture(name).named_weights("DEFAULT")
    other = build(name, classes=1000)
    assert fingerprint(other) != fingerprint(network)
    load_into(other, weights.state, label=weights.label)
    assert fingerprint(other) == fingerprint(network)
    assert weights.classes == 1000
    assert weights.preprocessing == Preprocessing(channels=3, size=224, **IMAGENET)


def test_a_download_that_fails_names_the_weights_and_the_way_out(torch_home):
    with pytest.raises(InputError) as caught:
        torchvision_architecture("resnet18").named_weights("IMAGENET1K_V1")
    message = str(caught.value)
    assert message.startswith("weights 'IMAGENET1K_V1' of resnet18 could not be had from https://")
    assert message.endswith("give the path of a local copy of that file instead")
    assert list(torch_home.iterdir()) == []


def test_unknown_weights_are_listed():
    with pytest.raises(
        InputError, match=r"weights of resnet50 'IMAGENET1K_V3' is unknown; .*IMAGENET1K_V1, IMAGENET1K_V2"
    ):
        torchvision_architecture("resnet50").named_weights("IMAGENET1K_V3")


def test_old_densenet_files_get_the_names_of_today():
    with torch.device("meta"):
        today = copy.copy(build("densenet121").state_dict())
    old = {re.sub(r"\.(norm|conv)([12])\.", r".\1.\2.", name): tensor for name, tensor in today.items()}
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    assert set(current_names(old)) == set(today)
    assert set(current_names(today)) == set(today)


def test_weights_of_auxiliary_classifiers_are_dropped():
    names = ["fc.weight", "aux1.fc1.weight", "aux2.fc1.weight", "AuxLogits.fc.weight"]
    assert list(current_names(dict.fromkeys(names, torch.zeros(1)))) == ["fc.weight"]
