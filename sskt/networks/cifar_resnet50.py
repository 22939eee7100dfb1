"""torchvision's ResNet-50 for small images: begun by a 3x3 convolution that leaves the size alone, without pooling."""

from torch import nn

TAPS = ("layer1", "layer2", "layer3", "layer4")


def cifar_resnet50(*, classes: int, channels: int) -> nn.Module:
    """23.7 M parameters, the teacher of SSKD's and CRD's tables."""
    from torchvision.models import resnet50  # imported by whoever asks for it: it takes seconds

    network: nn.Module = resnet50(num_classes=classes)
    network.conv1 = nn.Conv2d(channels, 64, 3, padding=1, bias=False)
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    network.maxpool = nn.Identity()
    return network
