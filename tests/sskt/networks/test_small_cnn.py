"""The small network."""

import pytest
import torch

from sskt.errors import InputError
from sskt.networks.preprocess import Preprocess, Preprocessing
from sskt.networks.small_cnn import TAPS, small_cnn
from sskt.networks.tapped import TappedNetwork


@pytest.mark.parametrize("size", [8, 16, 28, 64])
def test_stages_at_full_half_and_quarter_size(size):
    preprocess = Preprocess(Preprocessing(1, None, (0.5,), (0.5,)))
    tapped = TappedNetwork(small_cnn(classes=10, channels=1, width=6), taps=TAPS, head="fc", preprocess=preprocess)
    features = tapped(torch.zeros(2, 1, size, size, dtype=torch.uint8))
    assert [tuple(tap.shape[1:]) for tap in features.taps] == [
        (6, size, size),
        (12, size // 2, size // 2),
        (12, size // 4, size // 4),
    ]
    assert (tapped.embedding_dim, tapped.classes) == (4 * 12, 10)


@pytest.mark.parametrize("width", [1, 16, 32])
def test_parameters(width):
    convolutions = 9 * (3 * width + width * 2 * width + 2 * width * 2 * width)
    batch_norms = 2 * (width + 2 * width + 2 * width)
    network = small_cnn(classes=5, channels=3, width=width)
    assert sum(p.numel() for p in network.parameters()) == convolutions + batch_norms + 4 * 2 * width * 5 + 5


def test_the_default_width_is_32():
    assert small_cnn(classes=5, channels=3).fc.in_features == 4 * 64


def test_learns_to_tell_bright_from_dark():
    torch.manual_seed(0)
    network = small_cnn(classes=2, channels=1, width=4)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1)
    labels = torch.arange(32) % 2
    images = torch.randn(32, 1, 8, 8) + (2.0 * labels - 1).view(-1, 1, 1, 1)
    for _ in range(30):
        loss = torch.nn.functional.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert (network.eval()(images).argmax(1) == labels).float().mean() == 1.0


def test_width_has_to_be_positive():
    with pytest.raises(InputError, match=r"options\.width is 0; it has to be at least 1"):
        small_cnn(classes=2, channels=1, width=0)
