"""From any image file to the bytes that are packed: uint8, channels first, square."""

import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from sskt.datasets.records import Record

_READ_ERRORS = (
    OSError,  # with it PIL.UnidentifiedImageError
    SyntaxError,
    ValueError,
    TypeError,  # damaged TIFF tags
    RuntimeError,  # damaged AVIF
    EOFError,
    struct.error,
    Image.DecompressionBombError,
)
"""What Pillow raises on files that are damaged, or no images at all."""


@dataclass(frozen=True)
class Unreadable:
    """A sample that could not be decoded."""

    key: str
    reason: str


def decode(record: Record, channels: int | None, size: int | None) -> NDArray[np.uint8] | Unreadable:
    """Load one sample as uint8 [C, H, W], of a clip [3 T, H, W] in colour, or say why that is impossible."""
    try:
        loaded = record.load()
        if isinstance(loaded, tuple):
            return np.concatenate([to_pixels(frame, channels=3, size=size) for frame in loaded])
        return to_pixels(loaded, channels=channels, size=size)
    except _READ_ERRORS as error:
        return Unreadable(record.key, " ".join(str(error).split()) or type(error).__name__)


def to_pixels(image: Image.Image, *, channels: int | None, size: int | None) -> NDArray[np.uint8]:
    """Convert to uint8 [C, H, W]; None keeps grey grey and colour in colour, and the size as it is."""
    image = _grey_or_colour(ImageOps.exif_transpose(image))
    if size is not None:
        image = _square(image, size)
    if channels is not None:
        image = image.convert("L" if channels == 1 else "RGB")
    pixels = np.asarray(image)
    return np.ascontiguousarray(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1))


def _grey_or_colour(image: Image.Image) -> Image.Image:
    if image.mode == "F":
        raise ValueError("its pixels are floating-point numbers, whose range is unknown")
    if image.mode.startswith("I"):  # 16 bits per pixel, of which Pillow's own conversion keeps the wrong ones
        return Image.fromarray((np.clip(np.asarray(image), 0, 65535) >> 8).astype(np.uint8))
    mode = "L" if image.mode in {"1", "L", "LA", "La"} else "RGB"
    if image.has_transparency_data:  # hidden pixels hold anything; what people see is usually on white
        visible = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", visible.size, "white"), visible)
    return image.convert(mode)


def _square(image: Image.Image, size: int) -> Image.Image:
    """Bring the shorter side to `size`, then cut out the centre."""
    scale = size / min(image.size)
    width, height = (max(size, round(side * scale)) for side in image.size)
    if (width, height) != image.size:
        image = image.resize((width, height), Image.Resampling.BILINEAR)
    left, top = (width - size) // 2, (height - size) // 2
    return image.crop((left, top, left + size, top + size))
