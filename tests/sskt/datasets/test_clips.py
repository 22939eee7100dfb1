"""Clips in the layout of UCF101."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from sskt.datasets import DatasetSettings
from sskt.datasets.clips import read_clips
from sskt.datasets.pixels import Unreadable, decode
from sskt.errors import InputError
from tests.sskt.datasets.pictures import picture, save

CLIPS = {"Archery/v_Archery_g01_c01": 20, "Biking/v_Biking_g01_c01": 3, "Archery/v_Archery_g08_c01": 16}


@pytest.fixture
def videos(tmp_path: Path) -> Path:
    """Two clips to train on, one of which is short, and one to test on; frame n of a clip is picture n."""
    root = tmp_path / "UCF101"
    for clip, frames in CLIPS.items():
        for number in range(frames):
            save(root / "frames" / clip / f"{number:05d}.png", number, (12, 8))
    *train, test = CLIPS
    (root / "trainlist01.txt").write_text("".join(f"{clip}.avi {number}\n" for number, clip in enumerate(train, 1)))
    (root / "testlist01.txt").write_text(f"{test}.avi\n")
    return root


def read(root: Path):
    return read_clips(DatasetSettings(kind="clips", path=str(root), image_size=8))


def test_the_lists_say_what_is_trained_and_tested_on(videos):
    raw = read(videos)
    assert (raw.name, raw.classes) == ("UCF101", ("Archery", "Biking"))
    assert [(record.key, record.label, record.split) for record in raw.records] == [
        ("Archery/v_Archery_g01_c01", 0, "train"),
        ("Biking/v_Biking_g01_c01", 1, "train"),
        ("Archery/v_Archery_g08_c01", 0, "test"),
    ]


def test_a_clip_is_its_middle_frames_as_channels(videos):
    long, short, _ = (decode(record, None, 8) for record in read(videos).records)
    assert long.shape == short.shape == (48, 8, 8)
    for place, frame in enumerate(range(2, 18)):
        centre = np.asarray(picture(frame, (12, 8)))[:, 2:10].transpose(2, 0, 1)
        np.testing.assert_array_equal(long[3 * place : 3 * place + 3], centre)
    for place in range(2, 16):
        np.testing.assert_array_equal(short[3 * place : 3 * place + 3], short[6:9])
    assert not np.array_equal(short[3:6], short[6:9])


def test_the_signature_follows_lists_and_clips(videos):
    before = read(videos).signature
    save(videos / "frames" / "Archery/v_Archery_g01_c01" / "99999.png", 1)
    assert read(videos).signature != before


def test_a_clip_without_frames_is_unreadable(videos):
    for file in (videos / "frames" / "Biking/v_Biking_g01_c01").iterdir():
        file.unlink()
    assert isinstance(decode(read(videos).records[1], None, 8), Unreadable)


def test_what_is_missing_is_named_with_where_it_is_had(videos):
    (videos / "testlist01.txt").unlink()
    with pytest.raises(InputError) as caught:
        read(videos)
    assert str(caught.value) == (
        f"dataset.path is {str(videos)!r}, which holds no testlist01.txt; clips and the lists of UCF101 are at "
        "https://www.crcv.ucf.edu/data/UCF101.php, those of HMDB51 at "
        "https://serre-lab.clps.brown.edu/resource/hmdb-a-large-human-motion-database/; docs/experiments.md says how "
        "frames and lists are put there"
    )


def test_a_listed_clip_has_to_be_there_and_its_class_to_be_trained_on(videos):
    (videos / "testlist01.txt").write_text("Fencing/v_Fencing_g01_c01.avi\n")
    with pytest.raises(InputError, match=r"class 'Fencing' is only in 'testlist01\.txt'"):
        read(videos)
    (videos / "testlist01.txt").write_text("Archery/v_Archery_g01_c01.avi\n")
    shutil.rmtree(videos / "frames" / "Archery/v_Archery_g01_c01")
    with pytest.raises(InputError, match=r"'trainlist01\.txt' names a clip without frames, '.*v_Archery_g01_c01'"):
        read(videos)


def test_frames_are_packed_in_colour():
    with pytest.raises(InputError, match=r"dataset\.channels is 1; kind 'clips' packs frames in colour, leave it out"):
        DatasetSettings(kind="clips", path="x", channels=1)
