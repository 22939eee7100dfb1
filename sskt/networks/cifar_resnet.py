"""The residual networks for small images of He et al. 2016 (arXiv 1512.03385, section 4.2)."""

from torch import Tensor, nn
from torch.nn import functional as F

WIDTHS = (16, 32, 64)
TAPS = ("stage1", "stage2", "stage3")


class BasicBlock(nn.Module):
    """Two 3x3 convolutions beside a shortcut without parameters (option A)."""

    def __init__(self, channels: int, *, width: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.stride = stride
        self.new_channels = width - channels

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, H, W] -> [B, width, H / stride, W / stride]."""
        inner = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(inner)) + self._shortcut(x))

    def _shortcut(self, x: Tensor) -> Tensor:
        """Every stride-th pixel, with zeros for the channels that x has not."""
        if self.stride == 1 and self.new_channels == 0:
            return x
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.new_channels))


class CifarResNet(nn.Module):
    """Three stages of n basic blocks at full, half and quarter size; 6 n + 2 layers."""

    def __init__(self, blocks: int, *, classes: int, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, WIDTHS[0], 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(WIDTHS[0])
        self.stage1 = _stage(WIDTHS[0], width=WIDTHS[0], blocks=blocks, stride=1)
        self.stage2 = _stage(WIDTHS[0], width=WIDTHS[1], blocks=blocks, stride=2)
        self.stage3 = _stage(WIDTHS[1], width=WIDTHS[2], blocks=blocks, stride=2)
        self.fc = nn.Linear(WIDTHS[2], classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, H, W] -> logits [B, classes]."""
        x = F.relu(self.bn(self.conv(x)))
        x = self.stage3(self.stage2(self.stage1(x)))
        logits: Tensor = self.fc(x.mean(dim=(2, 3)))
        return logits


def _stage(channels: int, *, width: int, blocks: int, stride: int) -> nn.Sequential:
    first = BasicBlock(channels, width=width, stride=stride)
    return nn.Sequential(first, *(BasicBlock(width, width=width, stride=1) for _ in range(blocks - 1)))


def resnet20(*, classes: int, channels: int) -> nn.Module:
    """0.27 M parameters."""
    return CifarResNet(3, classes=classes, channels=channels)


def resnet32(*, classes: int, channels: int) -> nn.Module:
    """0.46 M parameters."""
    return CifarResNet(5, classes=classes, channels=channels)


def resnet44(*, classes: int, channels: int) -> nn.Module:
    """0.66 M parameters."""
    return CifarResNet(7, classes=classes, channels=channels)
