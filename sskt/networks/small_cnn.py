"""A small convolutional network for tiny images, quick enough for a laptop without a GPU."""

from torch import Tensor, nn

from sskt.errors import InputError

QUADRANTS = 2
TAPS = ("stage1", "stage2", "stage3")


class SmallCNN(nn.Module):
    """Three convolutions at full, half and quarter size; their average over each quadrant is what is classified.

    One average over the whole image would lose where things are, which tells a 6 from a 9.
    """

    def __init__(self, *, classes: int, channels: int, width: int) -> None:
        super().__init__()
        self.stage1 = _stage(channels, width=width, stride=1)
        self.stage2 = _stage(width, width=2 * width, stride=2)
        self.stage3 = _stage(2 * width, width=2 * width, stride=2)
        self.pool = nn.AdaptiveAvgPool2d(QUADRANTS)
        self.fc = nn.Linear(2 * width * QUADRANTS**2, classes)

    def forward(self, x: Tensor) -> Tensor:
        """[B, channels, H, W] -> logits [B, classes]."""
        x = self.stage3(self.stage2(self.stage1(x)))
        logits: Tensor = self.fc(self.pool(x).flatten(1))
        return logits


def _stage(channels: int, *, width: int, stride: int) -> nn.Sequential:
    """[B, channels, H, W] -> [B, width, H / stride, W / stride]."""
    return nn.Sequential(
        nn.Conv2d(channels, width, 3, stride=stride, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()
    )


def small_cnn(*, classes: int, channels: int, width: int = 32) -> nn.Module:
    """Stages of `width`, 2 `width` and 2 `width` channels."""
    if width < 1:
        raise InputError(f"options.width is {width}; it has to be at least 1")
    return SmallCNN(classes=classes, channels=channels, width=width)
