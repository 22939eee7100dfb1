import io
import tempfile

import numpy as np
import pytest
from PIL import Image

from pipeline.packing.spill import Spill, decode_all
from sskt.datasets import DatasetSettings, RawDataset, Record
from sskt.errors import InputError

SETTINGS = DatasetSettings(kind="digits")


def record(key: str, shade: int, *, mode: str = "L") -> Record:
    colour = shade if mode == "L" else (shade, 0, 0)
    return Record(key, 0, None, lambda: Image.new(mode, (4, 4), colour))


def broken(key: str) -> Record:
    return Record(key, 0, None, lambda: Image.open(io.BytesIO(b"no picture")))


def spilled(*records: Record, settings: DatasetSettings = SETTINGS):
    with tempfile.TemporaryFile() as file:
        spill = Spill(file, settings)
        left_out = decode_all(RawDataset("made", ("a",), records, "x"), settings, spill, None)
        return np.array(spill.images()), [kept.key for kept in spill.records], left_out


def test_images_come_back_in_their_order_and_stay_grey():
    images, keys, left_out = spilled(*(record(str(shade), shade) for shade in (9, 3, 7)))
    assert images.shape == (3, 1, 4, 4)
    assert (images[:, 0, 0, 0].tolist(), keys, left_out) == ([9, 3, 7], ["9", "3", "7"], ())


def test_frames_of_a_clip_come_back_as_channels():
    frames = tuple(Image.new("L", (4, 4), shade) for shade in range(16))
    clip = Record("clip", 0, None, lambda: frames)
    images, _, _ = spilled(clip, clip, settings=DatasetSettings(kind="clips", path="x"))
    assert images.shape == (2, 48, 4, 4)
    assert images[1, :, 0, 0].tolist() == [shade for shade in range(16) for _ in range(3)]


def test_one_coloured_image_makes_all_coloured():
    images, _, _ = spilled(record("a", 5), record("b", 6, mode="RGB"))
    assert images[:, :, 0, 0].tolist() == [[5, 5, 5], [6, 0, 0]]


def test_unreadable_images_are_left_out_only_where_that_is_allowed():
    with pytest.raises(InputError, match=r"dataset\.max_unreadable is 0, but 1 image\(s\) cannot be read: 'b'"):
        spilled(record("a", 1), broken("b"))
    allowed = DatasetSettings(kind="digits", max_unreadable=2)
    images, keys, left_out = spilled(broken("c"), record("a", 1), broken("b"), settings=allowed)
    assert (len(images), keys, left_out) == (1, ["a"], ("b", "c"))


def test_progress_is_told_to_the_end():
    told = []
    with tempfile.TemporaryFile() as file:
        records = tuple(record(str(number), 1) for number in range(300))
        raw = RawDataset("made", ("a",), records, "x")
        decode_all(raw, SETTINGS, Spill(file, SETTINGS), lambda done, total: told.append((done, total)))
    assert told == [(256, 300), (300, 300)]
