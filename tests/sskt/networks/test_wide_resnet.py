"""The wide residual networks against the paper's table and arithmetic."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sskt.networks.preprocess import Preprocess, Preprocessing
from sskt.networks.tapped import TappedNetwork
from sskt.networks.wide_resnet import TAPS, PreActivationBlock, wrn_16_2, wrn_40_1, wrn_40_2


@pytest.mark.parametrize(
    ("build", "depth", "published"), [(wrn_16_2, 16, 703_284), (wrn_40_1, 40, 569_780), (wrn_40_2, 40, 2_255_156)]
)
def test_parameters_and_layers(build, depth, published):
    network = build(classes=100, channels=3)
    assert sum(parameter.numel() for parameter in network.parameters()) == published
    # Shortcuts are not counted as layers.
    layers = [module for name, module in network.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    projections = sum(name.endswith("projection") for name, _ in network.named_modules())
    assert len(layers) - projections == depth - (4 - 2)


def test_stages_halve_the_size():
    preprocess = Preprocess(Preprocessing(3, None, (0.5,) * 3, (0.5,) * 3))
    tapped = TappedNetwork(wrn_16_2(classes=10, channels=3), taps=TAPS, head="fc", preprocess=preprocess)
    features = tapped(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
    assert [tuple(tap.shape) for tap in features.taps] == [(2, 32, 32, 32), (2, 64, 16, 16), (2, 128, 8, 8)]
    assert features.embedding.shape == (2, 128)


def test_the_shortcut_bypasses_activation_only_where_the_width_stays():
    for channels, stride in ((4, 1), (2, 2)):
        block = PreActivationBlock(channels, width=4, stride=stride).eval()
        nn.init.zeros_(block.conv2.weight)
        x = torch.randn(1, channels, 6, 6)
        activated = F.relu(x / (1 + block.bn1.eps) ** 0.5)
        expected = x if stride == 1 else F.conv2d(activated, block.projection.weight, stride=2)
        assert torch.allclose(block(x), expected, atol=1e-6)
