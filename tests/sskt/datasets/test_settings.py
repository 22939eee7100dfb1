import pytest

from sskt.datasets import DatasetSettings
from sskt.errors import InputError, UnknownNameError


def test_a_minimal_choice_of_every_kind_is_accepted():
    DatasetSettings(kind="digits")
    DatasetSettings(kind="digit_pairs")
    DatasetSettings(kind="mnist5k")
    DatasetSettings(kind="torchvision", name="CIFAR10", path="data")
    DatasetSettings(kind="folder", path="data")
    DatasetSettings(kind="parquet", path="train.parquet")
    DatasetSettings(kind="parquet", path="train.parquet", test_path="test.parquet")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "folder"}, "dataset.path is missing; kind 'folder' needs it"),
        ({"kind": "folder", "path": ""}, "dataset.path is missing; kind 'folder' needs it"),
        ({"kind": "parquet"}, "dataset.path is missing; kind 'parquet' needs it"),
        ({"kind": "torchvision", "path": "x"}, "dataset.name is missing; kind 'torchvision' needs it"),
        ({"kind": "digits", "path": "x"}, "dataset.path is 'x'; kind 'digits' does not use it, leave it out"),
        (
            {"kind": "folder", "path": "x", "name": "y"},
            "dataset.name is 'y'; kind 'folder' does not use it, leave it out",
        ),
        (
            {"kind": "folder", "path": "x", "test_path": "y"},
            "dataset.test_path is 'y'; kind 'folder' does not use it, leave it out",
        ),
        ({"kind": "digits", "test": 1.0}, "dataset.test is 1.0; it has to be at least 0 and below 1"),
        ({"kind": "digits", "test": float("nan")}, "dataset.test is nan; it has to be at least 0 and below 1"),
        ({"kind": "digits", "validation": -0.1}, "dataset.validation is -0.1; it has to be at least 0 and below 1"),
        (
            {"kind": "digits", "validation": 0.5, "test": 0.5},
            "dataset.validation is 0.5 and dataset.test is 0.5; their sum has to be below 1, for something to train on",
        ),
        ({"kind": "digits", "image_size": 0}, "dataset.image_size is 0; it has to be at least 1"),
        ({"kind": "digits", "channels": 2}, "dataset.channels is 2; it has to be 1 (grey) or 3 (colour)"),
        ({"kind": "digits", "max_unreadable": -1}, "dataset.max_unreadable is -1; it has to be at least 0"),
    ],
)
def test_a_mistake_is_named(values, message):
    with pytest.raises(InputError) as caught:
        DatasetSettings(**values)
    assert str(caught.value) == message


def test_an_unknown_kind_lists_the_known_ones():
    with pytest.raises(UnknownNameError, match=r"dataset.kind 'fodler' is unknown; did you mean 'folder'"):
        DatasetSettings(kind="fodler", path="x")
