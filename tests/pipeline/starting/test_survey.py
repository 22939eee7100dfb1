"""What is seen of a folder is what lies there."""

import numpy as np
import pytest
from PIL import Image

from pipeline.starting import survey as module
from pipeline.starting.survey import survey
from sskt.errors import InputError


def picture(file, size=(20, 20), mode="RGB"):
    file.parent.mkdir(parents=True, exist_ok=True)
    shape = (*size[::-1], 3) if mode == "RGB" else size[::-1]
    Image.fromarray(np.full(shape, 90, np.uint8)).save(file)


@pytest.fixture
def photos(tmp_path):
    for number in range(6):
        picture(tmp_path / "cat" / f"{number}.png", size=(20 + number, 40))
    for number in range(2):
        picture(tmp_path / "dog" / f"{number}.png", size=(90, 30 + number))
    picture(tmp_path / "unlabelled" / "x.png", mode="L")
    (tmp_path / "dog" / "broken.jpg").write_bytes(b"\xff\xd8nothing")
    return tmp_path


def test_classes_sizes_and_what_cannot_be_read(photos):
    seen = survey(str(photos))
    assert seen.classes == {"cat": 6, "dog": 3}
    assert (seen.images, seen.unlabelled, seen.looked_at, seen.everything) == (10, 1, 10, True)
    assert seen.sides == (20, 20, 21, 22, 23, 24, 25, 30, 31)
    assert seen.usual_side == 23
    assert [image.key for image in seen.unreadable] == ["dog/broken.jpg"]
    assert not seen.grey
    assert seen.own_splits == ()
    assert seen.largest_share == pytest.approx(6 / 9)


def test_a_datas_own_splits_are_seen(tmp_path):
    for split in ("train", "test"):
        for name in ("a", "b"):
            picture(tmp_path / split / name / "1.png", mode="L")
    seen = survey(str(tmp_path))
    assert seen.own_splits == ("test", "train")
    assert seen.grey


def test_of_many_images_some_are_read_spread_evenly(photos, monkeypatch):
    monkeypatch.setattr(module, "LOOKED_AT", 4)
    seen = survey(str(photos))
    assert (seen.images, seen.looked_at, seen.everything) == (10, 4, False)


def test_what_nothing_can_be_learned_from_is_refused(tmp_path):
    picture(tmp_path / "cat" / "1.png")
    with pytest.raises(InputError, match="has one class, 'cat'; it has to hold a folder for each of two or more"):
        survey(str(tmp_path))
    (tmp_path / "cat" / "1.png").write_bytes(b"")
    (tmp_path / "dog").mkdir()
    (tmp_path / "dog" / "1.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"none of 2 images can be read; cat/1\.png: cannot identify"):
        survey(str(tmp_path))
    with pytest.raises(InputError, match="there is no such file or folder"):
        survey(str(tmp_path / "nowhere"))
