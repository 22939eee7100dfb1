"""VGG for small images, as distillation tables have it: normalised convolutions, an average, one linear layer.

After Simonyan and Zisserman 2015 (arXiv 1409.1556); 8 and 13 count the linear layers of the original, which has three.
"""

from collections.abc import Sequence

from torch import Tensor, nn

TAPS = ("stage1", "stage2", "stage3", "stage4", "stage5")
WIDTHS = (64, 128, 256, 512, 512)


class CifarVGG(nn.Module):
    """Five stages of 3x3 convolutions at full, half, quarter, eighth and again eighth size."""

    def __init__(self, convolutions: int, *, classes: int, channels: int) -> None:
        super().__init__()
        before: Sequence[int] = (channels, *WIDTHS)
        self.stage1, self.stage2, self.stage3, self.stage4, self.stage5 = (
            _stage(seen, width=width, convolutions=convolutions) for seen, width in zip(before, WIDTHS, strict=False)
        )
        self.pool = nn.MaxPool2d(2)
        self.fc = nn.Linear(WIDTHS[-1], classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(module.bias)  # type: ignore[arg-type] # has one

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, H, W] -> logits [B, classes]."""
        for stage in (self.stage1, self.stage2, self.stage3):
            x = self.pool(stage(x))
        x = self.stage5(self.stage4(x))
        logits: Tensor = self.fc(x.mean(dim=(2, 3)))
        return logits


def _stage(channels: int, *, width: int, convolutions: int) -> nn.Sequential:
    """[B, channels, H, W] -> [B, width, H, W]."""
    layers: list[nn.Module] = []
    for seen in (channels, *[width] * (convolutions - 1)):
        layers += [nn.Conv2d(seen, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers)


def cifar_vgg8(*, classes: int, channels: int) -> nn.Module:
    """One convolution a stage; 3.9 M parameters."""
    return CifarVGG(1, classes=classes, channels=channels)


def cifar_vgg13(*, classes: int, channels: int) -> nn.Module:
    """Two convolutions a stage; 9.4 M parameters."""
    return CifarVGG(2, classes=classes, channels=channels)
