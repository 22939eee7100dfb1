"""Copies on a node: they say what the storage says, come over the network once, and harm nobody."""

import logging
import multiprocessing
import os
import random
import resource
import shutil
import signal
import time
from collections import Counter, OrderedDict
from pathlib import Path

import pytest
from filelock import FileLock
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cluster import near
from cluster.near import nearby, own_folder
from cluster.storage import FolderStorage, open_storage
from cluster.stored import Fetched
from tests.object_store import ACCESS_KEY, SECRET_KEY, forget, proxy_of, times, use

HEAD = 8 + 1 + 4 + 1
"""Bytes of a copy beside the object's, where tags have four."""
GB = 1e-9
"""So many times bytes."""
spawned = multiprocessing.get_context("spawn")


class Far(FolderStorage):
    """A folder that counts what leaves it as if it were far; every version of an object has a tag of its own."""

    def __init__(self, root: Path) -> None:
        super().__init__(str(root))
        self.tags, self.left = Counter[str](), list[str]()

    def write(self, key: str, data: bytes) -> None:
        self.tags[key] += 1
        super().write(key, data)

    def fetch(self, key: str, *, known: str = "") -> Fetched | None:
        tag, data = f"{self.tags[key]:04d}", super().read(key)
        if data is not None and tag == known:
            return Fetched(tag, None)
        self.left.append(key)
        return None if data is None else Fetched(tag, data)

    def read(self, key: str) -> bytes | None:
        self.left.append(key)
        return super().read(key)

    def url(self, key: str) -> str:
        return f"{self.uri}/{key}"


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """Where copies lie."""
    monkeypatch.setenv("SSKT_NODE_CACHE", str(tmp_path / "node"))
    near._say.cache_clear()
    return own_folder()


@pytest.fixture
def far(tmp_path, folder) -> Far:
    return Far(tmp_path / "far")


def copies(folder: Path) -> list[Path]:
    return sorted((path for path in folder.iterdir() if path.is_file()), key=lambda path: path.stat().st_mtime_ns)


def empty(folder: Path) -> None:
    for path in copies(folder):
        path.unlink()


def test_what_is_read_again_does_not_leave_the_storage_again(far, folder):
    storage = nearby(far, 1)
    far.write("a.parquet", b"one")
    assert [storage.read("a.parquet") for _ in range(3)] == [b"one"] * 3
    assert far.left == ["a.parquet"]
    assert nearby(Far(Path(far.uri)), 1).uri == far.uri
    assert [path.stat().st_size for path in copies(folder)] == [HEAD + 3]


def test_an_object_that_changes_or_goes_is_that_of_the_storage(far, folder):
    storage = nearby(far, 1)
    assert storage.read("a.parquet") is None
    for data in (b"one", b"", b"three"):
        storage.write("a.parquet", data)
        assert [storage.read("a.parquet") for _ in range(2)] == [data] * 2
    storage.delete("a.parquet")
    assert storage.read("a.parquet") is None
    assert copies(folder) == []
    assert far.left == ["a.parquet"] * 5


def test_only_what_is_large_and_lasts_is_kept(far, folder):
    storage = nearby(far, 1)
    assert storage.create("a.json", b"{}")
    assert not storage.create("a.json", b"[]")
    assert [storage.read("a.json") for _ in range(2)] == [b"{}"] * 2
    assert list(storage.keys("")) == [found.key for found in storage.objects("")] == ["a.json"]
    assert far.left == ["a.json"] * 2
    assert copies(folder) == []


def test_a_folder_needs_no_copies_and_nobody_has_to_have_them(far, tmp_path):
    near_by = FolderStorage(str(tmp_path))
    assert nearby(near_by, 1) is near_by
    assert nearby(far, 0) is far


STEPS = st.lists(st.tuples(st.sampled_from("abcdef"), st.booleans()), min_size=1, max_size=40)
# Often some copies just fill the room, or are a byte too many.
SIZES = st.lists(st.sampled_from((20, 40, 60)), min_size=6, max_size=6)
ROOMS = st.builds(lambda units, more: 20 * units + more, st.integers(1, 8), st.sampled_from((-1, 0, 1)))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=STEPS, sizes=SIZES, most=ROOMS)
def test_what_was_used_least_recently_goes_first(steps, sizes, most, tmp_path, folder):
    """Beside a dictionary that forgets in that order, as slow as can be."""
    empty(folder)
    far = Far(tmp_path / str(time.time_ns()))
    storage, size = nearby(far, most * GB), dict(zip([f"{name}.parquet" for name in "abcdef"], sizes, strict=True))
    for key in size:
        far.write(key, os.urandom(size[key] - HEAD))
    held, expected = OrderedDict[str, int](), list[str]()
    for name, changed in steps:
        key = f"{name}.parquet"
        if changed:
            far.write(key, os.urandom(size[key] - HEAD))
        assert storage.read(key) == Path(far.uri, key).read_bytes()
        if changed or key not in held:
            expected.append(key)
            held.pop(key, None)
            while size[key] <= most and sum(held.values()) + size[key] > most:
                held.popitem(last=False)
            if size[key] <= most:
                held[key] = size[key]
        else:
            held.move_to_end(key)
        assert far.left == expected
        assert [path.stat().st_size for path in copies(folder)] == list(held.values())


def test_a_copy_that_is_damaged_anywhere_is_not_used(far, folder):
    storage = nearby(far, 1)
    far.write("a.parquet", b"some bytes")
    for place in range(HEAD + 10):
        storage.read("a.parquet")
        (copy,) = copies(folder)
        data = bytearray(copy.read_bytes())
        data[place] ^= 1
        copy.write_bytes(data if place % 2 else data[:place])
        assert storage.read("a.parquet") == b"some bytes"
        assert far.left == ["a.parquet"] * (place + 2)


def test_what_a_killed_process_left_is_replaced_or_grows_old_and_goes(far, folder):
    for name in ("a", "b", "c"):
        far.write(f"{name}.parquet", bytes(30))
    nearby(far, 1).read("a.parquet")
    (copy,) = copies(folder)
    copy.rename(copy.with_suffix(".part"))
    assert nearby(far, 100 * GB).read("a.parquet") == bytes(30)
    assert [path.suffix for path in copies(folder)] == [""]
    (folder / "other.part").write_bytes(bytes(30))
    os.utime(folder / "other.part", (0, 0))
    for name in ("b", "c"):
        assert nearby(far, 100 * GB).read(f"{name}.parquet") == bytes(30)
    assert [path.stat().st_size for path in copies(folder)] == [HEAD + 30] * 2


def test_storages_never_share_copies(tmp_path, folder):
    """The same key, the same tag: another place."""
    one, other = Far(tmp_path / "one"), Far(tmp_path / "other")
    one.write("a.parquet", b"of one")
    other.write("a.parquet", b"of the other")
    for _ in range(2):
        assert nearby(one, 1).read("a.parquet") == b"of one"
        assert nearby(other, 1).read("a.parquet") == b"of the other"


def test_servers_never_share_copies(object_store, bucket_uri, monkeypatch):
    here = open_storage(bucket_uri).url("a.parquet")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://elsewhere.test:1")
    forget()
    assert here == f"{object_store.endpoint}/{bucket_uri.removeprefix('s3://')}/a.parquet"
    assert open_storage(bucket_uri).url("a.parquet") != here


def spoil(kind: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a folder one that cannot be used."""
    if kind == "open to others":
        folder.chmod(0o755)
    elif kind == "full":
        monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(1000, 900, 100))
    else:
        shutil.rmtree(folder.parent)
        if kind == "a file":
            folder.parent.write_text("")
        else:
            folder.parent.mkdir()
            (folder.parent / "anothers").mkdir(mode=0o700)
            folder.symlink_to(folder.parent / "anothers")


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("open to others", "not a folder of your own that nobody else may enter"),
        ("a link", "not a folder of your own"),
        ("a file", "File exists"),
        ("full", "an object has no room in resources.node_cache_gb, or on the disk"),
    ],
)
def test_a_disk_that_does_not_do_its_part_is_done_without_and_told_once(far, folder, kind, words, monkeypatch, caplog):
    spoil(kind, folder, monkeypatch)
    far.write("a.parquet", b"one")
    far.write("b.parquet", b"two")
    with caplog.at_level(logging.WARNING):
        storage = nearby(far, 1)
        assert [storage.read(key) for key in ("a.parquet", "a.parquet", "b.parquet")] == [b"one", b"one", b"two"]
    assert far.left == ["a.parquet", "a.parquet", "b.parquet"]
    (line,) = caplog.messages
    assert words in line
    assert "\n" not in line
    assert "SSKT_NODE_CACHE" in line


def test_nobody_waits_for_ever_for_a_process_that_stands_still(far, folder, monkeypatch, caplog):
    monkeypatch.setattr(near, "LOCK_SECONDS", 0.2)
    far.write("a.parquet", b"one")
    storage = nearby(far, 1)
    storage.read("a.parquet")
    (lock,) = (folder / "locks").iterdir()
    with FileLock(lock), caplog.at_level(logging.WARNING):
        assert storage.read("a.parquet") == b"one"
    assert "Timeout" in caplog.text
    assert storage.read("a.parquet") == b"one"
    assert far.left == ["a.parquet"] * 2


def test_the_folder_is_ones_own_and_below_that_for_temporary_files(folder, monkeypatch, tmp_path):
    assert folder.stat().st_mode & 0o777 == 0o700
    assert folder == own_folder() == tmp_path / "node" / f"sskt-{os.getuid()}"
    monkeypatch.delenv("SSKT_NODE_CACHE")
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert own_folder() == tmp_path / f"sskt-{os.getuid()}"


# Real processes and a real server.


@pytest.fixture
def proxied(object_store, bucket_uri, folder, monkeypatch):
    """An address and the proxy that counts what is asked of it."""
    with proxy_of(object_store.port) as proxy:
        use(proxy.endpoint, monkeypatch)
        yield bucket_uri, proxy


def read_all(uri: str, keys: list[str], expected: list[bytes], most: float, seed: int) -> None:
    """What a process of its own does: reads all objects, in an order of its own."""
    storage, order = nearby(open_storage(uri), most), list(range(len(keys)))
    random.Random(seed).shuffle(order)  # noqa: S311
    for number in order:
        assert storage.read(keys[number]) == expected[number]


def read_within(uri: str, key: str, expected: bytes, bytes_of_a_file: int) -> None:
    """The same where no file may be larger."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (bytes_of_a_file,) * 2)
    for _ in range(2):
        assert nearby(open_storage(uri), 1).read(key) == expected


def in_processes(count: int, uri: str, *arguments: object) -> list:
    processes = [spawned.Process(target=read_all, args=(uri, *arguments, seed)) for seed in range(count)]
    for process in processes:
        process.start()
    return processes


def ended(processes: list) -> list[int]:
    for process in processes:
        process.join(60)
    return [process.exitcode for process in processes]


def downloads(proxy) -> list[str]:
    """The names of the objects that left the server."""
    return [path.rpartition("/")[2] for method, path, status, _ in proxy.answers if (method, status) == ("GET", 200)]


def test_many_processes_of_a_node_get_each_object_once(proxied, folder):
    uri, proxy = proxied
    keys, expected = [f"{number}.parquet" for number in range(6)], [os.urandom(300_000) for _ in range(6)]
    for key, data in zip(keys, expected, strict=True):
        open_storage(uri).write(key, data)
    assert ended(in_processes(4, uri, keys, expected, 1)) == [0] * 4
    assert sorted(downloads(proxy)) == keys
    assert Counter(status for method, _, status, _ in proxy.answers if method == "GET") == {200: 6, 304: 18}
    body = sum(size for method, *_, size in proxy.answers if method == "GET")
    assert body == 6 * 300_000
    kept = [path.read_bytes() for path in copies(folder)]
    assert len(kept) == 6
    assert not any(secret.encode() in data for data in kept for secret in (ACCESS_KEY, SECRET_KEY))


def test_processes_that_leave_no_room_to_each_other_read_what_is_right(proxied, folder):
    uri, proxy = proxied
    keys, expected = [f"{number}.parquet" for number in range(12)], [os.urandom(50_000) for _ in range(12)]
    for key, data in zip(keys, expected, strict=True):
        open_storage(uri).write(key, data)
    assert ended(in_processes(3, uri, keys, expected, 120_000 * GB)) == [0] * 3
    assert 12 <= len(downloads(proxy)) <= 36
    assert sum(path.stat().st_size for path in copies(folder)) <= 120_000 + 3 * 51_000


def test_a_process_that_is_killed_in_mid_download_blocks_nobody(proxied, folder):
    uri, proxy = proxied
    open_storage(uri).write("a.parquet", b"some bytes")
    proxy.rule = times(1, "wait", method="GET")
    (first,) = in_processes(1, uri, ["a.parquet"], [b"some bytes"], 1)
    while not any(method == "GET" for method, *_ in proxy.requests):
        time.sleep(0.02)
    others = in_processes(2, uri, ["a.parquet"], [b"some bytes"], 1)
    time.sleep(0.5)
    os.kill(first.pid, signal.SIGKILL)
    killed = time.monotonic()
    assert ended(others) == [0, 0]
    assert time.monotonic() - killed < 15
    assert ended([first]) == [-signal.SIGKILL]
    assert downloads(proxy) == ["a.parquet"]


def test_a_full_disk_is_done_without(proxied, folder):
    uri, _ = proxied
    data = os.urandom(200_000)
    open_storage(uri).write("a.parquet", data)
    process = spawned.Process(target=read_within, args=(uri, "a.parquet", data, 100_000))
    process.start()
    assert ended([process]) == [0]
    assert copies(folder) == []


@pytest.mark.slow
def test_processes_that_are_killed_at_any_moment_leave_nothing_wrong(proxied, folder):
    uri, _ = proxied
    keys, expected = [f"{number}.parquet" for number in range(8)], [os.urandom(2_000_000) for _ in range(8)]
    for key, data in zip(keys, expected, strict=True):
        open_storage(uri).write(key, data)
    generator = random.Random(0)  # noqa: S311
    for _ in range(6):
        processes = in_processes(3, uri, keys, expected, 9_000_000 * GB)
        time.sleep(generator.uniform(0.4, 1.5))
        processes[0].kill()
        assert ended(processes)[1:] == [0, 0]
    assert sum(path.stat().st_size for path in copies(folder)) <= 9_000_000 + 3 * 2_000_100
