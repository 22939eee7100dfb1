"""The regressor against its arithmetic in NumPy, a convolution at a time."""

import numpy as np
import pytest
import torch

from sskt.maps import MapShape
from sskt.networks.tapped import Features
from sskt.regressors import BINS, LEAST_WIDTH, PyramidPooling, PyramidRegressor
from tests.sskt.test_maps import slow_average

TAPS = (MapShape(3, 8, 8), MapShape(5, 4, 4), MapShape(6, 2, 2))
MAPS = (MapShape(7, 9, 9), MapShape(4, 2, 3), MapShape(9, 5, 5))


def features_of(taps: tuple[MapShape, ...], *, batch: int = 2) -> Features:
    generator = torch.Generator().manual_seed(0)
    maps = tuple(torch.randn(batch, *tap, generator=generator) for tap in taps)
    return Features(maps, torch.randn(batch, 10, generator=generator), torch.randn(batch, 2, generator=generator))


def randomised(module: torch.nn.Module) -> torch.nn.Module:
    """All parameters drawn anew, so that no scale is 1 and no shift 0."""
    generator = torch.Generator().manual_seed(1)
    for parameter in module.parameters():
        parameter.data = torch.randn(parameter.shape, generator=generator) * 0.5
    return module


def numbers(parameter: torch.Tensor) -> np.ndarray:
    return parameter.detach().double().numpy()


def slow_convolution(layer: torch.nn.Conv2d, maps: np.ndarray) -> np.ndarray:
    weight, bias = numbers(layer.weight), numbers(layer.bias)
    kernel = weight.shape[-1]
    padded = np.pad(maps, ((0, 0), (0, 0), (kernel // 2,) * 2, (kernel // 2,) * 2))
    result = np.zeros((len(maps), len(bias), *maps.shape[2:]))
    for i, j in np.ndindex(*maps.shape[2:]):
        patch = padded[:, :, i : i + kernel, j : j + kernel]
        result[:, :, i, j] = np.einsum("bckl,ockl->bo", patch, weight) + bias
    return result


def slow_layer(layer: torch.nn.Sequential, maps: np.ndarray) -> np.ndarray:
    """Convolution, mean 0 and variance 1 over each image, scale and shift by channel, ReLU."""
    values = slow_convolution(layer[0], maps)
    for image in values:
        image[:] = (image - image.mean()) / np.sqrt(image.var() + 1e-5)
        image[:] = image * numbers(layer[1].weight)[:, None, None] + numbers(layer[1].bias)[:, None, None]
    return np.maximum(values, 0)


def slow_enlarged(maps: np.ndarray, height: int, width: int) -> np.ndarray:
    rows = [i * maps.shape[2] // height for i in range(height)]
    columns = [j * maps.shape[3] // width for j in range(width)]
    return maps[:, :, rows][:, :, :, columns]


def slow_pooling(module: PyramidPooling, tap: np.ndarray) -> np.ndarray:
    joined = [tap]
    for part, bins in zip(module.parts, (1, 2, 3, 6), strict=True):
        joined.append(slow_enlarged(slow_layer(part, slow_average(tap, bins, bins)), *tap.shape[2:]))
    return slow_layer(module.join, np.concatenate(joined, axis=1))


def slow_regressor(module: PyramidRegressor, taps: list[np.ndarray], maps: tuple[MapShape, ...]) -> list[np.ndarray]:
    """Top down, for as many taps as there are maps."""
    below, found = None, []
    for level in reversed(range(len(taps))):
        tap, wanted = taps[level], maps[level]
        if below is None:
            below = slow_pooling(module.pooling, tap)
        else:
            below = slow_layer(module.laterals[level], tap) + slow_enlarged(below, *tap.shape[2:])
        size = min(tap.shape[2], wanted.height), min(tap.shape[3], wanted.width)
        smooth = slow_layer(module.smooths[level], below)
        # Projected first, at full size: what the module does the other way round.
        found.insert(0, slow_average(slow_convolution(module.projections[level], smooth), *size))
    return found


@pytest.mark.parametrize("shape", [(3, 4, 4), (5, 1, 1), (2, 7, 9)])
def test_pyramid_pooling_by_hand(shape):
    module = randomised(PyramidPooling(shape[0], width=9))
    tap = torch.randn(2, *shape, generator=torch.Generator().manual_seed(2))
    found = module(tap).detach().numpy()
    assert found.shape == (2, 9, *shape[1:])
    np.testing.assert_allclose(found, slow_pooling(module, tap.double().numpy()), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_regressor_by_hand(count):
    """With as many maps as taps, and with fewer of either, which are then the last ones."""
    taps, maps = TAPS[-count:], MAPS[-count:]
    expected_shapes = [(2, 7, 8, 8), (2, 4, 2, 3), (2, 9, 2, 2)][-count:]
    for given, wanted in ((TAPS, maps), (taps, maps), (taps, MAPS)):
        module, features = randomised(PyramidRegressor(given, wanted, width=8)), features_of(given)
        found = module(features)
        assert [one.shape for one in found] == expected_shapes
        rows = [tap.double().numpy() for tap in features.taps[-count:]]
        for mine, slow in zip(found, slow_regressor(module, rows, maps), strict=True):
            np.testing.assert_allclose(mine.detach().numpy(), slow, rtol=1e-3, atol=1e-3)


def by_formula(taps: tuple[MapShape, ...], maps: tuple[MapShape, ...], width: int) -> int:
    """Convolutions with bias, each but the projections followed by two numbers per channel."""
    part = width // 4
    total = 4 * (taps[-1].channels * part + 3 * part)
    total += 9 * (taps[-1].channels + 4 * part) * width + 3 * width
    total += sum(tap.channels * width + 3 * width for tap in taps[:-1])
    total += len(taps) * (9 * width * width + 3 * width)
    return total + sum((width + 1) * one.channels for one in maps)


@pytest.mark.parametrize("width", [8, 10, 64])
def test_parameters(width):
    module = PyramidRegressor(TAPS, MAPS, width=width)
    assert sum(parameter.numel() for parameter in module.parameters()) == by_formula(TAPS, MAPS, width)


def test_gradients_reach_every_tap_and_parameter_even_from_the_finest_level_alone():
    module, features = PyramidRegressor(TAPS, MAPS, width=LEAST_WIDTH), features_of(TAPS)
    for tap in features.taps:
        tap.requires_grad_()
    module(features)[0].square().sum().backward()
    assert all(tap.grad.abs().sum() > 0 for tap in features.taps)
    sum(one.square().sum() for one in module(features)).backward()
    assert all(parameter.grad is not None for parameter in module.parameters())


def test_an_image_does_not_depend_on_the_others_and_one_will_do():
    module, features = PyramidRegressor(TAPS, MAPS, width=16), features_of(TAPS, batch=3)
    alone = module(Features(tuple(tap[:1] for tap in features.taps), features.embedding[:1], features.logits[:1]))
    for mine, together in zip(alone, module(features), strict=True):
        torch.testing.assert_close(mine, together[:1], rtol=1e-4, atol=1e-5)


def test_degenerate_taps_are_finite():
    taps = (MapShape(2, 1, 1), MapShape(3, 1, 1))
    module = PyramidRegressor(taps, MAPS, width=LEAST_WIDTH)
    for factor in (0.0, 1e15, 1e-25):
        features = Features(tuple(torch.ones(1, *tap) * factor for tap in taps), torch.ones(1, 1), torch.ones(1, 1))
        for tap in features.taps:
            tap.requires_grad_()
        found = module(features)
        sum(one.square().sum() for one in found).backward()
        assert all(one.isfinite().all() for one in found)
        assert all(tap.grad.isfinite().all() for tap in features.taps)


def test_the_least_width_leaves_every_average_two_channels():
    assert LEAST_WIDTH // len(BINS) == 2
    assert PyramidPooling(3, width=LEAST_WIDTH).parts[0][0].out_channels == 2
