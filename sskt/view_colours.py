"""Operations on colours, in integers, so they replay bit-exactly everywhere. Images are uint8 [B, C, S, S], in and out.

A factor is int64 [B, 1, 1, 1] in 1/256; one of 256 changes nothing. Results are rounded and cut to 0..255.
"""

import torch
from torch import Tensor

from sskt.view_grids import ONE

UNIT = 1 << 8
"""The factor 1."""

_LUMA = (19595, 38470, 7471)  # 0.299, 0.587, 0.114 of ITU-R BT.601 in 1/65536; they add up to ONE


def grey(images: Tensor) -> Tensor:
    """The luma of three channels, uint8 [B, 1, S, S]; images of other channels have no colours and stay as they are."""
    if images.shape[1] != len(_LUMA):
        return images
    red, green, blue = (images[:, [channel]].int() * weight for channel, weight in enumerate(_LUMA))
    return (red + green + blue + ONE // 2 >> 16).to(torch.uint8)


def _blend(images: Tensor, base: Tensor, factor: Tensor) -> Tensor:
    """Go from the base towards the images, and beyond them where the factor is above 1."""
    start = base.int()
    return (start + ((images.int() - start) * factor.int() + UNIT // 2 >> 8)).clamp(0, 255).to(torch.uint8)


def brightness(images: Tensor, factor: Tensor) -> Tensor:
    """Darken towards black, or brighten."""
    return _blend(images, images.new_zeros(1, 1, 1, 1), factor)


def contrast(images: Tensor, factor: Tensor) -> Tensor:
    """Go towards the image's mean grey, rounded, or away from it."""
    shades = grey(images).flatten(1)
    count = shades.shape[1]
    mean = (shades.sum(dim=1) + count // 2) // count
    return _blend(images, mean.view(-1, 1, 1, 1), factor)


def saturation(images: Tensor, factor: Tensor) -> Tensor:
    """Go towards the grey image, or away from it."""
    return _blend(images, grey(images), factor)


def sharpness(images: Tensor, factor: Tensor) -> Tensor:
    """Go towards the blurred image (3x3, the centre weighing 5 of 13), or away from it; the border stays."""
    blurred, pixels = images.clone(), images.int()
    if min(images.shape[-2:]) > 2:
        lines = pixels[:, :, :-2] + pixels[:, :, 1:-1] + pixels[:, :, 2:]
        total = lines[..., :-2] + lines[..., 1:-1] + lines[..., 2:] + 4 * pixels[:, :, 1:-1, 1:-1]
        blurred[:, :, 1:-1, 1:-1] = (total + 6) // 13
    return _blend(images, blurred, factor)


def solarize(images: Tensor, threshold: int) -> Tensor:
    """Invert what is at least as bright as the threshold."""
    return images ^ ((images >= threshold).to(torch.uint8) * 255)


def posterize(images: Tensor, bits: int) -> Tensor:
    """Keep the highest bits of every value."""
    return images & (256 - (1 << (8 - bits)))


def invert(images: Tensor) -> Tensor:
    """The negative."""
    return images ^ 255


def autocontrast(images: Tensor) -> Tensor:
    """Spread each channel's values over 0..255; a channel of one value stays."""
    low, high = (edge.view(*images.shape[:2], 1, 1).int() for edge in images.flatten(2).aminmax(dim=2))
    flat, span = low == high, (high - low).clamp(min=1)
    scale = torch.where(flat, ONE, (255 * ONE + span // 2) // span)
    return ((images.int() - low * ~flat) * scale + ONE // 2 >> 16).to(torch.uint8)


def equalize(images: Tensor) -> Tensor:
    """Flatten each channel's histogram; a channel stays where all but its brightest pixels are below 255."""
    values = images.flatten(2).flatten(0, 1).long()
    first = torch.arange(len(values), device=images.device).view(-1, 1) * 256
    counts = (values + first).view(-1).bincount(minlength=len(values) * 256).view(-1, 256)
    brightest = counts.gather(1, values.amax(dim=1, keepdim=True))
    step = (values.shape[1] - brightest) // 255
    below = counts.cumsum(dim=1) - counts
    table = ((below + step // 2) // step.clamp(min=1)).clamp(max=255)
    table = torch.where(step == 0, torch.arange(256, device=images.device), table).to(torch.uint8)
    return table.gather(1, values).view_as(images)
