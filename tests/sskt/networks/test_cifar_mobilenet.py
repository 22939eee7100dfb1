"""MobileNetV2 for small images against the paper's table and the distillation tables' parameter count."""

import torch
from torch import nn

from sskt.networks.cifar_mobilenet import TAPS, InvertedResidual, mobilenet_v2_half
from sskt.networks.preprocess import Preprocess, Preprocessing
from sskt.networks.tapped import TappedNetwork


def test_parameters():
    network = mobilenet_v2_half(classes=100, channels=3)
    assert sum(parameter.numel() for parameter in network.parameters()) == 812_836
    assert sum(isinstance(module, InvertedResidual) for module in network.modules()) == 17


def test_it_ends_at_a_sixteenth_of_the_size():
    preprocess = Preprocess(Preprocessing(3, None, (0.5,) * 3, (0.5,) * 3))
    tapped = TappedNetwork(mobilenet_v2_half(classes=10, channels=3), taps=TAPS, head="fc", preprocess=preprocess)
    features = tapped(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
    assert [tuple(tap.shape) for tap in features.taps] == [
        (2, 12, 16, 16),
        (2, 16, 8, 8),
        (2, 48, 4, 4),
        (2, 160, 2, 2),
    ]
    assert features.embedding.shape == (2, 1280)


def test_a_shortcut_only_where_the_shape_stays():
    x = torch.randn(1, 4, 6, 6)
    for width, stride, kept in ((4, 1, True), (4, 2, False), (6, 1, False)):
        block = InvertedResidual(4, width=width, stride=stride, expansion=2).eval()
        nn.init.zeros_(block.project[1].weight)
        made = block(x)
        assert torch.equal(made, x) if kept else not made.any()
