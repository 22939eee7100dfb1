"""One contract for folders and for buckets of a real server; then what is a folder's own."""

import os
import secrets
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster.storage import FolderStorage, Storage, StorageError, checked_storage, open_storage

FOLDERS = ["c", "c-d", "c d/ü", "c/10"]
NAMES = ["1", "2+%41", "x=&é.json", ".hidden"]


@pytest.fixture(params=["folder", "bucket"])
def new_storage(request, tmp_path) -> Callable[[], Storage]:
    """Opens an empty place with each call."""
    root = str(tmp_path) if request.param == "folder" else request.getfixturevalue("bucket_uri")
    return lambda: open_storage(f"{root}/new/{secrets.token_hex(4)}")


@pytest.fixture
def storage(new_storage) -> Storage:
    return new_storage()


def test_objects_come_back_as_written(storage):
    assert storage.read("a/b") is None
    storage.write("a/b", b"one")
    storage.write("a/b", b"two")
    assert storage.read("a/b") == b"two"
    assert storage.read("a") is None
    assert storage.read("a/b/c") is None


@pytest.mark.parametrize("size", [0, 1, (1 << 23) + 1])
def test_objects_of_any_size_come_back(storage, size):
    data = os.urandom(size)
    storage.write("object", data)
    assert storage.read("object") == data
    assert [found.bytes for found in storage.objects("")] == [size]


def test_create_never_replaces(storage):
    assert storage.create("key", b"first")
    assert not storage.create("key", b"second")
    assert storage.read("key") == b"first"
    storage.delete("key")
    assert storage.create("key", b"third")


def test_only_one_of_many_creators_wins(storage):
    ready = threading.Barrier(8)

    def race(number: int) -> bool:
        ready.wait()
        return storage.create("key", str(number).encode())

    with ThreadPoolExecutor(8) as racers:
        wins = list(racers.map(race, range(8)))
    assert sum(wins) == 1
    assert storage.read("key") == str(wins.index(True)).encode()


ACTIONS = st.tuples(
    st.sampled_from(["write", "create", "delete"]), st.sampled_from(FOLDERS), st.sampled_from(NAMES), st.binary()
)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(actions=st.lists(ACTIONS, max_size=12))
def test_it_holds_what_a_dictionary_would_hold(new_storage, actions):
    storage, expected = new_storage(), dict[str, bytes]()
    for action, folder, name, data in actions:
        key = f"{folder}/{name}"
        if action == "write":
            storage.write(key, data)
            expected[key] = data
        elif action == "create":
            assert storage.create(key, data) == (key not in expected)
            expected.setdefault(key, data)
        else:
            storage.delete(key)
            expected.pop(key, None)
    for key in (f"{folder}/{name}" for folder in FOLDERS for name in NAMES):
        assert storage.read(key) == expected.get(key)
    shown = sorted(key for key in expected if not key.endswith(".hidden"))
    for prefix in ("", "c", "c/", "c d", "c-d", "nothing"):
        below = [key for key in shown if not prefix or key.startswith(f"{prefix.rstrip('/')}/")]
        assert list(storage.keys(prefix)) == below
        assert [(found.key, found.bytes) for found in storage.objects(prefix)] == [
            (key, len(expected[key])) for key in below
        ]


def test_keys_are_sorted_and_those_with_a_dot_are_the_storages_own(storage):
    for key in ("c/2", "c/10/x", "c/1", "c-d/1", "d/1", "c/.writing-abc"):
        storage.write(key, b"")
    assert list(storage.keys("c")) == ["c/1", "c/10/x", "c/2"]
    assert list(storage.keys("")) == ["c-d/1", "c/1", "c/10/x", "c/2", "d/1"]
    assert list(storage.keys("nothing")) == []


def test_all_of_very_many_keys_are_listed(storage):
    keys = sorted(f"many/{number}" for number in range(1001))
    with ThreadPoolExecutor(8) as writers:
        list(writers.map(lambda key: storage.write(key, b""), keys))
    assert list(storage.keys("many")) == keys


def test_objects_say_how_large_and_how_old_they_are(storage):
    storage.write("c/2", b"four")
    storage.write("c/1", b"")
    storage.write("d/1", b"elsewhere")
    first, second = storage.objects("c")
    assert (first.key, first.bytes) == ("c/1", 0)
    assert (second.key, second.bytes) == ("c/2", 4)
    assert abs(first.written - time.time()) < 60
    assert list(storage.objects("nothing")) == []


def test_delete_is_quiet_about_what_is_not_there(storage):
    storage.write("key", b"1")
    storage.delete("key")
    storage.delete("key")
    assert storage.read("key") is None


def test_it_opens_again_by_its_address(storage):
    storage.write("key", b"1")
    again = open_storage(storage.uri)
    assert again.uri == open_storage(f"{storage.uri}/").uri == storage.uri
    assert again.read("key") == b"1"


def test_a_file_says_when_it_was_written(tmp_path):
    storage = FolderStorage(str(tmp_path))
    storage.write("c/2", b"four")
    os.utime(tmp_path / "c" / "2", (0, 1000.5))
    assert list(storage.objects("c")) == [("c/2", 4, 1000.5)]


def test_a_file_that_goes_away_while_others_are_listed_is_none(tmp_path):
    storage = FolderStorage(str(tmp_path))
    for key in ("c/1", "c/2", "c/3"):
        storage.write(key, b"")
    listing = storage.objects("c")
    assert next(listing).key == "c/1"
    storage.delete("c/2")
    assert [found.key for found in listing] == ["c/3"]


def test_nothing_is_left_over_after_writing(tmp_path):
    storage = FolderStorage(str(tmp_path))
    storage.write("a", b"1")
    storage.create("a", b"2")
    storage.create("b", b"3")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_a_place_that_cannot_be_written_or_read_is_named(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StorageError, match="file' cannot be written"):
        open_storage(str(tmp_path / "file")).write("a/b", b"1")
    with pytest.raises(StorageError, match=r"cannot be read: .*File name too long"):
        open_storage(str(tmp_path)).read("x" * 300)


@pytest.mark.parametrize(
    ("uri", "words"),
    [
        ("ftp://somewhere", "the scheme 'ftp' is unknown; use a folder's path or s3://bucket/prefix"),
        ("S3://bucket", "the scheme 'S3' is unknown"),
        ("s3:/bucket/x", "'s3:' is not the name of a bucket; use s3://bucket/prefix"),
        ("s3://", "'' is not the name of a bucket"),
        ("s3:///x", "'' is not the name of a bucket"),
        ("s3://My_Bucket/x", "'My_Bucket' is not the name of a bucket"),
        ("s3://bucket/a//b", "'a//b' is not a prefix"),
        ("s3://bucket/../b", "'../b' is not a prefix"),
        ("s3://bucket/x?endpoint_override=h", "and AWS_ENDPOINT_URL"),
    ],
)
def test_a_wrong_address_is_refused(uri, words):
    with pytest.raises(StorageError) as refused:
        open_storage(uri)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_an_address_with_a_secret_is_refused_and_not_repeated():
    with pytest.raises(StorageError, match="holds no credentials") as refused:
        open_storage("s3://KEY:SECRET@bucket/x")
    assert "SECRET" not in str(refused.value)


def test_relative_folders_are_fixed_when_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    storage = open_storage("runs")
    assert Path(storage.uri) == tmp_path / "runs"
    assert open_storage(f"file://{tmp_path}/runs").uri == storage.uri


def test_a_first_look_leaves_nothing_that_is_listed(storage):
    storage.check(write=None)
    storage.check(write="")
    storage.check(write="a/b")
    assert list(storage.keys("")) == []
    storage.write("a/b/c", b"1")
    storage.check(write="a/b")
    assert list(storage.keys("")) == ["a/b/c"]


def test_a_first_look_makes_no_folder_and_names_what_is_in_the_way(tmp_path):
    assert checked_storage(f"{tmp_path}/new/one", write="results").uri == f"{tmp_path}/new/one"
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("not a folder")
    for uri in (f"{tmp_path}/file", f"{tmp_path}/file/below"):
        with pytest.raises(StorageError, match=r"cannot be read: .*file is no folder that you may use so"):
            checked_storage(uri, write=None)
    (tmp_path / "results").write_text("not a folder either")
    with pytest.raises(StorageError, match=r"cannot be written: .*results is no folder"):
        checked_storage(str(tmp_path), write="results")


def test_a_folder_that_may_only_be_read_is_told_from_one_that_may_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda place, mode: not mode & os.W_OK)  # root may do everything
    checked_storage(str(tmp_path), write=None)
    with pytest.raises(StorageError, match="cannot be written"):
        checked_storage(str(tmp_path), write="")
