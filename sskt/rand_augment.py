"""RandAugment (arXiv 1909.13719): operations drawn for each view from a fixed list, all at one magnitude, in integers.

An entry of the list takes the images that drew it, uint8 [N, C, S, S], the magnitude, 0 to MAGNITUDES, and signs of 1
or -1, int64 [N, 1, 1, 1]. What a magnitude means is the scale of torchvision's operation of the same name.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from sskt import view_colours as colours
from sskt.view_grids import ONE, Draw, Grid, bounded_by, gather, identity

MAGNITUDES = 30

_SINES = tuple(round(ONE * math.sin(math.radians(degrees))) for degrees in range(MAGNITUDES + 1))
_COSINES = tuple(round(ONE * math.cos(math.radians(degrees))) for degrees in range(MAGNITUDES + 1))

_Augmentation = Callable[[Tensor, int, Tensor], Tensor]


def _moved(images: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Show the pixels that hold the points y, x: 16.16 pixels from the top left corner, twice as large."""
    size, shown = images.shape[-1], images.new_ones((), dtype=torch.bool)
    return gather(images, bounded_by(Grid(y >> 17, x >> 17, shown), size))


def _centres(images: Tensor) -> tuple[Tensor, Tensor]:
    """The y and x of the pixels' centres, twice as large, to stay whole: [1, 1, S, 1] and [1, 1, 1, S]."""
    grid = identity(images.shape[-1], images.device)
    return 2 * grid.y + 1, 2 * grid.x + 1


def _shear_x(images: Tensor, magnitude: int, sign: Tensor) -> Tensor:
    """Up to 0.3 pixels sideways per pixel downwards; the top stays."""
    y, x = _centres(images)
    return _moved(images, y * ONE, x * ONE + sign * ((ONE * magnitude + 50) // 100) * y)


def _shear_y(images: Tensor, magnitude: int, sign: Tensor) -> Tensor:
    """Up to 0.3 pixels downwards per pixel sideways; the left stays."""
    y, x = _centres(images)
    return _moved(images, y * ONE + sign * ((ONE * magnitude + 50) // 100) * x, x * ONE)


def _translate_x(images: Tensor, magnitude: int, sign: Tensor) -> Tensor:
    """Up to 150/331 of the side sideways, in whole pixels."""
    y, x = _centres(images)
    return _moved(images, y * ONE, (x - 2 * sign * (5 * magnitude * images.shape[-1] // 331)) * ONE)


def _translate_y(images: Tensor, magnitude: int, sign: Tensor) -> Tensor:
    """Up to 150/331 of the side downwards, in whole pixels."""
    y, x = _centres(images)
    return _moved(images, (y - 2 * sign * (5 * magnitude * images.shape[-1] // 331)) * ONE, x * ONE)


def _rotate(images: Tensor, magnitude: int, sign: Tensor) -> Tensor:
    """Up to 30 degrees about the centre."""
    size = images.shape[-1]
    y, x = (line - size for line in _centres(images))
    sine, cosine = sign * _SINES[magnitude], _COSINES[magnitude]
    return _moved(images, cosine * y + sine * x + size * ONE, cosine * x - sine * y + size * ONE)


def _factor(magnitude: int, sign: Tensor) -> Tensor:
    """Up to 0.9 off 1."""
    return colours.UNIT + sign * ((colours.UNIT * 3 * magnitude + 50) // 100)


AUGMENTATIONS: dict[str, _Augmentation] = {
    "identity": lambda images, _magnitude, _sign: images,
    "shear_x": _shear_x,
    "shear_y": _shear_y,
    "translate_x": _translate_x,
    "translate_y": _translate_y,
    "rotate": _rotate,
    "brightness": lambda images, magnitude, sign: colours.brightness(images, _factor(magnitude, sign)),
    "saturation": lambda images, magnitude, sign: colours.saturation(images, _factor(magnitude, sign)),
    "contrast": lambda images, magnitude, sign: colours.contrast(images, _factor(magnitude, sign)),
    "sharpness": lambda images, magnitude, sign: colours.sharpness(images, _factor(magnitude, sign)),
    "posterize": lambda images, magnitude, _sign: colours.posterize(images, 8 - (8 * magnitude + 30) // 60),
    "solarize": lambda images, magnitude, _sign: colours.solarize(images, (511 - 17 * magnitude) // 2),
    "autocontrast": lambda images, _magnitude, _sign: colours.autocontrast(images),
    "equalize": lambda images, _magnitude, _sign: colours.equalize(images),
}
"""In an order that the draws go by."""


def rand_augment(images: Tensor, draw: Draw, values: tuple[int, ...]) -> Tensor:
    """Apply `number` operations at one magnitude, each drawn anew and signed at random. images: uint8 [B, C, S, S]."""
    number, magnitude = values
    for layer in range(number):
        chosen = draw(2 * layer, len(AUGMENTATIONS)).view(-1)
        signs = 1 - 2 * draw(2 * layer + 1, 2)
        images = _each_its_own(images, chosen, magnitude, signs)
    return images


def _each_its_own(images: Tensor, chosen: Tensor, magnitude: int, signs: Tensor) -> Tensor:
    """Apply to each image the operation of its number, all images of one operation together."""
    counts: list[int] = chosen.bincount(minlength=len(AUGMENTATIONS)).tolist()
    shown, groups = images.clone(), torch.split(chosen.argsort(stable=True), counts)
    for augment, rows in zip(AUGMENTATIONS.values(), groups, strict=True):
        if len(rows):
            shown[rows] = augment(images[rows], magnitude, signs[rows])
    return shown
