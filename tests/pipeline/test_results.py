import pytest

from cluster.storage import FolderStorage
from pipeline.results import read_failure, read_result, write_failure, write_result
from sskt.errors import DamagedError


def test_the_first_result_of_a_training_stands(tmp_path):
    storage = FolderStorage(str(tmp_path))
    assert read_result(storage, "key") is None
    write_result(storage, "key", {"test_accuracy": 1.0})
    write_result(storage, "key", {"test_accuracy": 2.0})
    assert read_result(storage, "key") == {"test_accuracy": 1.0}


def test_a_failure_is_kept_until_the_training_succeeds(tmp_path):
    storage = FolderStorage(str(tmp_path))
    write_failure(storage, "key", "out of patience")
    assert read_failure(storage, "key") == "out of patience"
    write_result(storage, "key", {"test_accuracy": 1.0})
    assert read_failure(storage, "key") is None


def test_a_damaged_result_is_named(tmp_path):
    storage = FolderStorage(str(tmp_path))
    storage.write("results/key.json", b'{"test_acc')
    with pytest.raises(DamagedError, match=r"results/key\.json is damaged"):
        read_result(storage, "key")
