"""VGG for small images against the tables' parameter counts."""

import pytest
import torch

from sskt.networks.cifar_vgg import TAPS, WIDTHS, cifar_vgg8, cifar_vgg13
from sskt.networks.preprocess import Preprocess, Preprocessing
from sskt.networks.tapped import TappedNetwork


def parameters_by_formula(convolutions: int, *, classes: int) -> int:
    """Convolutions with bias, two numbers per normalised channel, one linear layer."""
    total, seen = 512 * classes + classes, 3
    for width in WIDTHS:
        for _ in range(convolutions):
            total, seen = total + 9 * seen * width + width + 2 * width, width
    return total


@pytest.mark.parametrize(
    ("build", "convolutions", "published"), [(cifar_vgg8, 1, 3_965_028), (cifar_vgg13, 2, 9_462_180)]
)
def test_parameters(build, convolutions, published):
    count = sum(parameter.numel() for parameter in build(classes=100, channels=3).parameters())
    assert count == parameters_by_formula(convolutions, classes=100) == published


def test_three_stages_are_pooled():
    preprocess = Preprocess(Preprocessing(3, None, (0.5,) * 3, (0.5,) * 3))
    tapped = TappedNetwork(cifar_vgg8(classes=10, channels=3), taps=TAPS, head="fc", preprocess=preprocess)
    features = tapped(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
    sizes = [32, 16, 8, 4, 4]
    assert [tuple(tap.shape) for tap in features.taps] == [
        (2, width, size, size) for width, size in zip(WIDTHS, sizes, strict=True)
    ]
    assert torch.allclose(features.embedding, features.taps[-1].mean(dim=(2, 3)))
