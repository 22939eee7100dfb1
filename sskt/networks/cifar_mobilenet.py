"""MobileNetV2 (Sandler et al. 2018, arXiv 1801.04381) for small images, half as wide as the paper's own."""

from typing import NamedTuple

from torch import Tensor, nn

TAPS = ("stage2", "stage3", "stage5", "stage7")
"""The last block at 1/2, 1/4, 1/8 and 1/16 of the size: 12, 16, 48 and 160 channels."""
EMBEDDING = 1280


class Stage(NamedTuple):
    """A row of the paper's table 2."""

    expansion: int
    width: int
    blocks: int
    stride: int


STAGES = (
    Stage(1, 16, 1, 1),
    Stage(6, 24, 2, 1),  # the paper's own stride here, and that of its pooling, are for images of 224
    Stage(6, 32, 3, 2),
    Stage(6, 64, 4, 2),
    Stage(6, 96, 3, 1),
    Stage(6, 160, 3, 2),
    Stage(6, 320, 1, 1),
)


class InvertedResidual(nn.Module):
    """1x1 to more channels, 3x3 on each alone, 1x1 back without activation; a shortcut where the shape stays."""

    def __init__(self, channels: int, *, width: int, stride: int, expansion: int) -> None:
        super().__init__()
        inner = channels * expansion
        self.expand = _normalised(nn.Conv2d(channels, inner, 1, bias=False))
        self.depthwise = _normalised(nn.Conv2d(inner, inner, 3, stride=stride, padding=1, groups=inner, bias=False))
        self.project = nn.Sequential(nn.Conv2d(inner, width, 1, bias=False), nn.BatchNorm2d(width))
        self.same = stride == 1 and channels == width

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, H, W] -> [B, width, H / stride, W / stride]."""
        made: Tensor = self.project(self.depthwise(self.expand(x)))
        return x + made if self.same else made


class CifarMobileNetV2(nn.Module):
    """A convolution that halves the size, seven stages, a 1x1 convolution to 1280 channels, and their average."""

    def __init__(self, *, classes: int, channels: int, factor: float) -> None:
        super().__init__()
        seen = int(32 * factor)
        self.stem = _normalised(nn.Conv2d(channels, seen, 3, stride=2, padding=1, bias=False))
        for number, stage in enumerate(STAGES, 1):
            width = int(stage.width * factor)
            self.add_module(f"stage{number}", _blocks(seen, stage, width=width))
            seen = width
        self.last = _normalised(nn.Conv2d(seen, EMBEDDING, 1, bias=False))
        self.fc = nn.Linear(EMBEDDING, classes)

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, H, W] -> logits [B, classes]."""
        x = self.stem(x)
        for number in range(1, len(STAGES) + 1):
            x = self.get_submodule(f"stage{number}")(x)
        logits: Tensor = self.fc(self.last(x).mean(dim=(2, 3)))
        return logits


def _blocks(channels: int, stage: Stage, *, width: int) -> nn.Sequential:
    first = InvertedResidual(channels, width=width, stride=stage.stride, expansion=stage.expansion)
    rest = (InvertedResidual(width, width=width, stride=1, expansion=stage.expansion) for _ in range(stage.blocks - 1))
    return nn.Sequential(first, *rest)


def _normalised(convolution: nn.Conv2d) -> nn.Sequential:
    return nn.Sequential(convolution, nn.BatchNorm2d(convolution.out_channels), nn.ReLU6())


def mobilenet_v2_half(*, classes: int, channels: int) -> nn.Module:
    """0.81 M parameters."""
    return CifarMobileNetV2(classes=classes, channels=channels, factor=0.5)
