"""A picture is drawn whatever the album holds."""

import dataclasses
import io

import pytest
import torch
from PIL import Image

from pipeline.inspecting.album import Album, Said, compare_encodings
from pipeline.inspecting.picture import draw


def said(name, classes, *, near=True):
    logits = torch.randn(20, 2, classes, generator=torch.Generator().manual_seed(1))
    return Said(
        name=name, labels=[f"$x_{number}$ a rather long name of a class" for number in range(classes)],
        encoding="fp16", probabilities=logits.softmax(dim=-1), seen=torch.rand(3, 3, 8, 8),
        neighbours=torch.randint(0, 20, (20, 4)) if near else None, compared=compare_encodings(logits[:, 0]),
    )  # fmt: skip


def album(*all_said, channels=1):
    return Album(
        title="mine", ids=(0, 7, 19), rows=torch.tensor([0, 7, 19]), truth=("cat", "$dog", "unlabelled"),
        views=torch.randint(0, 256, (3, 2, channels, 6, 6), dtype=torch.uint8),
        first_views=torch.randint(0, 256, (20, channels, 6, 6), dtype=torch.uint8), said=all_said,
    )  # fmt: skip


@pytest.mark.parametrize(
    "shown",
    [album(), album(said("a", 10)), album(said("a", 1000), said("b", 2, near=False), channels=3)],
    ids=["no source", "one", "two, in colour"],
)
def test_a_png_that_shows_more_for_every_source(shown):
    picture = Image.open(io.BytesIO(draw(shown)))
    assert picture.format == "PNG"
    empty = Image.open(io.BytesIO(draw(dataclasses.replace(shown, said=()))))
    assert (picture.width > empty.width) == bool(shown.said)
