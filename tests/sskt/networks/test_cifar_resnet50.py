"""ResNet-50 for small images."""

import torch

from sskt.networks.cifar_resnet50 import TAPS, cifar_resnet50
from sskt.networks.preprocess import Preprocess, Preprocessing
from sskt.networks.tapped import TappedNetwork


def test_parameters_and_shapes():
    network = cifar_resnet50(classes=100, channels=3)
    assert sum(parameter.numel() for parameter in network.parameters()) == 23_705_252
    preprocess = Preprocess(Preprocessing(3, None, (0.5,) * 3, (0.5,) * 3))
    tapped = TappedNetwork(network, taps=TAPS, head="fc", preprocess=preprocess).eval()
    with torch.no_grad():
        features = tapped(torch.zeros(1, 3, 32, 32, dtype=torch.uint8))
    assert [tuple(tap.shape) for tap in features.taps] == [
        (1, 256, 32, 32),
        (1, 512, 16, 16),
        (1, 1024, 8, 8),
        (1, 2048, 4, 4),
    ]
