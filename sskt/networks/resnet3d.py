"""torchvision's ResNet-18 for clips (Tran et al. 2018, arXiv 1711.11248), whose frames come as channels."""

from torch import Tensor, nn

from sskt.errors import InputError

STAGES = ("layer1", "layer2", "layer3", "layer4")
TAPS = ("tap1", "tap2", "tap3", "tap4")
"""The stages' maps, averaged over time."""


class TimeMean(nn.Module):
    """What a stage sees, as one map."""

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, T, H, W] -> [B, C, H, W]."""
        return x.mean(dim=2)


class ClipResNet(nn.Module):
    """Parts are called as in torchvision, so that its weights fit."""

    def __init__(self, network: nn.Module, *, frames: int) -> None:
        super().__init__()
        self.frames = frames
        for name in ("stem", *STAGES, "fc"):
            self.add_module(name, network.get_submodule(name))
        for name in TAPS:
            self.add_module(name, TimeMean())

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3 frames, H, W] -> logits [B, classes]."""
        batch, _, height, width = x.shape
        x = self.get_submodule("stem")(x.view(batch, self.frames, 3, height, width).transpose(1, 2))
        for stage, tap in zip(STAGES, TAPS, strict=True):
            x = self.get_submodule(stage)(x)
            seen = self.get_submodule(tap)(x)
        logits: Tensor = self.get_submodule("fc")(seen.mean(dim=(2, 3)))
        return logits


def resnet3d_18(*, classes: int, channels: int) -> nn.Module:
    """33 M parameters."""
    from torchvision.models.video import r3d_18  # imported by whoever asks for it: it takes seconds

    if channels % 3:
        raise InputError(f"resnet3d_18 sees clips in colour, three channels a frame; the images have {channels} in all")
    return ClipResNet(r3d_18(num_classes=classes), frames=channels // 3)
