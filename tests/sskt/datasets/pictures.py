"""Small real image files for tests."""

from pathlib import Path

import numpy as np
from PIL import Image


def picture(seed: int, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> Image.Image:
    """Noise that differs with the seed; `size` is (width, height)."""
    shape = (size[1], size[0], 3) if mode == "RGB" else (size[1], size[0])
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, shape, np.uint8))


def save(path: Path, seed: int, size: tuple[int, int] = (8, 8), mode: str = "RGB") -> Path:
    """Write a picture, lossless for PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    picture(seed, size, mode).save(path)
    return path


def flat_folder(root: Path, classes: tuple[str, ...] = ("cat", "dog"), each: int = 10) -> Path:
    """root/class/NN.png, every picture another one."""
    for label, name in enumerate(classes):
        for index in range(each):
            save(root / name / f"{index:02d}.png", seed=1000 * label + index)
    return root
