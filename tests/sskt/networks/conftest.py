"""Image formats that several tests build for."""

import pytest

from sskt.networks import ImageFormat


@pytest.fixture
def grey_format() -> ImageFormat:
    return ImageFormat(channels=1, size=16, mean=(0.3,), std=(0.4,))


@pytest.fixture
def colour_format() -> ImageFormat:
    return ImageFormat(channels=3, size=32, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.5))
