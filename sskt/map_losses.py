"""Losses between feature maps of the same images: where two networks look, and what they see there.

The target's maps come as they are, [B, C, H, W]; a source's as `sskt.maps` keeps them. Where sizes differ, the larger
map is averaged down. Each loss returns a scalar and names its reduction.
"""

from torch import Tensor
from torch.nn import functional as F

from sskt.embedding_losses import euclidean, feature_mse
from sskt.maps import activity, in_range
from sskt.relations import unit_rows

EPSILON = 1e-10
"""A variance of a map, relative to its largest value squared, that counts for no more than rounding."""


def attention_mse(target: Tensor, source: Tensor) -> Tensor:
    """Mean over batch and cells of the squared difference of unit maps: those of [B, C, H, W] and of [B, h, w]."""
    return feature_mse(*_unit_maps(target, source))


def attention_distance(target: Tensor, source: Tensor) -> Tensor:
    """Mean over the batch of the L2 distance, not squared, of unit maps: those of [B, C, H, W] and of [B, h, w]."""
    return euclidean(*_unit_maps(target, source))


def layer_norm_mse(target: Tensor, source: Tensor) -> Tensor:
    """Mean over all entries of (target - layer_norm(source))^2: [B, C, H, W] and [B, C, h, w]."""
    target, source = common_size(target, source)
    return F.mse_loss(target, layer_norm(source))


def layer_norm(features: Tensor) -> Tensor:
    """Mean 0 and variance 1 over channels and cells of every image [B, C, h, w]; without variance it becomes zero.

    Each cell by itself would have the same mean square, and contradict what the attention losses ask for.
    """
    # The factor is lost anyway; without it EPSILON means the same for features of any size.
    return F.layer_norm(in_range(features), features.shape[1:], eps=EPSILON)


def common_size(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    """Average two stacks of maps [.., H, W] down to the lesser height and the lesser width of the two."""
    height, width = (min(sizes) for sizes in zip(left.shape[-2:], right.shape[-2:], strict=True))
    return F.adaptive_avg_pool2d(left, (height, width)), F.adaptive_avg_pool2d(right, (height, width))


def _unit_maps(target: Tensor, source: Tensor) -> tuple[Tensor, Tensor]:
    """The attention of a tap [B, C, H, W] and a unit map [B, h, w] as unit vectors of one length."""
    # What is averaged are the squares: unit maps of other sizes would not average to the map of the average.
    mine, its = common_size(activity(target), source)
    return unit_rows(mine.flatten(1)), unit_rows(its.flatten(1))
