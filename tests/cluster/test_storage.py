import os
import threading
import time
from pathlib import Path

import pytest

from cluster.storage import FolderStorage, StorageError, open_storage


def test_objects_come_back_as_written(tmp_path):
    storage = open_storage(str(tmp_path / "new" / "place"))
    assert storage.read("a/b") is None
    storage.write("a/b", b"one")
    storage.write("a/b", b"two")
    assert storage.read("a/b") == b"two"


def test_create_never_replaces(tmp_path):
    storage = FolderStorage(str(tmp_path))
    assert storage.create("key", b"first")
    assert not storage.create("key", b"second")
    assert storage.read("key") == b"first"


def test_only_one_of_many_creators_wins(tmp_path):
    storage = FolderStorage(str(tmp_path))
    wins: list[int] = []
    ready = threading.Barrier(8)

    def race(number: int) -> None:
        ready.wait()
        if storage.create("key", str(number).encode()):
            wins.append(number)

    racers = [threading.Thread(target=race, args=(number,)) for number in range(8)]
    for racer in racers:
        racer.start()
    for racer in racers:
        racer.join()
    assert len(wins) == 1
    assert storage.read("key") == str(wins[0]).encode()


def test_keys_are_sorted_and_leave_out_files_being_written(tmp_path):
    storage = FolderStorage(str(tmp_path))
    for key in ("c/2", "c/10/x", "c/1", "d/1"):
        storage.write(key, b"")
    (tmp_path / "c" / ".writing-abc").write_bytes(b"half")
    assert list(storage.keys("c")) == ["c/1", "c/10/x", "c/2"]
    assert list(storage.keys("nothing")) == []


def test_objects_say_how_large_and_how_old_they_are(tmp_path):
    storage = FolderStorage(str(tmp_path))
    storage.write("c/2", b"four")
    storage.write("c/1", b"")
    storage.write("d/1", b"elsewhere")
    os.utime(tmp_path / "c" / "2", (0, 1000.5))
    (tmp_path / "c" / ".writing-abc").write_bytes(b"half")
    first, second = storage.objects("c")
    assert (first.key, first.bytes) == ("c/1", 0)
    assert abs(first.written - time.time()) < 60
    assert second == ("c/2", 4, 1000.5)
    assert list(storage.objects("nothing")) == []


def test_an_object_that_goes_away_while_others_are_listed_is_none(tmp_path):
    storage = FolderStorage(str(tmp_path))
    for key in ("c/1", "c/2", "c/3"):
        storage.write(key, b"")
    listing = storage.objects("c")
    assert next(listing).key == "c/1"
    storage.delete("c/2")
    assert [found.key for found in listing] == ["c/3"]


def test_delete_is_quiet_about_what_is_not_there(tmp_path):
    storage = FolderStorage(str(tmp_path))
    storage.write("key", b"1")
    storage.delete("key")
    storage.delete("key")
    assert storage.read("key") is None


def test_nothing_is_left_over_after_writing(tmp_path):
    storage = FolderStorage(str(tmp_path))
    storage.write("a", b"1")
    storage.create("a", b"2")
    storage.create("b", b"3")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b"]


def test_a_place_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    storage = open_storage(str(tmp_path / "file"))
    with pytest.raises(StorageError, match="file' cannot be written"):
        storage.write("a/b", b"1")


def test_an_unknown_scheme_is_refused():
    with pytest.raises(StorageError, match="the scheme 'ftp' is unknown"):
        open_storage("ftp://somewhere")


def test_relative_folders_are_fixed_when_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    storage = open_storage("runs")
    assert Path(storage.uri) == tmp_path / "runs"
    assert open_storage(f"file://{tmp_path}/runs").uri == storage.uri
