"""The wide residual networks for small images of Zagoruyko and Komodakis 2016 (arXiv 1605.07146), without dropout."""

from torch import Tensor, nn
from torch.nn import functional as F

TAPS = ("stage1", "stage2", "stage3")


class PreActivationBlock(nn.Module):
    """Twice normalisation, ReLU and a 3x3 convolution; where the width changes, the shortcut is a 1x1 convolution."""

    def __init__(self, channels: int, *, width: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        same = channels == width and stride == 1
        self.projection = None if same else nn.Conv2d(channels, width, 1, stride=stride, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, H, W] -> [B, width, H / stride, W / stride]."""
        activated = F.relu(self.bn1(x))
        # Where the shortcut is a convolution, it sees what the first convolution sees.
        shortcut = x if self.projection is None else self.projection(activated)
        inner: Tensor = self.conv2(F.relu(self.bn2(self.conv1(activated))))
        return inner + shortcut


class WideResNet(nn.Module):
    """Three stages of n blocks at full, half and quarter size, `factor` times 16, 32 and 64 wide; 6 n + 4 layers."""

    def __init__(self, blocks: int, *, factor: int, classes: int, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, 16, 3, padding=1, bias=False)
        self.stage1 = _stage(16, width=16 * factor, blocks=blocks, stride=1)
        self.stage2 = _stage(16 * factor, width=32 * factor, blocks=blocks, stride=2)
        self.stage3 = _stage(32 * factor, width=64 * factor, blocks=blocks, stride=2)
        self.bn = nn.BatchNorm2d(64 * factor)
        self.fc = nn.Linear(64 * factor, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, H, W] -> logits [B, classes]."""
        x = self.stage3(self.stage2(self.stage1(self.conv(x))))
        logits: Tensor = self.fc(F.relu(self.bn(x)).mean(dim=(2, 3)))
        return logits


def _stage(channels: int, *, width: int, blocks: int, stride: int) -> nn.Sequential:
    first = PreActivationBlock(channels, width=width, stride=stride)
    return nn.Sequential(first, *(PreActivationBlock(width, width=width, stride=1) for _ in range(blocks - 1)))


def wrn_16_2(*, classes: int, channels: int) -> nn.Module:
    """0.70 M parameters."""
    return WideResNet(2, factor=2, classes=classes, channels=channels)


def wrn_40_1(*, classes: int, channels: int) -> nn.Module:
    """0.57 M parameters."""
    return WideResNet(6, factor=1, classes=classes, channels=channels)


def wrn_40_2(*, classes: int, channels: int) -> nn.Module:
    """2.26 M parameters."""
    return WideResNet(6, factor=2, classes=classes, channels=channels)
