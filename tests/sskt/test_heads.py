"""The auxiliary heads against the paper's arithmetic."""

import numpy as np
import pytest
import torch

from sskt.errors import InputError
from sskt.heads import EmbeddingHead, LinearHead, TapsHead, TransferModule
from sskt.networks.tapped import Features


def parameters(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def by_formula(taps: tuple[int, ...], classes: int, width: int) -> int:
    """Convolutions with bias, each followed by two numbers per batch-normalised channel; then one linear layer."""
    narrow = width // 2
    total = 0
    for channels in taps:
        total += channels * narrow + narrow + 2 * narrow
        total += 9 * narrow * narrow + narrow + 2 * narrow
        total += narrow * width + width + 2 * width
    return total + width * classes + classes


def make_features(sizes: tuple[tuple[int, int], ...] = ((3, 8), (5, 4), (6, 1))) -> Features:
    generator = torch.Generator().manual_seed(0)
    taps = tuple(torch.randn(4, channels, size, size, generator=generator) for channels, size in sizes)
    return Features(taps, torch.randn(4, 10, generator=generator), torch.randn(4, 2, generator=generator))


@pytest.mark.parametrize(
    ("taps", "classes", "width", "known"),
    [
        ((16, 32, 64), 1000, 64, 103_528),
        ((16, 32, 64), 365, 64, 62_253),
        ((64, 128, 256, 512), 1000, 1000, 12_505_000),
        ((7,), 3, 5, None),
    ],
)
def test_parameters_of_the_transfer_module(taps, classes, width, known):
    count = parameters(TransferModule(taps, classes, width=width))
    assert count == by_formula(taps, classes, width)
    assert known is None or count == known


def test_parameters_of_the_linear_head():
    assert parameters(LinearHead(64, 1000)) == 65_000


def test_the_linear_head_reads_the_embedding():
    head, features = LinearHead(10, 7), make_features()
    expected = features.embedding.numpy() @ head.fc.weight.detach().numpy().T + head.fc.bias.detach().numpy()
    np.testing.assert_allclose(head(features).detach().numpy(), expected, atol=1e-6)


def by_hand(module: TransferModule, features: Features) -> np.ndarray:
    """Bottlenecks in eval mode with fresh statistics, in NumPy loops."""
    pooled = []
    for bottleneck, tap in zip(module.bottlenecks, features.taps, strict=True):
        values = tap.double().numpy()
        for layer, stride, padding in ((bottleneck[0], 1, 0), (bottleneck[3], 2, 1), (bottleneck[6], 1, 0)):
            weight, bias = layer.weight.detach().double().numpy(), layer.bias.detach().double().numpy()
            kernel = weight.shape[-1]
            padded = np.pad(values, ((0, 0), (0, 0), (padding, padding), (padding, padding)))
            size = (padded.shape[-1] - kernel) // stride + 1
            result = np.zeros((len(values), len(bias), size, size))
            for i in range(size):
                for j in range(size):
                    patch = padded[:, :, i * stride : i * stride + kernel, j * stride : j * stride + kernel]
                    result[:, :, i, j] = np.einsum("bckl,ockl->bo", patch, weight) + bias
            values = np.maximum(result / np.sqrt(1 + 1e-5), 0)
        pooled.append(values.mean(axis=(2, 3)))
    joined = np.mean(pooled, axis=0) if module.combine == "mean" else np.sum(pooled, axis=0)
    return joined @ module.fc.weight.detach().double().numpy().T + module.fc.bias.detach().double().numpy()


@pytest.mark.parametrize("combine", ["mean", "sum"])
def test_the_transfer_module_by_hand(combine):
    torch.manual_seed(0)
    module, features = TransferModule((3, 5, 6), 7, width=8, combine=combine).eval(), make_features()
    np.testing.assert_allclose(module(features).detach().numpy(), by_hand(module, features), atol=1e-5)


def test_mean_and_sum_differ_by_the_number_of_taps():
    torch.manual_seed(0)
    mean, features = TransferModule((3, 5, 6), 7, width=8).eval(), make_features()
    total = TransferModule((3, 5, 6), 7, width=8, combine="sum").eval()
    total.load_state_dict(mean.state_dict())
    bias = mean.fc.bias
    assert torch.allclose(total(features) - bias, 3 * (mean(features) - bias), atol=1e-5)


@pytest.mark.parametrize("read", [(0,), (2,), (0, 2)])
def test_it_reads_the_taps_that_it_is_told_to(read):
    module, features = TransferModule((3, 5, 6), 7, width=8, combine="sum", read=read).eval(), make_features()
    some = TransferModule(tuple((3, 5, 6)[tap] for tap in read), 7, width=8, combine="sum").eval()
    some.load_state_dict(module.state_dict())
    with torch.no_grad():
        expected = some(Features(tuple(features.taps[tap] for tap in read), features.embedding, features.logits))
        assert torch.equal(module(features), expected)
    for tap in features.taps:
        tap.requires_grad_()
    module(features).square().sum().backward()
    assert [tap.grad is not None for tap in features.taps] == [place in read for place in range(3)]


def test_gradients_reach_every_tap():
    features = make_features()
    for tap in features.taps:
        tap.requires_grad_()
    TransferModule((3, 5, 6), 7, width=8)(features).square().sum().backward()
    assert all(tap.grad.abs().sum() > 0 for tap in features.taps)


@pytest.mark.parametrize(
    ("taps", "choices", "message"),
    [
        ((), {}, "at least one tap"),
        ((3,), {"width": 1}, "width is 1; it has to be at least 2"),
        ((3,), {"combine": "max"}, "combine 'max' is unknown; known: mean, sum"),
    ],
)
def test_wrong_choices_are_named(taps, choices, message):
    with pytest.raises(InputError, match=message):
        TransferModule(taps, 7, **choices)


def test_the_embedding_head_adds_nothing():
    features = make_features()
    assert EmbeddingHead()(features) is features.embedding
    assert parameters(EmbeddingHead()) == 0


def test_the_taps_head_adds_nothing():
    features = make_features()
    assert TapsHead()(features) is features.taps
    assert parameters(TapsHead()) == 0
