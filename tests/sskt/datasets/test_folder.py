import os

import numpy as np
import pytest
from PIL import Image

from sskt.datasets import DatasetSettings, Record, read_folder
from sskt.datasets.folder import load_image
from sskt.datasets.pixels import Unreadable, decode
from sskt.errors import InputError
from tests.sskt.datasets.pictures import flat_folder, picture, save


def read(root):
    return read_folder(DatasetSettings(kind="folder", path=str(root)))


def summary(raw):
    return {record.key: (record.label, record.split) for record in raw.records}


def refused(root):
    with pytest.raises(InputError) as caught:
        read(root)
    return str(caught.value)


def test_folders_are_classes_in_sorted_order(tmp_path):
    raw = read(flat_folder(tmp_path / "pets", ("dog", "ant", "cat"), each=1))
    assert (raw.name, raw.classes) == ("pets", ("ant", "cat", "dog"))
    assert summary(raw) == {"ant/00.png": (0, None), "cat/00.png": (1, None), "dog/00.png": (2, None)}
    np.testing.assert_array_equal(np.asarray(raw.records[0].load()), np.asarray(picture(1000)))


@pytest.mark.parametrize("validation", ["val", "valid", "validation"])
def test_the_data_may_bring_its_own_splits(tmp_path, validation):
    flat_folder(tmp_path / "train", each=1)
    save(tmp_path / validation / "dog" / "v.png", 1)
    save(tmp_path / "test" / "cat" / "t.png", 2)
    raw = read(tmp_path)
    assert raw.classes == ("cat", "dog")
    assert summary(raw) == {
        "test/cat/t.png": (0, "test"),
        "train/cat/00.png": (0, "train"),
        "train/dog/00.png": (1, "train"),
        f"{validation}/dog/v.png": (1, "validation"),
    }


@pytest.mark.parametrize("name", ["unlabelled", "unlabeled"])
@pytest.mark.parametrize("layout", ["", "train"])
def test_unlabelled_images_are_no_class(tmp_path, name, layout):
    flat_folder(tmp_path / layout, each=1)
    save(tmp_path / name / "u.png", 5)
    raw = read(tmp_path)
    assert raw.classes == ("cat", "dog")
    assert summary(raw)[f"{name}/u.png"] == (-1, "train")
    assert len(raw.records) == 3


def test_unlabelled_images_may_lie_among_the_training_classes(tmp_path):
    flat_folder(tmp_path / "train", each=1)
    save(tmp_path / "train" / "unlabelled" / "u.png", 5)
    assert summary(read(tmp_path))["train/unlabelled/u.png"] == (-1, "train")


def test_a_class_may_be_called_train_or_test(tmp_path):
    raw = read(flat_folder(tmp_path, ("bus", "test", "train"), each=1))
    assert raw.classes == ("bus", "test", "train")
    assert {record.split for record in raw.records} == {None}


def test_hidden_files_and_other_suffixes_are_ignored(tmp_path):
    flat_folder(tmp_path, each=1)
    save(tmp_path / "cat" / ".hidden.png", 1)
    save(tmp_path / ".cache" / "x.png", 1)
    (tmp_path / "cat" / "notes.txt").write_text("x")
    (tmp_path / "readme.md").write_text("x")
    (tmp_path / "cat" / "00.png").rename(tmp_path / "cat" / "00.PNG")
    assert list(summary(read(tmp_path))) == ["cat/00.PNG", "dog/00.png"]


def test_nothing_is_decoded_before_it_is_asked_for(tmp_path):
    (tmp_path / "cat").mkdir()
    (tmp_path / "cat" / "broken.jpg").write_bytes(b"no image")
    record = read(tmp_path).records[0]
    with pytest.raises(OSError, match="cannot identify image file"):
        record.load()


def test_mistakes_are_named(tmp_path):
    assert "there is no such file or folder" in refused(tmp_path / "none")
    assert "holds no class folder; images lie in path/class/" in refused(tmp_path)
    file = save(tmp_path / "x.png", 1)
    assert refused(file) == f"dataset.path is {str(file)!r}, a file; kind 'folder' needs a folder"
    flat_folder(tmp_path, each=1)
    (tmp_path / "empty").mkdir()
    assert f"dataset.path: {str(tmp_path / 'empty')!r} holds no image" in refused(tmp_path)


def test_a_class_that_is_only_held_out_is_refused(tmp_path):
    flat_folder(tmp_path / "train", each=1)
    save(tmp_path / "test" / "eel" / "t.png", 2)
    assert refused(tmp_path) == "dataset.path: class 'eel' occurs only in 'test', not in 'train'"


def test_two_folders_for_one_split_are_refused(tmp_path):
    for split in ("train", "val", "valid"):
        flat_folder(tmp_path / split, each=1)
    assert refused(tmp_path) == "dataset.path: 'val' and 'valid' are both the validation split"


def test_folders_nested_too_deep_are_refused_rather_than_taken_for_classes(tmp_path):
    for split in ("training", "testing"):
        flat_folder(tmp_path / split, each=1)
    assert "holds no image; images lie in path/class/" in refused(tmp_path)


def test_a_file_name_that_is_not_utf8_is_refused(tmp_path):
    flat_folder(tmp_path, each=1)
    file = tmp_path / "cat" / os.fsdecode(b"\xff.png")
    try:
        save(tmp_path / "cat" / "x.png", 1).rename(file)
    except OSError:
        pytest.skip("this file system has UTF-8 names only")
    assert refused(tmp_path) == r"dataset.path: the file name 'cat/\udcff.png' is not UTF-8; rename it"


def test_an_image_far_too_large_is_unreadable_before_anything_is_decoded(tmp_path):
    side = 14_000  # 196 million pixels, of one bit each, in 24 kB
    Image.new("1", (side, side)).save(tmp_path / "bomb.png")
    assert (tmp_path / "bomb.png").stat().st_size < 100_000
    found = decode(Record("bomb", 0, None, lambda: load_image(tmp_path / "bomb.png")), None, 8)
    assert isinstance(found, Unreadable)
    assert "decompression bomb" in found.reason


def test_what_other_programs_would_have_to_draw_is_no_image_whatever_it_is_called(tmp_path):
    drawing = "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(run) system\n%%EOF\n"
    (tmp_path / "a.png").write_text(drawing)
    with Image.open(tmp_path / "a.png") as opened:
        assert opened.format == "EPS"  # which Pillow would hand to Ghostscript
    found = decode(Record("a", 0, None, lambda: load_image(tmp_path / "a.png")), None, 8)
    assert isinstance(found, Unreadable)
    assert "cannot identify image file" in found.reason


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "BMP", "WEBP", "GIF", "TIFF", "PPM", "AVIF"])
def test_every_kind_that_is_listed_is_read(tmp_path, kind):
    Image.new("RGB", (9, 7), "red").save(tmp_path / "a.png", kind)
    assert load_image(tmp_path / "a.png").size == (9, 7)
