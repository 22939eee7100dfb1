"""Maps against their formulas in NumPy, a cell at a time."""

import numpy as np
import pytest
import torch

from sskt.maps import (
    GRID,
    MapShape,
    activity,
    attention_map,
    coarse_features,
    from_the_last,
    in_range,
    split_attention,
    split_features,
)
from sskt.sources import Source
from tests.sskt.learning import IMAGE, image_set, source

SHAPES = [(1, 1, 1), (3, 1, 5), (2, 4, 4), (5, 7, 3), (4, 6, 9)]


def slow_activity(tap: np.ndarray) -> np.ndarray:
    """Mean of the squares over the channels, [B, C, H, W] -> [B, H, W]."""
    batch, channels, height, width = tap.shape
    result = np.zeros((batch, height, width))
    for b, i, j in np.ndindex(result.shape):
        result[b, i, j] = sum(tap[b, c, i, j] ** 2 for c in range(channels)) / channels
    return result


def slow_unit(maps: np.ndarray) -> np.ndarray:
    """Each map of a batch as one vector of length 1; zero stays zero."""
    rows = []
    for one in maps:
        values = [float(value) for value in one.flat]
        length = sum(value**2 for value in values) ** 0.5
        rows.append([value / length if length > 0 else 0.0 for value in values])
    return np.array(rows)


def slow_average(maps: np.ndarray, height: int, width: int) -> np.ndarray:
    """Average [.., H, W] to height x width cells; cell i covers floor(i H / h) up to ceil((i + 1) H / h)."""
    result = np.zeros((*maps.shape[:-2], height, width))
    for i in range(height):
        for j in range(width):
            top, bottom = i * maps.shape[-2] // height, -(-(i + 1) * maps.shape[-2] // height)
            left, right = j * maps.shape[-1] // width, -(-(j + 1) * maps.shape[-1] // width)
            result[..., i, j] = maps[..., top:bottom, left:right].mean(axis=(-2, -1))
    return result


def tap_of(shape: tuple[int, ...], *, batch: int = 3) -> np.ndarray:
    return np.random.default_rng(sum(shape)).normal(size=(batch, *shape)) * 2 + 0.3


@pytest.mark.parametrize("shape", SHAPES)
def test_the_attention_map_is_the_formula(shape):
    tap = tap_of(shape)
    found = attention_map(torch.tensor(tap)).numpy()
    np.testing.assert_allclose(found, slow_unit(slow_activity(tap)), rtol=1e-10)
    np.testing.assert_allclose(slow_unit(activity(torch.tensor(tap)).numpy()), found, rtol=1e-10)


@pytest.mark.parametrize("shape", [(3, 1, 5), (2, 3, 2)])
def test_the_gradient_of_the_attention_map_is_that_of_the_formula(shape):
    tap, step = tap_of(shape, batch=2), 1e-6
    weights = np.random.default_rng(1).normal(size=(2, shape[1] * shape[2]))
    learner = torch.tensor(tap, requires_grad=True)
    (attention_map(learner) * torch.tensor(weights)).sum().backward()
    for index in np.ndindex(tap.shape):
        up, down = tap.copy(), tap.copy()
        up[index] += step
        down[index] -= step
        difference = slow_unit(slow_activity(up)) - slow_unit(slow_activity(down))
        assert learner.grad[index].item() == pytest.approx((difference * weights).sum() / (2 * step), abs=1e-7)


@pytest.mark.parametrize("scale", [2.0**90, 2.0**-90, -3.0])
def test_a_factor_does_not_change_where_a_network_looks(scale):
    tap = torch.tensor(tap_of((2, 4, 4)), dtype=torch.float32)
    scaled = torch.cat([tap[:1] * scale, tap[1:]])
    torch.testing.assert_close(attention_map(scaled), attention_map(tap))


def test_a_zero_map_stays_zero_without_a_gradient():
    tap = torch.cat([torch.zeros(1, 2, 3, 3), torch.ones(1, 2, 3, 3)]).requires_grad_()
    maps = attention_map(tap)
    assert maps[0].abs().max() == 0
    assert maps[1].tolist() == pytest.approx([1 / 3] * 9)
    maps[:, 0].sum().backward()
    assert tap.grad[0].abs().max() == 0
    assert tap.grad[1].abs().max() > 0
    assert tap.grad.isfinite().all()


def test_in_range_divides_each_image_by_its_largest_value():
    tap = tap_of((2, 3, 3))
    expected = np.array([one / np.abs(one).max() for one in tap])
    np.testing.assert_allclose(in_range(torch.tensor(tap)).numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_coarse_features_are_averages_over_the_grid(shape):
    tap = tap_of(shape)
    found = coarse_features(torch.tensor(tap)).numpy()
    coarse = MapShape(*shape).coarse
    assert coarse == (shape[0], min(shape[1], 4), min(shape[2], 4))
    expected = slow_average(tap, coarse.height, coarse.width)
    np.testing.assert_allclose(found, expected.reshape(len(tap), -1), rtol=1e-12)


def test_cells_and_grid():
    assert MapShape(7, 5, 3).cells == 15
    assert GRID == 4


def test_outputs_split_into_the_maps_they_were_joined_from():
    shapes = [MapShape(*shape) for shape in SHAPES]
    taps = [torch.tensor(tap_of(shape)) for shape in SHAPES]
    attention = split_attention(torch.cat([attention_map(tap) for tap in taps], dim=1), shapes)
    features = split_features(torch.cat([coarse_features(tap) for tap in taps], dim=1), shapes)
    for tap, shape, looks, sees in zip(taps, shapes, attention, features, strict=True):
        expected = slow_unit(slow_activity(tap.numpy())).reshape(3, shape.height, shape.width)
        np.testing.assert_allclose(looks.numpy(), expected, rtol=1e-10)
        assert sees.shape == (3, *shape.coarse)
        np.testing.assert_allclose(sees.numpy(), slow_average(tap.numpy(), *sees.shape[2:]), rtol=1e-12)


def test_rows_of_another_length_do_not_split():
    with pytest.raises(RuntimeError):
        split_attention(torch.zeros(2, 10), [MapShape(2, 3, 3)])
    with pytest.raises(RuntimeError):
        split_features(torch.zeros(2, 10), [MapShape(2, 3, 3)])


def test_a_sources_outputs_are_the_maps_of_its_taps():
    one: Source = source()
    images = image_set().images[:5]
    outputs = one.outputs(images, ("attention", "features"))
    with torch.no_grad():
        taps = one.network(images).taps
    shapes = one.map_shapes(IMAGE)
    looks, sees = split_attention(outputs["attention"], shapes), split_features(outputs["features"], shapes)
    assert len(looks) == len(sees) == len(taps) == 3
    for tap, look, see in zip(taps, looks, sees, strict=True):
        values = tap.double().numpy()
        np.testing.assert_allclose(look.flatten(1).numpy(), slow_unit(slow_activity(values)), atol=1e-6)
        np.testing.assert_allclose(see.numpy(), slow_average(values, *see.shape[2:]), atol=1e-5)


def test_pairs_are_made_from_the_last():
    assert from_the_last("abc", "xyz") == [("a", "x"), ("b", "y"), ("c", "z")]
    assert from_the_last("abc", "z") == [("c", "z")]
    assert from_the_last("c", (1, 2, 3)) == [("c", 3)]
    assert from_the_last("", "xyz") == []
