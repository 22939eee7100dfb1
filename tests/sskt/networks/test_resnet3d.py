"""A network for clips."""

import pytest
import torch
from torchvision.models.video import r3d_18

from sskt.errors import InputError
from sskt.networks import ImageFormat, build_target
from sskt.networks.resnet3d import resnet3d_18
from sskt.settings import TargetSettings


def test_it_is_torchvisions_network_on_frames_that_come_as_channels():
    torch.manual_seed(0)
    theirs, ours = r3d_18(num_classes=5).eval(), resnet3d_18(classes=5, channels=12).eval()
    ours.load_state_dict(theirs.state_dict())
    clip = torch.rand(2, 3, 4, 16, 16)
    frames = torch.cat([clip[:, :, time] for time in range(4)], dim=1)
    with torch.no_grad():
        torch.testing.assert_close(ours(frames), theirs(clip))


def test_parameters():
    count = sum(parameter.numel() for parameter in resnet3d_18(classes=400, channels=48).parameters())
    assert count == 33_371_472


def test_taps_are_maps():
    image = ImageFormat(channels=48, size=32, mean=(0.5,) * 48, std=(0.25,) * 48)
    target = build_target(TargetSettings(architecture="resnet3d_18"), classes=7, image=image)
    assert target.tap_shapes(32, 48) == ((64, 16, 16), (128, 8, 8), (256, 4, 4), (512, 2, 2))
    assert target.embedding_dim == 512


def test_grey_frames_are_refused():
    with pytest.raises(InputError, match="three channels a frame; the images have 16 in all"):
        resnet3d_18(classes=5, channels=16)
