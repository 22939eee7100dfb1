"""ShuffleNets for small images against the distillation tables' parameter counts."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from sskt.networks.cifar_shufflenet import (
    TAPS,
    GroupedUnit,
    SplitUnit,
    shuffled,
    shufflenet_v1,
    shufflenet_v2,
)
from sskt.networks.preprocess import Preprocess, Preprocessing
from sskt.networks.tapped import TappedNetwork


@pytest.mark.parametrize(
    ("build", "published", "widths", "embedding"),
    [(shufflenet_v1, 949_258, (240, 480, 960), 960), (shufflenet_v2, 1_355_528, (116, 232, 464), 1024)],
)
def test_parameters_and_shapes(build, published, widths, embedding):
    network = build(classes=100, channels=3)
    assert sum(parameter.numel() for parameter in network.parameters()) == published
    preprocess = Preprocess(Preprocessing(3, None, (0.5,) * 3, (0.5,) * 3))
    tapped = TappedNetwork(network, taps=TAPS, head="fc", preprocess=preprocess)
    features = tapped(torch.zeros(2, 3, 32, 32, dtype=torch.uint8))
    assert [tuple(tap.shape) for tap in features.taps] == [
        (2, width, size, size) for width, size in zip(widths, (16, 8, 4), strict=True)
    ]
    assert features.embedding.shape == (2, embedding)


def test_shuffling_takes_one_channel_of_each_group_in_turn():
    x = torch.arange(6.0).view(1, 6, 1, 1)
    assert shuffled(x, 2).flatten().tolist() == [0, 3, 1, 4, 2, 5]
    assert shuffled(x, 3).flatten().tolist() == [0, 2, 4, 1, 3, 5]
    assert torch.equal(shuffled(x, 1), x)


def test_a_unit_of_version_1_adds_to_what_came_or_stands_beside_its_average():
    x = torch.randn(1, 12, 6, 6)
    for width, stride, expected in ((12, 1, x), (24, 2, F.avg_pool2d(x, 3, stride=2, padding=1))):
        unit = GroupedUnit(12, width=width, stride=stride).eval()
        nn.init.zeros_(unit.expand[1].weight)
        made = unit(x)
        assert made.shape[1] == width
        assert torch.equal(made[:, :12], F.relu(expected))
        assert not made[:, 12:].any()


def test_a_unit_of_version_2_leaves_one_half_alone():
    x = torch.randn(1, 8, 5, 5)
    made = SplitUnit(8).eval()(x)
    assert torch.equal(made[:, ::2], x[:, :4])
