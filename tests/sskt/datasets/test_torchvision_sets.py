import hashlib
import inspect
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image

from sskt.datasets import DatasetSettings, read_torchvision
from sskt.datasets.torchvision_sets import SETS
from sskt.datasets.voc import VOC_CLASSES
from sskt.errors import InputError, UnknownNameError
from tests.sskt.datasets.pictures import save
from tests.sskt.datasets.test_voc import classes, write_annotation


def read(name: str, root: Path):
    return read_torchvision(DatasetSettings(kind="torchvision", name=name, path=str(root)))


def noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(len(shape)).integers(0, 256, shape, np.uint8)


def write_idx(path: Path, values: np.ndarray) -> None:
    """The format of the MNIST family."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(struct.pack(f">I{values.ndim}I", 0x0800 + values.ndim, *values.shape) + values.tobytes())


def write_fashion(root: Path) -> dict[str, np.ndarray]:
    images = {"train": noise(6, 28, 28), "t10k": noise(4, 28, 28)}
    for part, values in images.items():
        write_idx(root / "FashionMNIST" / "raw" / f"{part}-images-idx3-ubyte", values)
        write_idx(root / "FashionMNIST" / "raw" / f"{part}-labels-idx1-ubyte", np.arange(len(values), dtype=np.uint8))
    return images


def md5(path: Path) -> str:
    return hashlib.md5(path.read_bytes()).hexdigest()  # noqa: S324  torchvision's own check


def test_a_set_with_a_train_flag(tmp_path):
    images = write_fashion(tmp_path)
    raw = read("FashionMNIST", tmp_path)
    assert raw.name == "FashionMNIST"
    assert raw.classes[0] == "T-shirt/top"
    assert [(record.key, record.label, record.split) for record in raw.records] == [
        *((f"train/{index}", index, "train") for index in range(6)),
        *((f"test/{index}", index, "test") for index in range(4)),
    ]
    np.testing.assert_array_equal(np.asarray(raw.records[1].load()), images["train"][1])
    np.testing.assert_array_equal(np.asarray(raw.records[6].load()), images["t10k"][0])


def test_the_signature_follows_the_files_of_this_set_only(tmp_path):
    write_fashion(tmp_path)
    before = read("FashionMNIST", tmp_path).signature
    (tmp_path / "another-set.bin").write_bytes(b"x")
    assert read("FashionMNIST", tmp_path).signature == before
    write_idx(tmp_path / "FashionMNIST" / "raw" / "t10k-images-idx3-ubyte", noise(4, 28, 28))
    assert read("FashionMNIST", tmp_path).signature != before


def test_cifar10(tmp_path, monkeypatch):
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    pixels = noise(2, 3072)
    for name in ("data_batch_1", "test_batch"):
        (folder / name).write_bytes(pickle.dumps({"data": pixels, "labels": [1, 0]}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": ["airplane", "automobile"]}))
    cifar = torchvision.datasets.CIFAR10
    monkeypatch.setattr(cifar, "train_list", [["data_batch_1", md5(folder / "data_batch_1")]])
    monkeypatch.setattr(cifar, "test_list", [["test_batch", md5(folder / "test_batch")]])
    monkeypatch.setitem(cifar.meta, "md5", md5(folder / "batches.meta"))

    raw = read("CIFAR10", tmp_path)
    assert raw.classes == ("airplane", "automobile")
    assert [(record.label, record.split) for record in raw.records] == [
        (1, "train"),
        (0, "train"),
        (1, "test"),
        (0, "test"),
    ]
    planes = np.asarray(raw.records[0].load()).transpose(2, 0, 1)
    np.testing.assert_array_equal(planes.reshape(-1), pixels[0])


def test_the_unlabelled_images_of_stl10(tmp_path, monkeypatch):
    folder = tmp_path / "stl10_binary"
    folder.mkdir()
    for name, count in (("train", 2), ("unlabeled", 3), ("test", 1)):
        noise(count, 3, 96, 96).tofile(folder / f"{name}_X.bin")
        (np.arange(count, dtype=np.uint8) + 1).tofile(folder / f"{name}_y.bin")
    (folder / "class_names.txt").write_text("airplane\nbird\n")
    for lists in ("train_list", "test_list"):
        entries = [[name, md5(folder / name)] for name, _ in getattr(torchvision.datasets.STL10, lists)]
        monkeypatch.setattr(torchvision.datasets.STL10, lists, entries)

    raw = read("STL10", tmp_path)
    assert [(record.key, record.label, record.split) for record in raw.records] == [
        ("train/0", 0, "train"),
        ("train/1", 1, "train"),
        ("test/0", 0, "test"),
        ("unlabelled/0", -1, "train"),
        ("unlabelled/1", -1, "train"),
        ("unlabelled/2", -1, "train"),
    ]
    assert raw.records[-1].load().size == (96, 96)

    assert [record.key for record in read("STL10-labelled", tmp_path).records] == ["train/0", "train/1", "test/0"]
    assert read("STL10-labelled", tmp_path).name == "STL10"
    assert read("STL10-labelled", tmp_path).signature != raw.signature


def write_places(root: Path, monkeypatch, *, images: bool = True) -> None:
    """Two pictures to train on and one to test on, listed as the devkit lists them."""
    lists = {"categories_places365.txt": "/a/airfield 0\n/b/barn 1\n"}
    lists["places365_train_standard.txt"] = "/a/airfield/1.jpg 0\n/b/barn/1.jpg 1\n"
    lists["places365_val.txt"] = "Places365_val_1.jpg 1\n"
    for name, text in lists.items():
        (root / name).write_text(text)
    places = torchvision.datasets.Places365
    monkeypatch.setattr(
        places, "_CATEGORIES_META", ("categories_places365.txt", md5(root / "categories_places365.txt"))
    )
    known = {
        split: (name, md5(root / name)) for split, name in zip(("train-standard", "val"), list(lists)[1:], strict=True)
    }
    monkeypatch.setattr(places, "_FILE_LIST_META", known)
    for name in ("data_256_standard/a/airfield/1", "data_256_standard/b/barn/1", "val_256/Places365_val_1"):
        if images:
            save(root / f"{name}.jpg", len(name))


def test_what_places365_calls_val_is_tested_on(tmp_path, monkeypatch):
    write_places(tmp_path, monkeypatch)
    raw = read("Places365", tmp_path)
    assert (raw.name, raw.classes) == ("Places365", ("/a/airfield", "/b/barn"))
    assert [(record.key, record.label, record.split) for record in raw.records] == [
        ("data_256_standard/a/airfield/1.jpg", 0, "train"),
        ("data_256_standard/b/barn/1.jpg", 1, "train"),
        ("val_256/Places365_val_1.jpg", 1, "test"),
    ]
    assert raw.records[2].load().size == (8, 8)


def test_lists_without_their_images_come_with_the_command_that_fetches_them(tmp_path, monkeypatch):
    write_places(tmp_path, monkeypatch, images=False)
    with pytest.raises(InputError, match=r"no Places365 \(no file .*airfield/1\.jpg\); .*small=True, download=True\)"):
        read("Places365", tmp_path)


def test_classes_of_imagenet_are_told_apart(tmp_path):
    """Its own names are not all different; the numbers of WordNet are."""
    for split in ("train", "val"):
        for wnid in ("n02012849", "n03126707"):
            save(tmp_path / split / wnid / f"{split}.JPEG", 1)
    torch.save(({"n02012849": ("crane",), "n03126707": ("crane",)}, []), tmp_path / "meta.bin")
    raw = read("ImageNet", tmp_path)
    assert raw.classes == ("n02012849", "n03126707")
    assert [(record.key, record.label, record.split) for record in raw.records] == [
        ("train/n02012849/train.JPEG", 0, "train"),
        ("train/n03126707/train.JPEG", 1, "train"),
        ("val/n02012849/val.JPEG", 0, "test"),
        ("val/n03126707/val.JPEG", 1, "test"),
    ]


def test_what_torchvision_cannot_fetch_is_named_with_where_it_is_had(tmp_path):
    with pytest.raises(InputError) as caught:
        read("ImageNet", tmp_path)
    assert str(caught.value) == (
        f"dataset.path is {str(tmp_path)!r}, where torchvision finds no ImageNet (The archive "
        "ILSVRC2012_devkit_t12.tar.gz is not present in the root directory or is corrupted); nothing is downloaded by "
        "itself, put there ILSVRC2012_devkit_t12.tar.gz, ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar from "
        "https://image-net.org/download-images (which asks for an account)"
    )


def test_svhn_has_numbers_for_names(tmp_path, monkeypatch):
    from scipy.io import savemat

    lists = {}
    for split, (url, name, _) in torchvision.datasets.SVHN.split_list.items():
        savemat(tmp_path / name, {"X": noise(32, 32, 3, 3), "y": np.array([[1], [10], [2]])})
        lists[split] = [url, name, md5(tmp_path / name)]
    monkeypatch.setattr(torchvision.datasets.SVHN, "split_list", lists)
    raw = read("SVHN", tmp_path)
    assert raw.classes == ("0", "1", "2")
    assert [record.label for record in raw.records] == [1, 0, 2, 1, 0, 2]  # torchvision turns 10 into 0


def test_files_keep_their_names_and_trainval_is_training(tmp_path):
    folder = tmp_path / "oxford-iiit-pet"
    for name in ("Abyssinian_1", "Beagle_1", "Abyssinian_2", "Beagle_2"):
        save(folder / "images" / f"{name}.jpg", 1)
    (folder / "annotations").mkdir()
    (folder / "annotations" / "trainval.txt").write_text("Abyssinian_1 1 1 1\nBeagle_1 2 2 1\n")
    (folder / "annotations" / "test.txt").write_text("Abyssinian_2 1 1 1\nBeagle_2 2 2 1\n")
    raw = read("OxfordIIITPet", tmp_path)
    assert raw.classes == ("Abyssinian", "Beagle")
    assert [(record.key, record.label, record.split) for record in raw.records] == [
        ("oxford-iiit-pet/images/Abyssinian_1.jpg", 0, "train"),
        ("oxford-iiit-pet/images/Beagle_1.jpg", 1, "train"),
        ("oxford-iiit-pet/images/Abyssinian_2.jpg", 0, "test"),
        ("oxford-iiit-pet/images/Beagle_2.jpg", 1, "test"),
    ]


def test_a_set_without_splits_leaves_them_to_the_packer(tmp_path):
    for name in ("Forest", "River"):
        save(tmp_path / "eurosat" / "2750" / name / f"{name}_1.jpg", 1)
    raw = read("EuroSAT", tmp_path)
    assert [(record.key, record.label, record.split) for record in raw.records] == [
        ("eurosat/2750/Forest/Forest_1.jpg", 0, None),
        ("eurosat/2750/River/River_1.jpg", 1, None),
    ]


def test_its_own_validation_split_is_used_and_classes_have_to_agree(tmp_path):
    for split in ("train", "valid", "test"):
        for name in ("AT", "BE"):
            save(tmp_path / "country211" / split / name / f"{split}.jpg", 1)
    assert {record.split for record in read("Country211", tmp_path).records} == {"train", "validation", "test"}
    save(tmp_path / "country211" / "test" / "CH" / "1.jpg", 1)
    with pytest.raises(InputError, match="the splits have different classes"):
        read("Country211", tmp_path)


def write_voc(root: Path) -> Path:
    """Five real pictures with their annotations."""
    folder = root / "VOCdevkit" / "VOC2007"
    parts = {
        "trainval": {"000005": [("chair", 0), ("chair", 1)], "000007": [("car", 0), ("person", 1)], "000009": []},
        "test": {"000001": [("dog", 0), ("person", 0)], "000002": [("train", 1)]},
    }
    (folder / "ImageSets" / "Main").mkdir(parents=True)
    for part, images in parts.items():
        (folder / "ImageSets" / "Main" / f"{part}.txt").write_text("".join(f"{name}\n" for name in images))
        for name, objects in images.items():
            save(folder / "JPEGImages" / f"{name}.jpg", int(name), (30, 20))
            write_annotation(folder / "Annotations" / f"{name}.xml", *objects)
    return folder


def test_the_objects_of_voc_are_a_multi_label_set(tmp_path):
    write_voc(tmp_path)
    raw = read("VOCDetection", tmp_path)
    assert raw.multi_label
    assert raw.classes == VOC_CLASSES
    images = "VOCdevkit/VOC2007/JPEGImages"
    assert [(record.key, record.label, record.ignored, record.split) for record in raw.records] == [
        (f"{images}/000005.jpg", classes("chair"), (), "train"),
        (f"{images}/000007.jpg", classes("car"), classes("person"), "train"),
        (f"{images}/000009.jpg", (), (), "train"),
        (f"{images}/000001.jpg", classes("dog", "person"), (), "test"),
        (f"{images}/000002.jpg", (), classes("train"), "test"),
    ]
    with Image.open(tmp_path / raw.records[3].key) as stored:
        np.testing.assert_array_equal(np.asarray(raw.records[3].load()), np.asarray(stored))


def test_the_labels_of_voc_are_read_without_decoding_an_image(tmp_path):
    for file in (write_voc(tmp_path) / "JPEGImages").iterdir():
        file.write_bytes(b"no picture")
    assert len(read("VOCDetection", tmp_path).records) == 5


def test_half_of_voc_comes_with_the_command_that_fetches_the_rest(tmp_path):
    (write_voc(tmp_path) / "ImageSets" / "Main" / "test.txt").unlink()
    with pytest.raises(InputError, match=r"year='2007', image_set='test', download=True\)\"$"):
        read("VOCDetection", tmp_path)


def test_sets_with_one_label_per_image_stay_what_they_are(tmp_path):
    write_fashion(tmp_path)
    raw = read("FashionMNIST", tmp_path)
    assert not raw.multi_label
    assert {record.ignored for record in raw.records} == {()}


def test_missing_files_come_with_the_command_that_fetches_them(tmp_path):
    with pytest.raises(InputError) as caught:
        read("CIFAR10", tmp_path)
    assert str(caught.value) == (
        f"dataset.path is {str(tmp_path)!r}, where torchvision finds no CIFAR10 (Dataset not found or corrupted); "
        "nothing is downloaded by itself, put it there once with: "
        f'python -c "from torchvision.datasets import CIFAR10; CIFAR10({str(tmp_path)!r}, train=True, download=True)"'
    )


@pytest.mark.parametrize("name", SETS)
def test_what_is_missing_of_any_set_is_one_line_that_says_what_to_do(name, tmp_path):
    with pytest.raises(InputError) as caught:
        read(name, tmp_path)
    said = str(caught.value)
    assert said.startswith(f"dataset.path is {str(tmp_path)!r}, where torchvision finds no {SETS[name].of or name} (")
    assert "download=True" in said or SETS[name].by_hand in said
    assert "\n" not in said


def test_a_missing_root_is_named_and_not_made(tmp_path):
    with pytest.raises(InputError, match=r"no Caltech101 \(no such folder\); .*Caltech101\('.*/none', download=True\)"):
        read("Caltech101", tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_an_unknown_set_lists_the_known_ones(tmp_path):
    with pytest.raises(UnknownNameError, match=r"dataset.name 'CIFAR-10' is unknown; did you mean 'CIFAR10'"):
        read("CIFAR-10", tmp_path)


@pytest.mark.parametrize("name", SETS)
def test_torchvision_understands_the_arguments_of_every_set(name, tmp_path):
    entry = SETS[name]
    kind, download = getattr(torchvision.datasets, entry.of or name), {} if entry.by_hand else {"download": False}
    for arguments in (*entry.splits.values(), *([entry.unlabelled] if entry.unlabelled else [])):
        inspect.signature(kind).bind(str(tmp_path), **download, **arguments)
        # The files are missing; a split it does not know would be a ValueError instead.
        with pytest.raises((RuntimeError, OSError)):
            kind(str(tmp_path), **download, **arguments)
