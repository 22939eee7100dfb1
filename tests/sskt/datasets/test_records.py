import os
import shutil

import numpy as np
import pytest
from PIL import Image

from sskt.datasets import Record, existing_path, files_signature
from sskt.datasets.records import label_table
from sskt.errors import InputError
from tests.sskt.datasets.pictures import flat_folder


def signature(root):
    return files_signature(root, root.rglob("*.png"))


def test_a_signature_follows_names_sizes_and_times_but_not_the_place_or_the_order(tmp_path):
    root = flat_folder(tmp_path / "a", each=2)
    before = signature(root)
    assert files_signature(root, sorted(root.rglob("*.png"), reverse=True)) == before
    assert signature(shutil.copytree(root, tmp_path / "b")) == before  # copytree keeps times

    file = root / "cat" / "00.png"
    os.utime(file, ns=(1, 1))
    touched = signature(root)
    file.write_bytes(file.read_bytes() + b"\0")
    os.utime(file, ns=(1, 1))
    longer = signature(root)
    file.rename(root / "cat" / "99.png")
    assert len({before, touched, longer, signature(root)}) == 4


def test_a_path_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InputError, match=r"^dataset.test_path is '.*/none'; there is no such file or folder$"):
        existing_path(str(tmp_path / "none"), "dataset.test_path")


def record(label, ignored=()):
    return Record("x", label, None, lambda: Image.new("L", (1, 1)), ignored)


@pytest.mark.parametrize(("label", "holds"), [(2, (2,)), (0, (0,)), (-1, ()), ((), ()), ((1, 3), (1, 3))])
def test_either_kind_of_label_says_what_holds(label, holds):
    assert record(label).holds == holds


def test_a_table_tells_what_holds_from_what_does_not_and_what_is_unknown():
    records = [record((0, 2)), record(()), record(-1), record((1,), ignored=(0, 1)), record(-1, ignored=(1,))]
    table = label_table(records, classes=3)
    assert table.dtype == np.int8
    assert table.tolist() == [[1, 0, 1], [0, 0, 0], [-1, -1, -1], [-1, 1, 0], [-1, -1, -1]]
    assert label_table([], classes=3).shape == (0, 3)
