import io
import json
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.packing.parquet_images import read_parquet_images
from sskt.datasets import DatasetSettings
from sskt.errors import InputError
from tests.sskt.datasets.pictures import picture

CIFAR10 = Path(os.environ.get("SSKT_CIFAR10", Path(__file__).parents[3] / "../shared/data/cifar10"))
needs_cifar10 = pytest.mark.skipif(not CIFAR10.is_dir(), reason=f"no CIFAR-10 in {CIFAR10}; set SSKT_CIFAR10")


INTEGER, LIST = pa.int64(), pa.list_(pa.int64())


def png(seed: int) -> bytes:
    file = io.BytesIO()
    picture(seed).save(file, "PNG")
    return file.getvalue()


def write(
    path: Path,
    labels: list,
    *,
    metadata: dict | None = None,
    plain: bool = False,
    first: int = 0,
    kind: pa.DataType = INTEGER,
) -> Path:
    """Rows 0.. of pictures first.., in row groups of two."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = [png(first + row) for row in range(len(labels))]
    image = pa.array(data) if plain else pa.array([{"bytes": each, "path": None} for each in data])
    table = pa.table({"image": image, "label": pa.array(labels, kind)})
    pq.write_table(table.replace_schema_metadata(metadata), path, row_group_size=2)
    return path


def read(path, test_path=None):
    test = None if test_path is None else str(test_path)
    return read_parquet_images(DatasetSettings(kind="parquet", path=str(path), test_path=test))


def refused(path, test_path=None) -> str:
    with pytest.raises(InputError) as caught:
        read(path, test_path)
    return str(caught.value)


def summary(raw):
    return [(record.key, record.label, record.split) for record in raw.records]


HUGGING_FACE = {"huggingface": json.dumps({"info": {"features": {"label": {"names": ["cat", "dog"]}}}})}


@pytest.mark.parametrize("plain", [False, True])
def test_rows_of_one_file(tmp_path, plain):
    raw = read(write(tmp_path / "pets" / "train.parquet", [1, 0, 1], metadata=HUGGING_FACE, plain=plain))
    assert (raw.name, raw.classes) == ("pets", ("cat", "dog"))
    assert summary(raw) == [
        ("train.parquet:0", 1, None),
        ("train.parquet:1", 0, None),
        ("train.parquet:2", 1, None),
    ]
    for row in (2, 0, 1):
        np.testing.assert_array_equal(np.asarray(raw.records[row].load()), np.asarray(picture(row)))


def test_a_folder_of_files_and_a_test_file_of_the_same_name(tmp_path):
    write(tmp_path / "a" / "x.parquet", [0, 1])
    write(tmp_path / "a" / "y.parquet", [1], first=10)
    (tmp_path / "a" / "readme.md").write_text("x")
    raw = read(tmp_path / "a", write(tmp_path / "b" / "x.parquet", [0], first=20))
    assert summary(raw) == [
        ("x.parquet:0", 0, "train"),
        ("x.parquet:1", 1, "train"),
        ("y.parquet:0", 1, "train"),
        ("test/x.parquet:0", 0, "test"),
    ]
    np.testing.assert_array_equal(np.asarray(raw.records[2].load()), np.asarray(picture(10)))
    np.testing.assert_array_equal(np.asarray(raw.records[3].load()), np.asarray(picture(20)))


@pytest.mark.parametrize(
    ("metadata", "classes"),
    [
        ({"classes": '["cat, tame", "dog"]'}, ("cat, tame", "dog")),
        ({"classes": "cat,dog"}, ("cat", "dog")),
        ({"huggingface": "{}", "classes": "cat,dog"}, ("cat", "dog")),
    ],
)
def test_class_names_in_the_metadata(tmp_path, metadata, classes):
    raw = read(write(tmp_path / "x.parquet", [1, 0], metadata=metadata))
    assert raw.classes == classes
    assert [record.label for record in raw.records] == [1, 0]


def test_labels_without_names_are_their_own_names(tmp_path):
    raw = read(write(tmp_path / "x.parquet", [7, 3, 12]), write(tmp_path / "t.parquet", [12]))
    assert raw.classes == ("3", "7", "12")
    assert [record.label for record in raw.records] == [1, 0, 2, 2]


@pytest.mark.parametrize("metadata", [None, HUGGING_FACE])
def test_null_and_minus_one_are_unlabelled(tmp_path, metadata):
    raw = read(write(tmp_path / "x.parquet", [0, None, -1, 1], metadata=metadata))
    assert [record.label for record in raw.records] == [0, -1, -1, 1]
    assert len(raw.classes) == 2


def hugging_face(label: object) -> dict:
    return {"huggingface": json.dumps({"info": {"features": {"feature": {"dtype": "string"}, "label": label}}})}


NAMES = {"names": ["cat", "dog", "owl"], "_type": "ClassLabel"}


@pytest.mark.parametrize("kind", [LIST, pa.large_list(pa.int32())])
@pytest.mark.parametrize(
    "label", [{"feature": NAMES, "_type": "Sequence"}, {"feature": NAMES, "length": -1, "_type": "List"}, [NAMES]]
)
def test_lists_of_labels_are_a_multi_label_set(tmp_path, kind, label):
    labels = [[2, 0], [], None, [1], [1, 1]]
    raw = read(write(tmp_path / "x.parquet", labels, metadata=hugging_face(label), kind=kind))
    assert raw.multi_label
    assert raw.classes == ("cat", "dog", "owl")
    assert [record.label for record in raw.records] == [(0, 2), (), -1, (1,), (1,)]


def test_lists_of_labels_without_names_are_numbered(tmp_path):
    train = write(tmp_path / "x.parquet", [[7, 3], []], kind=LIST)
    raw = read(train, write(tmp_path / "t.parquet", [[12, 7]], kind=LIST))
    assert raw.classes == ("3", "7", "12")
    assert [record.label for record in raw.records] == [(0, 1), (), (1, 2)]
    assert not read(write(tmp_path / "one.parquet", [7, 3])).multi_label


def test_mistakes_in_lists_of_labels_are_named(tmp_path):
    names = hugging_face({"feature": NAMES, "_type": "Sequence"})
    for unknown in (None, -1):
        file = write(tmp_path / "x.parquet", [[0], [1, unknown]], metadata=names, kind=LIST)
        assert refused(file) == (
            f"dataset.path: {str(file)!r} has {unknown} in a list of labels; "
            "a row of which nothing is known is null as a whole"
        )
    high = write(tmp_path / "high.parquet", [[0, 3]], metadata=names, kind=LIST)
    assert "has the label 3, but names 3 classes; labels have to be 0..2" in refused(high)
    lists, plain = write(tmp_path / "a.parquet", [[0]], kind=LIST), write(tmp_path / "b.parquet", [0])
    assert refused(lists, plain) == (
        f"dataset.test_path: only one of {str(plain)!r} and {str(lists)!r} has lists as label"
    )
    texts = write(tmp_path / "texts.parquet", [["cat"]], kind=pa.list_(pa.string()))
    assert "has the columns image: " in refused(texts)


def test_a_row_without_bytes_cannot_be_loaded(tmp_path):
    image = pa.array([None, {"bytes": None, "path": "x.png"}], pa.struct({"bytes": pa.binary(), "path": pa.string()}))
    pq.write_table(pa.table({"image": image, "label": pa.array([0, 0])}), tmp_path / "x.parquet")
    for record in read(tmp_path / "x.parquet").records:
        with pytest.raises(OSError, match="the row holds no image bytes"):
            record.load()


def test_the_signature_follows_both_paths(tmp_path):
    train, test = write(tmp_path / "train.parquet", [0, 1]), write(tmp_path / "test.parquet", [0, 1])
    before = read(train, test).signature
    assert read(train, test).signature == before
    os.utime(test, ns=(1, 1))
    assert read(train, test).signature != before
    assert read(train).signature != read(test).signature


def test_the_columns_of_cifar100_as_hugging_face_has_it(tmp_path):
    features = {"fine_label": {"names": ["apple", "bear"]}, "coarse_label": {"names": ["fruit", "animal", "tree"]}}
    table = pa.table({
        "img": pa.array([{"bytes": png(row), "path": None} for row in range(2)]),
        "fine_label": pa.array([1, 0]),
        "coarse_label": pa.array([2, 2]),
    })  # fmt: skip
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    (tmp_path / "CIFAR100").mkdir()
    pq.write_table(table.replace_schema_metadata(metadata), tmp_path / "CIFAR100" / "train-00000-of-00001.parquet")
    raw = read(tmp_path / "CIFAR100")
    assert (raw.name, raw.classes) == ("CIFAR100", ("apple", "bear"))
    assert [record.label for record in raw.records] == [1, 0]
    np.testing.assert_array_equal(np.asarray(raw.records[1].load()), np.asarray(picture(1)))


def test_wrong_columns_are_listed(tmp_path):
    file = tmp_path / "x.parquet"
    pq.write_table(pa.table({"pixels": pa.array([b""]), "label": pa.array([0])}), file)
    assert refused(file) == (
        f"dataset.path: {str(file)!r} has the columns pixels: binary, label: int64; "
        "needed are image (binary, or struct with bytes) and label (an integer, or a list of integers)"
    )
    pq.write_table(pa.table({"image": pa.array(["x.png"]), "label": pa.array([0])}), file)
    assert "has the columns image: string, label: int64" in refused(file)
    pq.write_table(pa.table({"image": pa.array([b""]), "label": pa.array(["cat"])}), file)
    assert refused(write(tmp_path / "t.parquet", [0]), file).startswith(f"dataset.test_path: {str(file)!r} has the")


def test_other_mistakes_are_named(tmp_path):
    good = write(tmp_path / "good.parquet", [0, 1], metadata=HUGGING_FACE)
    (tmp_path / "empty").mkdir()
    assert refused(tmp_path / "empty") == f"dataset.path is {str(tmp_path / 'empty')!r}, which holds no *.parquet file"
    assert refused(good, tmp_path / "none").startswith(f"dataset.test_path is {str(tmp_path / 'none')!r}; there is no")
    broken = tmp_path / "broken.parquet"
    broken.write_bytes(good.read_bytes()[:-10])
    assert refused(broken).startswith(f"dataset.path: {str(broken)!r} is not a readable Parquet file: ")
    high = write(tmp_path / "high.parquet", [0, 2], metadata=HUGGING_FACE)
    assert refused(high) == (
        f"dataset.path: {str(high)!r} has the label 2, but names 2 classes; "
        "labels have to be 0..1, or null where there is none"
    )
    other = write(tmp_path / "other.parquet", [0], metadata={"classes": "cat,cow"})
    assert refused(good, other) == f"dataset.test_path: {str(other)!r} names other classes than {str(good)!r}"
    odd = write(tmp_path / "odd.parquet", [0], metadata={"classes": "[cat"})
    assert refused(odd).startswith(f"dataset.path: {str(odd)!r} has class names that are not JSON: ")


@pytest.mark.slow
@needs_cifar10
def test_the_test_images_of_cifar10():
    raw = read(CIFAR10 / "test.parquet")
    assert raw.classes == tuple("airplane automobile bird cat deer dog frog horse ship truck".split())  # noqa: SIM905
    assert np.bincount([record.label for record in raw.records]).tolist() == [1000] * 10
    assert {record.load().size for record in raw.records[::500]} == {(32, 32)}
