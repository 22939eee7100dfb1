"""What a bucket does when requests, answers and servers get lost; what all storages have to do: test_storage."""

import hashlib
import os
import pickle
import random
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from cluster import s3, s3_client, s3_headers
from cluster.storage import StorageError, open_storage
from tests.object_store import (
    ACCESS_KEY,
    BUCKET,
    KMS_KEY,
    READ_ONLY_KEY,
    READ_ONLY_SECRET,
    SECRET_KEY,
    forget,
    proxy_of,
    running,
    times,
    use,
)


@pytest.fixture
def storage(bucket_uri):
    return open_storage(bucket_uri)


@pytest.fixture
def proxied(object_store, bucket_uri, monkeypatch):
    """A storage and the proxy it is reached by; pauses before a request is made again are short."""
    monkeypatch.setattr(random, "random", lambda: 0.01)
    with proxy_of(object_store.port) as proxy:
        use(proxy.endpoint, monkeypatch)
        yield open_storage(bucket_uri), proxy
    forget()


@pytest.fixture
def impatient(monkeypatch):
    monkeypatch.setattr(s3_client, "PATIENT", s3_client.PATIENT._replace(seconds=0))
    forget()


@pytest.fixture
def small_parts(monkeypatch):
    """Parts as small as servers allow."""
    monkeypatch.setattr(s3, "WHOLE_BYTES", 1 << 20)
    monkeypatch.setattr(s3, "PART_BYTES", 5 << 20)


def failure(action) -> str:
    """The one line in which something fails; no line holds a secret."""
    with pytest.raises(StorageError) as failed:
        action()
    said = str(failed.value)
    assert "\n" not in said
    assert not any(secret in said for secret in (ACCESS_KEY, SECRET_KEY, READ_ONLY_KEY, READ_ONLY_SECRET))
    return said


def test_it_travels_as_an_address(storage):
    storage.write("key", b"1")
    data = pickle.dumps(storage)
    assert not any(secret.encode() in data for secret in (ACCESS_KEY, SECRET_KEY, "127.0.0.1"))
    again = pickle.loads(data)  # noqa: S301
    assert (again.uri, again.read("key")) == (storage.uri, b"1")


def test_a_bucket_alone_is_a_storage_too(storage, object_store):
    storage.write("key", b"1")
    place = storage.uri.removeprefix(f"s3://{BUCKET}/")
    whole = open_storage(f"s3://{BUCKET}")
    assert whole.uri == f"s3://{BUCKET}"
    assert whole.read(f"{place}/key") == b"1"
    assert f"{place}/key" in list(whole.keys(""))
    assert list(whole.keys(place)) == [f"{place}/key"]


def test_the_server_is_told_the_checksum(storage, object_store):
    storage.write("key", b"one")
    path = f"{storage.root}/key"
    head = object_store.client().head_object(Bucket=BUCKET, Key=path, ChecksumMode="ENABLED")
    assert head["ChecksumCRC32"] == "emyG8Q=="  # printf one | gzip -c | tail -c 8
    assert head["Metadata"]["sha256"] == hashlib.sha256(b"one").hexdigest()


def test_a_browser_is_told_what_a_page_is(storage, object_store):
    storage.write("reports/mine.html", b"<!doctype html>")
    head = object_store.client().head_object(Bucket=BUCKET, Key=f"{storage.root}/reports/mine.html")
    assert head["ContentType"] == "text/html; charset=utf-8"


def test_what_others_put_there_is_read(storage, object_store):
    object_store.client().put_object(Bucket=BUCKET, Key=f"{storage.root}/key", Body=b"theirs")
    object_store.client().put_object(Bucket=BUCKET, Key=f"{storage.root}/folder/", Body=b"")
    assert storage.read("key") == b"theirs"
    assert not storage.create("key", b"ours")
    assert list(storage.keys("")) == ["key"]


@pytest.mark.parametrize("wrong", ["503", "reset", "lost"])
def test_requests_that_fail_now_and_then_are_made_again(proxied, wrong):
    storage, proxy = proxied
    proxy.rule = times(2, wrong, method="PUT")
    storage.write("key", b"1")
    proxy.rule = times(1, wrong, method="GET")
    assert list(storage.keys("")) == ["key"]
    proxy.rule = times(1, wrong, method="GET", part="/key")
    assert storage.read("key") == b"1"
    proxy.rule = times(1, wrong, method="DELETE")
    storage.delete("key")
    assert sum(entry[2] == wrong for entry in proxy.requests) == 5
    assert storage.read("key") is None


def test_a_reason_that_breaks_off_is_asked_for_again(proxied):
    storage, proxy = proxied
    proxy.rule = times(2, "half", method="GET")
    assert storage.read("absent") is None  # without its name, the reason could be that there is no bucket
    assert [method for method, *_ in proxy.requests] == ["GET"] * 3


@pytest.mark.parametrize("wrong", ["half", "flip"])
def test_an_answer_that_is_spoilt_on_its_way_is_asked_for_again(proxied, wrong):
    storage, proxy = proxied
    storage.write("key", b"some bytes")
    proxy.rule = times(2, wrong, method="GET")
    assert storage.read("key") == b"some bytes"
    proxy.rule = times(s3.TRIES, wrong, method="GET")
    said = failure(lambda: storage.read("key"))
    assert said.startswith(f"{storage.uri}/key cannot be read: ")
    assert {"half": "its answer breaks off", "flip": "differ from the SHA-256"}[wrong] in said


def test_a_creation_whose_answer_is_lost_is_not_taken_for_anothers(proxied):
    storage, proxy = proxied
    proxy.rule = times(1, "lost", method="PUT", part="/key")
    assert storage.create("key", b"ours")
    assert [entry[::2] for entry in proxy.requests[-3:]] == [("PUT", "lost"), ("PUT", None), ("HEAD", None)]
    assert storage.read("key") == b"ours"


def test_a_creation_that_comes_second_loses_though_its_answer_is_lost(proxied):
    storage, proxy = proxied
    assert storage.create("key", b"theirs")
    proxy.rule = times(1, "lost", method="PUT", part="/key")
    assert not storage.create("key", b"theirs")  # the same content, and still not ours
    assert storage.read("key") == b"theirs"


def test_what_was_in_the_way_of_a_creation_and_is_gone_is_in_nobodys_way(proxied):
    storage, proxy = proxied
    proxy.rule = times(1, "refuse", method="PUT", part="/key")
    assert storage.create("key", b"ours")
    proxy.rule = times(100, "refuse", method="PUT", part="/other")
    assert not storage.create("other", b"ours")
    assert storage.read("other") is None


def test_a_server_that_replaces_what_it_should_keep_is_found_out(proxied):
    storage, proxy = proxied
    proxy.rule = times(2, "agree", method="PUT", part=s3.PROBE)
    said = failure(lambda: storage.create("key", b"1"))
    assert said.startswith(f"{storage.uri}: its server replaces objects that it is asked to keep")
    storage.write("key", b"1")
    assert storage.read("key") == b"1"


def test_a_server_is_probed_once(proxied):
    storage, proxy = proxied
    for number in range(3):
        assert open_storage(storage.uri).create(f"key/{number}", b"")
    assert sum(s3.PROBE in path for _, path, _ in proxy.requests) == 2
    forget()  # as another process
    assert storage.create("key/3", b"")
    assert sum(s3.PROBE in path for _, path, _ in proxy.requests) == 3


def test_large_objects_go_in_parts(proxied, small_parts):
    storage, proxy = proxied
    data = os.urandom((11 << 20) + 1)
    storage.write("key", data)
    assert sorted(method for method, *_ in proxy.requests) == ["POST", "POST", "PUT", "PUT", "PUT"]
    del proxy.requests[:]
    assert storage.read("key") == data
    assert [method for method, *_ in proxy.requests] == ["GET"]


def test_parts_that_fail_now_and_then_are_sent_again(proxied, small_parts):
    storage, proxy = proxied
    data = os.urandom(11 << 20)
    proxy.rule = times(2, "reset", method="PUT")
    storage.write("key", data)
    proxy.rule = times(1, "lost", method="POST", part="uploadId")  # it is finished, and nobody is told
    storage.write("other", data)
    proxy.rule = lambda method, path: None
    assert storage.read("key") == storage.read("other") == data


def test_an_upload_that_fails_leaves_nothing_behind(proxied, small_parts, impatient, object_store):
    storage, proxy = proxied
    proxy.rule = times(100, "503", method="PUT", part="partNumber=2")
    said = failure(lambda: storage.write("key", bytes(11 << 20)))
    assert said.startswith(f"{storage.uri}/key cannot be written: the server failed 1 times")
    assert storage.read("key") is None
    uploads = object_store.client().list_multipart_uploads(Bucket=BUCKET).get("Uploads", [])
    assert not [upload for upload in uploads if upload["Key"].startswith(storage.root)]


@pytest.mark.slow
def test_a_hundred_megabytes_come_back(storage):
    data = os.urandom(100_000_000)
    storage.write("key", data)
    assert storage.read("key") == data
    assert [found.bytes for found in storage.objects("")] == [len(data)]


def test_a_server_that_is_killed_and_comes_back_is_waited_for(tmp_path, monkeypatch):
    monkeypatch.setattr(random, "random", lambda: 0.1)
    with running(tmp_path / "store") as store:
        use(store.endpoint, monkeypatch)
        storage = open_storage(f"s3://{BUCKET}/place")
        storage.write("key", b"before")
        store.kill()
        found: list[bytes | None] = []
        reader = threading.Thread(target=lambda: found.append(storage.read("key")))
        reader.start()
        time.sleep(0.3)
        assert not found
        store.start()
        reader.join()
        assert found == [b"before"]
        assert not storage.create("key", b"after")
    forget()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""},
            "no credentials (NoCredentialsError); set AWS_PROFILE",
        ),
        ({"AWS_SECRET_ACCESS_KEY": ""}, "no credentials (PartialCredentialsError)"),
        ({"AWS_PROFILE": "nobody"}, "no credentials (ProfileNotFound)"),
        ({"AWS_ACCESS_KEY_ID": "nobody"}, "the server does not know the access key; check AWS_ACCESS_KEY_ID"),
        ({"AWS_SECRET_ACCESS_KEY": "guessed"}, "the server refuses the secret key; check AWS_SECRET_ACCESS_KEY"),
        (
            {"AWS_ACCESS_KEY_ID": READ_ONLY_KEY, "AWS_SECRET_ACCESS_KEY": READ_ONLY_SECRET},
            "access is denied; the credentials need GetObject, PutObject",
        ),
        ({"AWS_ENDPOINT_URL": "http://someone:secret@127.0.0.1:9"}, "http://127.0.0.1:9 does not answer (EndpointConn"),
    ],
    ids=["no keys", "no secret", "no profile", "unknown key", "wrong secret", "read only", "nobody there"],
)
def test_what_keeps_one_from_writing_is_told_in_words(storage, impatient, monkeypatch, changes, words):
    for name, value in changes.items():
        monkeypatch.setenv(name, value)
    said = failure(lambda: storage.write("key", b"1"))
    assert said.startswith(f"{storage.uri}/key cannot be written: {words}")
    assert "secret@" not in said


def test_a_bucket_that_is_not_there_is_named(bucket_uri, impatient):
    storage = open_storage("s3://another-bucket/x")
    for action in (
        lambda: storage.read("key"),
        lambda: storage.write("key", b""),
        lambda: list(storage.keys("")),
        lambda: storage.create("key", b""),
    ):
        said = failure(action)
        assert said.startswith("s3://another-bucket/x")
        assert said.endswith("there is no such bucket; make it, or correct the name")


def test_a_server_that_stays_busy_is_given_up(proxied, impatient):
    storage, proxy = proxied
    proxy.rule = times(100, "503", method="GET")
    said = failure(lambda: storage.read("key"))
    assert (
        said
        == f"{storage.uri}/key cannot be read: the server failed 1 times (SlowDown); the same command goes on "
        + ("from what is finished")
    )
    assert len(proxy.requests) == 1


def test_a_server_that_never_answers_is_given_up(proxied, impatient, monkeypatch):
    storage, proxy = proxied
    monkeypatch.setattr(s3_client, "PATIENT", s3_client.Patience(0, 1, 0.2))
    proxy.rule = lambda method, path: "wait"
    assert "does not answer (ReadTimeoutError)" in failure(lambda: storage.read("key"))
    assert len(proxy.requests) == 1


def test_patience_is_measured_from_the_first_failure(proxied, monkeypatch):
    storage, proxy = proxied
    monkeypatch.setattr(s3_client, "PATIENT", s3_client.PATIENT._replace(seconds=0.5))
    forget()
    proxy.rule = lambda method, path: "503"
    began = time.monotonic()
    assert "the server failed" in failure(lambda: storage.read("key"))
    assert 0.5 <= time.monotonic() - began < 3
    assert len(proxy.requests) > 7
    ends = time.monotonic() + 0.3
    proxy.rule = lambda method, path: "reset" if time.monotonic() < ends else None
    assert storage.read("key") is None


# --- the first look


@pytest.fixture
def silent_port() -> Iterator[int]:
    """Where connections are taken and nothing is ever answered."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(64)
        yield server.getsockname()[1]


@pytest.fixture
def deaf_port() -> Iterator[int]:
    """Where not even connections are taken, as behind a firewall that drops what comes."""
    with socket.socket() as server, ExitStack() as waiting:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        for _ in range(4):  # they fill the queue that nobody empties
            one = waiting.enter_context(socket.socket())
            one.setblocking(False)
            one.connect_ex(server.getsockname())
        yield server.getsockname()[1]


def test_a_first_look_at_what_can_be_used_says_nothing_and_leaves_an_empty_object(storage, object_store):
    storage.check(write=None)
    there = object_store.client().list_objects_v2(Bucket=BUCKET, Prefix=storage.root)
    assert "Contents" not in there
    for _ in range(2):
        storage.check(write="")
        storage.check(write="results")
    there = object_store.client().list_objects_v2(Bucket=BUCKET, Prefix=storage.root)["Contents"]
    assert {entry["Key"].removeprefix(f"{storage.root}/"): entry["Size"] for entry in there} == {
        s3.PROBE: 0,
        f"results/{s3.PROBE}": 0,
    }
    assert list(storage.keys("")) == []


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": ""}, "no credentials (NoCredentialsError)"),
        ({"AWS_ACCESS_KEY_ID": "nobody"}, "does not know the access key"),
        ({"AWS_SECRET_ACCESS_KEY": "guessed"}, "refuses the secret key"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:9"}, "http://127.0.0.1:9 does not answer"),
        ({"AWS_ENDPOINT_URL": "https://127.0.0.1:{server}"}, "does not answer (SSLError)"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:{silent}"}, "does not answer (ReadTimeoutError)"),
        ({"AWS_ENDPOINT_URL": "http://127.0.0.1:{deaf}"}, "does not answer (ConnectTimeoutError)"),
    ],
    ids=["no keys", "unknown key", "wrong secret", "refused", "no TLS there", "silent", "dropped"],
)
def test_what_cannot_be_used_shows_at_the_first_look_within_seconds(
    storage, object_store, silent_port, deaf_port, monkeypatch, changes, words
):
    for name, value in changes.items():
        monkeypatch.setenv(name, value.format(server=object_store.port, silent=silent_port, deaf=deaf_port))
    forget()
    began = time.monotonic()
    said = failure(lambda: storage.check(write=""))
    assert said.startswith(f"{storage.uri} cannot be listed: ")
    assert words in said
    assert time.monotonic() - began < 10


@pytest.mark.parametrize(
    ("rule", "words"),
    [("expired", "the credentials have expired; renew them"), ("page", "does AWS_ENDPOINT_URL lead to S3?")],
)
def test_answers_that_patience_does_not_cure_show_at_the_first_look(proxied, rule, words):
    storage, proxy = proxied
    proxy.rule = lambda method, path: rule
    assert words in failure(lambda: storage.check(write=None))


def test_a_bucket_that_is_missing_and_rights_that_are_show_at_the_first_look(storage, monkeypatch):
    assert "there is no such bucket" in failure(lambda: open_storage("s3://another-bucket/x").check(write=None))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", READ_ONLY_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", READ_ONLY_SECRET)
    forget()
    storage.check(write=None)
    said = failure(lambda: storage.check(write=""))
    assert said.startswith(f"{storage.uri} cannot be written: access is denied")
    assert failure(lambda: storage.check(write="results")).startswith(f"{storage.uri}/results cannot be written: ")


def test_a_server_that_is_only_busy_is_left_to_later_patience(proxied):
    storage, proxy = proxied
    for wrong in ("503", "wait"):  # the listing is answered, so somebody is there
        proxy.rule = lambda method, path, wrong=wrong: wrong if method == "PUT" or wrong == "503" else None
        storage.check(write="")
    assert len(proxy.requests) >= 7
    proxy.rule = lambda method, path: None
    storage.write("key", b"1")


# --- encryption at rest

MARK = b"what must not be read on the server's disk "


def stored_below(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in (folder / "data").glob("*.dat"))


@pytest.mark.parametrize(
    ("chosen", "expected"), [("AES256", ("AES256", None)), (f"aws:kms={KMS_KEY}", ("aws:kms", KMS_KEY))]
)
def test_every_object_is_encrypted_as_asked(storage, object_store, small_parts, monkeypatch, chosen, expected):
    secret = MARK + secrets.token_hex(8).encode()
    storage.write("plain", secret)
    assert secret in stored_below(object_store.folder)  # so it would be seen
    monkeypatch.setenv(s3_headers.ENCRYPTION, chosen)
    secret = MARK + secrets.token_hex(8).encode()
    large = secret + os.urandom(11 << 20)
    forget()
    storage.check(write="results")
    storage.write("small", secret)
    storage.write("large", large)
    assert storage.create("created", secret)
    assert not storage.create("created", b"again")
    client = object_store.client()
    for key in ("small", "large", "created", s3.PROBE, f"results/{s3.PROBE}"):
        head = client.head_object(Bucket=BUCKET, Key=f"{storage.root}/{key}")
        assert (head.get("ServerSideEncryption"), head.get("SSEKMSKeyId")) == expected, key
    assert (storage.read("small"), storage.read("large"), storage.read("created")) == (secret, large, secret)
    assert secret not in stored_below(object_store.folder)


def test_a_buckets_own_rule_encrypts_what_asks_for_nothing(bucket_uri, object_store):
    client, bucket = object_store.client(), "encrypted-bucket"
    client.create_bucket(Bucket=bucket)
    rule = {"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "aws:kms", "KMSMasterKeyID": KMS_KEY}}
    client.put_bucket_encryption(Bucket=bucket, ServerSideEncryptionConfiguration={"Rules": [rule]})
    storage = open_storage(f"s3://{bucket}/x")
    storage.write("key", b"data")
    assert storage.create("created", b"data")
    for key in ("key", "created"):
        assert client.head_object(Bucket=bucket, Key=f"x/{key}")["ServerSideEncryption"] == "aws:kms"
        assert storage.read(key) == b"data"


def test_a_server_that_does_not_encrypt_as_asked_is_found_out(proxied, monkeypatch):
    storage, proxy = proxied
    monkeypatch.setenv(s3_headers.ENCRYPTION, "AES256")
    proxy.rule = times(1, "agree", method="PUT")
    said = failure(lambda: storage.write("key", b"1"))
    assert said == f"{storage.uri}/key: its server did not encrypt it as SSKT_S3_ENCRYPTION asks; use another"
