"""Every loss against its formula in NumPy, a number at a time, and its gradient against finite differences."""

import numpy as np
import pytest
import torch

from sskt.map_losses import attention_distance, attention_mse, common_size, layer_norm, layer_norm_mse
from sskt.maps import attention_map
from tests.sskt.test_maps import slow_activity, slow_average, slow_unit


def lesser(left: np.ndarray, right: np.ndarray) -> tuple[int, int]:
    return min(left.shape[-2], right.shape[-2]), min(left.shape[-1], right.shape[-1])


def slow_attention(kind: str, tap: np.ndarray, source: np.ndarray) -> float:
    """The loss of a tap [B, C, H, W] and a source's map [B, h, w]."""
    size = lesser(tap, source)
    mine, its = (slow_unit(slow_average(maps, *size)) for maps in (slow_activity(tap), source))
    total = 0.0
    for row, wanted in zip(mine, its, strict=True):
        squares = [(a - b) ** 2 for a, b in zip(row, wanted, strict=True)]
        total += sum(squares) ** 0.5 if kind == "distance" else sum(squares) / len(squares)
    return total / len(mine)


def slow_layer_norm(features: np.ndarray) -> np.ndarray:
    """Over each image; a variance is counted 1e-10 of the largest square larger than it is."""
    result = np.zeros_like(features)
    for b, image in enumerate(features):
        values = [float(value) for value in image.flat]
        mean = sum(values) / len(values)
        variance = sum((value - mean) ** 2 for value in values) / len(values)
        result[b] = (image - mean) / (variance + 1e-10 * max(value**2 for value in values)) ** 0.5
    return result


def slow_features(target: np.ndarray, source: np.ndarray) -> float:
    size = lesser(target, source)
    wanted = slow_layer_norm(slow_average(source, *size))
    return float(np.mean([(a - b) ** 2 for a, b in zip(slow_average(target, *size).flat, wanted.flat, strict=True)]))


ATTENTION = {"mse": attention_mse, "distance": attention_distance}
LOSSES = {
    "mse": (attention_mse, lambda target, source: slow_attention("mse", target, source)),
    "distance": (attention_distance, lambda target, source: slow_attention("distance", target, source)),
    "features": (layer_norm_mse, slow_features),
}
SIZES = [((4, 4), (4, 4)), ((8, 8), (4, 4)), ((3, 5), (7, 2)), ((1, 1), (3, 3)), ((5, 4), (1, 1))]


def pair(name: str, mine: tuple[int, int], its: tuple[int, int], *, batch: int = 3, channels: int = 3):
    """A target's tap, and what a source of other channels says: unit maps, or features of the target's channels."""
    generator = np.random.default_rng(batch + sum(mine))
    tap, source = (generator.normal(size=(batch, channels, *size)) * 2 + 0.5 for size in (mine, its))
    return tap, source if name == "features" else slow_unit(slow_activity(source)).reshape(batch, *its)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("batch", [1, 4])
def test_value_is_the_formula(name, sizes, batch):
    target, source = pair(name, *sizes, batch=batch)
    loss, slow = LOSSES[name]
    assert loss(torch.tensor(target), torch.tensor(source)).item() == pytest.approx(
        slow(target, source), rel=1e-8, abs=1e-12
    )


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("sizes", SIZES)
def test_gradient_is_that_of_the_formula(name, sizes):
    target, source = pair(name, *sizes, batch=2)
    loss, slow = LOSSES[name]
    learner, step = torch.tensor(target, requires_grad=True), 1e-6
    loss(learner, torch.tensor(source)).backward()
    for index in np.ndindex(target.shape):
        up, down = target.copy(), target.copy()
        up[index] += step
        down[index] -= step
        slope = (slow(up, source) - slow(down, source)) / (2 * step)
        assert learner.grad[index].item() == pytest.approx(slope, rel=1e-5, abs=1e-7)


def hard(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    values = torch.randn(shape, generator=torch.Generator().manual_seed(4))
    if name == "one image of zeros":
        return torch.cat([torch.zeros_like(values[:1]), values[1:]])
    factor = {"zeros": 0.0, "huge": 1e15, "tiny": 1e-25}
    return torch.full(shape, 0.1) if name == "constant" else values * factor.get(name, 1.0)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("case", ["zeros", "one image of zeros", "constant", "huge", "tiny"])
@pytest.mark.parametrize("size", [(1, 1), (3, 4)])
@pytest.mark.parametrize("channels", [1, 3])
def test_degenerate_maps_are_finite(name, case, size, channels):
    shape = (3, channels, *size)
    odd, usual = hard(case, shape), hard("usual", shape)
    for target, source in ((odd, usual), (usual, odd), (odd, odd)):
        learner = target.clone().requires_grad_()
        loss = LOSSES[name][0](learner, source if name == "features" else attention_map(source).view(3, *size))
        loss.backward()
        assert loss.isfinite()
        assert learner.grad.isfinite().all()


@pytest.mark.parametrize("name", ATTENTION)
def test_a_dead_map_is_a_loss_without_a_gradient(name):
    target, source = pair(name, (3, 3), (3, 3))
    learner = torch.tensor(target * 0, requires_grad=True)
    loss = ATTENTION[name](learner, torch.tensor(source))
    loss.backward()
    assert loss.item() == pytest.approx({"mse": 1 / 9, "distance": 1}[name])
    assert learner.grad.abs().max() == 0


@pytest.mark.parametrize("name", ATTENTION)
def test_a_map_of_one_cell_says_nothing(name):
    target, source = pair(name, (1, 1), (4, 4))
    learner = torch.tensor(target, requires_grad=True)
    loss = ATTENTION[name](learner, torch.tensor(source))
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert learner.grad.abs().max() < 1e-12


@pytest.mark.parametrize("name", ATTENTION)
def test_a_perfect_copy_has_no_loss_and_any_scale_is_one(name):
    tap = torch.tensor(pair(name, (5, 4), (5, 4))[0])
    other = torch.tensor(pair(name, (4, 4), (5, 4))[1])
    source = attention_map(tap).view(-1, 5, 4)
    assert ATTENTION[name](tap, source).item() == pytest.approx(0, abs=1e-12)
    assert ATTENTION[name](-7.5 * tap, 0.02 * source).item() == pytest.approx(0, abs=1e-12)
    assert ATTENTION[name](tap, other).item() > 1e-3
    scaled = ATTENTION[name](tap, 3e4 * other).item()
    assert scaled == pytest.approx(ATTENTION[name](tap, other).item(), rel=1e-9)


@pytest.mark.parametrize("name", ATTENTION)
def test_a_source_that_looks_more_finely_is_averaged(name):
    """Its squares are what is averaged, so a target that is the source seen coarsely has no loss."""
    fine = torch.rand(2, 1, 8, 8, dtype=torch.float64)
    coarse = torch.nn.functional.avg_pool2d(fine.square(), 2).sqrt()
    assert ATTENTION[name](coarse, attention_map(fine).view(2, 8, 8)).item() == pytest.approx(0, abs=1e-12)
    assert ATTENTION[name](fine, attention_map(coarse).view(2, 4, 4)).item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("shape", [(2, 5, 1, 1), (3, 2, 4, 3), (1, 7, 2, 2)])
def test_layer_norm_is_the_formula(shape):
    features = np.random.default_rng(0).normal(size=shape) * 5 + 2
    found = layer_norm(torch.tensor(features)).numpy()
    np.testing.assert_allclose(found, slow_layer_norm(features), rtol=1e-9)
    np.testing.assert_allclose(found.mean(axis=(1, 2, 3)), 0, atol=1e-12)
    np.testing.assert_allclose(found.std(axis=(1, 2, 3)), 1, rtol=1e-6)


def test_layer_norm_loses_scale_and_leaves_no_noise():
    features = torch.randn(2, 6, 3, 3)
    torch.testing.assert_close(layer_norm(features * 2.0**80), layer_norm(features))
    assert layer_norm(torch.full((1, 11, 2, 2), 0.1)).abs().max() < 0.05
    assert layer_norm(torch.zeros(1, 4, 2, 2)).abs().max() == 0


def test_what_the_two_losses_ask_for_can_be_had_together():
    """Rectified features: the normalised ones look nearly where the features look, a uniform map does not."""
    image = torch.rand(4, 1, 6, 6, generator=torch.Generator().manual_seed(0)).square()
    features = (torch.randn(4, 32, 6, 6, generator=torch.Generator().manual_seed(1)) * image).relu()
    source = attention_map(features).view(4, 6, 6)
    perfect = attention_distance(layer_norm(features), source)
    assert perfect < 0.1 * attention_distance(torch.ones(4, 1, 6, 6), source)


def test_features_have_no_loss_where_they_are_the_normalised_ones():
    source = torch.randn(3, 6, 2, 4)
    assert layer_norm_mse(layer_norm(source), source).item() == pytest.approx(0, abs=1e-12)
    assert layer_norm_mse(torch.zeros(3, 6, 2, 4), source).item() == pytest.approx(1, rel=1e-4)


def test_common_size_is_the_lesser_of_each_side_and_leaves_equals_alone():
    left, right = torch.randn(2, 3, 4, 6), torch.randn(2, 5, 5, 2)
    mine, its = common_size(left, right)
    assert mine.shape == (2, 3, 4, 2)
    assert its.shape == (2, 5, 4, 2)
    np.testing.assert_allclose(its.numpy(), slow_average(right.numpy(), 4, 2), rtol=1e-5, atol=1e-6)
    same, also = common_size(left, left[:, 0])
    assert torch.equal(same, left)
    assert torch.equal(also, left[:, 0])
