"""The residual networks for small images of He et al. 2016 (arXiv 1512.03385, section 4.2), and four times as wide.

Those of distillation tables that are called x4 begin at 32 channels, and their shortcuts are convolutions.
"""

from torch import Tensor, nn
from torch.nn import functional as F

WIDTHS = (16, 16, 32, 64)
"""Channels of the first convolution and of the three stages."""
WIDE = (32, 64, 128, 256)
TAPS = ("stage1", "stage2", "stage3")


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut without parameters (option A), or one that is projected (option B)."""

    def __init__(self, channels: int, *, width: int, stride: int, projected: bool = False) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.stride = stride
        self.new_channels = width - channels
        self.projection = _projection(channels, width, stride) if projected and channels != width else None

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, H, W] -> [B, width, H / stride, W / stride]."""
        inner = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(inner)) + self._shortcut(x))

    def _shortcut(self, x: Tensor) -> Tensor:
        """Every stride-th pixel, with zeros for the channels that x has not; or what a 1x1 convolution makes of it."""
        if self.projection is not None:
            projected: Tensor = self.projection(x)
            return projected
        if self.stride == 1 and self.new_channels == 0:
            return x
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new_channels))


class CifarResNet(nn.Module):
    """Three stages of n basic blocks at full, half and quarter size; 6 n + 2 layers."""

    def __init__(
        self, blocks: int, *, classes: int, channels: int, widths: tuple[int, ...] = WIDTHS, projected: bool = False
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, widths[0], 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(widths[0])
        stages = [
            _stage(before, width=width, blocks=blocks, stride=stride, projected=projected)
            for before, width, stride in zip(widths, widths[1:], (1, 2, 2), strict=False)
        ]
        self.stage1, self.stage2, self.stage3 = stages
        self.fc = nn.Linear(widths[3], classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, H, W] -> logits [B, classes]."""
        x = F.relu(self.bn(self.conv(x)))
        x = self.stage3(self.stage2(self.stage1(x)))
        logits: Tensor = self.fc(x.mean(dim=(2, 3)))
        return logits


def _stage(channels: int, *, width: int, blocks: int, stride: int, projected: bool) -> nn.Sequential:
    first = BasicBlock(channels, width=width, stride=stride, projected=projected)
    return nn.Sequential(first, *(BasicBlock(width, width=width, stride=1) for _ in range(blocks - 1)))


def _projection(channels: int, width: int, stride: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, width, 1, stride=stride, bias=False), nn.BatchNorm2d(width))


def resnet20(*, classes: int, channels: int) -> nn.Module:
    """0.27 M parameters."""
    return CifarResNet(3, classes=classes, channels=channels)


def resnet32(*, classes: int, channels: int) -> nn.Module:
    """0.46 M parameters."""
    return CifarResNet(5, classes=classes, channels=channels)


def resnet44(*, classes: int, channels: int) -> nn.Module:
    """0.66 M parameters."""
    return CifarResNet(7, classes=classes, channels=channels)


def resnet56(*, classes: int, channels: int) -> nn.Module:
    """0.85 M parameters."""
    return CifarResNet(9, classes=classes, channels=channels)


def resnet110(*, classes: int, channels: int) -> nn.Module:
    """1.73 M parameters."""
    return CifarResNet(18, classes=classes, channels=channels)


def resnet8x4(*, classes: int, channels: int) -> nn.Module:
    """1.23 M parameters."""
    return CifarResNet(1, classes=classes, channels=channels, widths=WIDE, projected=True)


def resnet32x4(*, classes: int, channels: int) -> nn.Module:
    """7.43 M parameters."""
    return CifarResNet(5, classes=classes, channels=channels, widths=WIDE, projected=True)
