"""The CIFAR residual networks against the paper's arithmetic."""

import numpy as np
import pytest
import torch
from torch import nn

from sskt.networks.cifar_resnet import (
    TAPS,
    BasicBlock,
    resnet8x4,
    resnet20,
    resnet32,
    resnet32x4,
    resnet44,
    resnet56,
    resnet110,
)
from sskt.networks.preprocess import Preprocess, Preprocessing
from sskt.networks.tapped import TappedNetwork


def parameters_by_formula(depth: int, *, classes: int, channels: int) -> int:
    """Convolutions without bias, two numbers per batch-normalised channel, shortcuts without parameters."""
    blocks = (depth - 2) // 6
    total, before = 9 * channels * 16 + 2 * 16, 16
    for width in (16, 32, 64):
        convolutions = 9 * before * width + (2 * blocks - 1) * 9 * width * width
        total, before = total + convolutions + 2 * blocks * 2 * width, width
    return total + 64 * classes + classes


@pytest.mark.parametrize(
    ("build", "depth", "known"),
    [
        (resnet20, 20, 269_722),
        (resnet32, 32, 464_154),
        (resnet44, 44, 658_586),
        (resnet56, 56, 853_018),
        (resnet110, 110, 1_727_962),
    ],
)
def test_parameters(build, depth, known):
    network = build(classes=10, channels=3)
    count = sum(parameter.numel() for parameter in network.parameters())
    assert count == parameters_by_formula(depth, classes=10, channels=3) == known
    assert sum(isinstance(module, nn.Conv2d | nn.Linear) for module in network.modules()) == depth


@pytest.mark.parametrize(("build", "published"), [(resnet8x4, 1_233_540), (resnet32x4, 7_433_860)])
def test_the_wide_ones_have_as_many_parameters_as_the_tables_own(build, published):
    assert sum(parameter.numel() for parameter in build(classes=100, channels=3).parameters()) == published


def test_a_projected_shortcut_is_a_1x1_convolution():
    block = BasicBlock(2, width=4, stride=2, projected=True).eval()
    nn.init.zeros_(block.bn2.weight)
    x = torch.rand(1, 2, 5, 5)
    weight, scale = block.projection[0].weight.detach().numpy()[:, :, 0, 0], (1 + block.projection[1].eps) ** -0.5
    expected = np.maximum(scale * np.einsum("oc,chw->ohw", weight, x[0, :, ::2, ::2].numpy()), 0)
    np.testing.assert_allclose(block(x)[0].detach().numpy(), expected, atol=1e-6)


def test_other_classes_and_channels():
    network = resnet20(classes=7, channels=1)
    assert sum(p.numel() for p in network.parameters()) == parameters_by_formula(20, classes=7, channels=1)


def test_stages_halve_the_size():
    preprocess = Preprocess(Preprocessing(3, None, (0.5,) * 3, (0.5,) * 3))
    tapped = TappedNetwork(resnet20(classes=10, channels=3), taps=TAPS, head="fc", preprocess=preprocess)
    features = tapped(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
    assert [tuple(tap.shape) for tap in features.taps] == [(2, 16, 32, 32), (2, 32, 16, 16), (2, 64, 8, 8)]
    assert torch.allclose(features.embedding, features.taps[2].mean(dim=(2, 3)))
    assert features.logits.shape == (2, 10)


def test_the_shortcut_takes_every_second_pixel_and_pads_with_zeros():
    block = BasicBlock(2, width=4, stride=2).eval()
    # Nothing comes through the convolutions, so what comes out is the shortcut.
    nn.init.zeros_(block.bn2.weight)
    x = np.random.default_rng(0).random((1, 2, 5, 5), dtype=np.float32)
    expected = np.zeros((1, 4, 3, 3), dtype=np.float32)
    for i in range(3):
        for j in range(3):
            expected[0, :2, i, j] = x[0, :, 2 * i, 2 * j]
    np.testing.assert_array_equal(block(torch.from_numpy(x)).detach().numpy(), expected)


def test_convolutions_start_as_he_et_al_draw_them():
    torch.manual_seed(0)
    weight = resnet20(classes=10, channels=3).stage3[1].conv1.weight
    assert weight.std().item() == pytest.approx((2 / (9 * 64)) ** 0.5, rel=0.02)
