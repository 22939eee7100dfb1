"""ShuffleNet and ShuffleNetV2 (arXiv 1707.01083, 1807.11164) for small images, as distillation tables have them.

The first layer is a 1x1 convolution that leaves the size alone, where the papers' own quarter it.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

TAPS = ("stage1", "stage2", "stage3")
STEM, GROUPS, EMBEDDING = 24, 3, 1024
"""Channels of the first convolution; groups of version 1; what version 2's head reads."""


def shuffled(x: Tensor, groups: int) -> Tensor:
    """Channels [B, C, H, W] in another order: the first of each group, then the second of each, and so on."""
    batch, channels, height, width = x.shape
    return x.view(batch, groups, channels // groups, height, width).transpose(1, 2).flatten(1, 2)


class GroupedUnit(nn.Module):
    """Of version 1: grouped 1x1, shuffle, 3x3 on each channel alone, grouped 1x1; added to what came, or beside it."""

    def __init__(self, channels: int, *, width: int, stride: int) -> None:
        super().__init__()
        made = width - channels * (stride == 2)
        inner = made // 4
        # The first unit sees so few channels that it does not divide them.
        self.groups = 1 if channels == STEM else GROUPS
        self.squeeze = _normalised(nn.Conv2d(channels, inner, 1, groups=self.groups, bias=False))
        self.depthwise = _depthwise(inner, stride=stride)
        self.expand = _normalised(nn.Conv2d(inner, made, 1, groups=GROUPS, bias=False))
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, H, W] -> [B, width, H / stride, W / stride]."""
        made = self.expand(self.depthwise(shuffled(F.relu(self.squeeze(x)), self.groups)))
        if self.stride == 1:
            return F.relu(x + made)
        return F.relu(torch.cat([F.avg_pool2d(x, 3, stride=2, padding=1), made], dim=1))


class SplitUnit(nn.Module):
    """Of version 2: one half of the channels is left alone, the other goes through 1x1, 3x3 on each alone, 1x1."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.branch = _branch(channels // 2, width=channels // 2, stride=1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, H, W] -> the same shape."""
        kept, seen = x.chunk(2, dim=1)
        return shuffled(torch.cat([kept, self.branch(seen)], dim=1), 2)


class DownUnit(nn.Module):
    """Of version 2, at half the size: both branches see all channels, and each makes half of the new ones."""

    def __init__(self, channels: int, *, width: int) -> None:
        super().__init__()
        pointwise = _normalised(nn.Conv2d(channels, width // 2, 1, bias=False))
        self.shortcut = nn.Sequential(_depthwise(channels, stride=2), pointwise, nn.ReLU())
        self.branch = _branch(channels, width=width // 2, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, H, W] -> [B, width, H / 2, W / 2]."""
        return shuffled(torch.cat([self.shortcut(x), self.branch(x)], dim=1), 2)


class CifarShuffleNet(nn.Module):
    """A 1x1 convolution and three stages, at half, quarter and eighth size."""

    def __init__(self, stages: list[nn.Sequential], *, channels: int, last: nn.Module, head: nn.Linear) -> None:
        super().__init__()
        self.stem = _normalised(nn.Conv2d(channels, STEM, 1, bias=False))
        self.stage1, self.stage2, self.stage3 = stages
        self.last = last
        self.fc = head

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, H, W] -> logits [B, classes]."""
        x = self.stage3(self.stage2(self.stage1(F.relu(self.stem(x)))))
        logits: Tensor = self.fc(self.last(x).mean(dim=(2, 3)))
        return logits


def _normalised(convolution: nn.Conv2d) -> nn.Sequential:
    return nn.Sequential(convolution, nn.BatchNorm2d(convolution.out_channels))


def _depthwise(channels: int, *, stride: int) -> nn.Sequential:
    """A 3x3 on each channel alone, with no activation behind it."""
    return _normalised(nn.Conv2d(channels, channels, 3, stride=stride, padding=1, groups=channels, bias=False))


def _branch(channels: int, *, width: int, stride: int) -> nn.Sequential:
    first, last = nn.Conv2d(channels, width, 1, bias=False), nn.Conv2d(width, width, 1, bias=False)
    return nn.Sequential(_normalised(first), nn.ReLU(), _depthwise(width, stride=stride), _normalised(last), nn.ReLU())


def shufflenet_v1(*, classes: int, channels: int) -> nn.Module:
    """Three groups, stages of 4, 8 and 4 units; 0.95 M parameters."""
    stages, seen = [], STEM
    for width, units in ((240, 4), (480, 8), (960, 4)):
        rest = (GroupedUnit(width, width=width, stride=1) for _ in range(units - 1))
        stages.append(nn.Sequential(GroupedUnit(seen, width=width, stride=2), *rest))
        seen = width
    return CifarShuffleNet(stages, channels=channels, last=nn.Identity(), head=nn.Linear(seen, classes))


def shufflenet_v2(*, classes: int, channels: int) -> nn.Module:
    """The size that the paper calls 1x, stages of 4, 8 and 4 units; 1.36 M parameters."""
    stages, seen = [], STEM
    for width, units in ((116, 4), (232, 8), (464, 4)):
        rest = (SplitUnit(width) for _ in range(units - 1))
        stages.append(nn.Sequential(DownUnit(seen, width=width), *rest))
        seen = width
    last = nn.Sequential(_normalised(nn.Conv2d(seen, EMBEDDING, 1, bias=False)), nn.ReLU())
    return CifarShuffleNet(stages, channels=channels, last=last, head=nn.Linear(EMBEDDING, classes))
