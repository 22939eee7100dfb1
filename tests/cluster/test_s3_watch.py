"""Requests as they are counted here, beside those that a proxy in front of a real server has seen."""

from collections import Counter

import pytest

from cluster import metrics, s3, s3_client
from cluster.metrics import Traffic
from cluster.storage import StorageError, open_storage
from tests.object_store import ACCESS_KEY, SECRET_KEY, proxy_of, times, use


@pytest.fixture
def proxied(object_store, bucket_uri, monkeypatch):
    """A proxy that the storage goes through, and a process that has counted nothing yet."""
    monkeypatch.setattr(metrics, "_STATE", metrics._State())
    monkeypatch.setattr(s3, "_pause", lambda: None)
    monkeypatch.setattr(s3_client.random, "random", lambda: 0.0)  # no pauses
    with proxy_of(object_store.port) as proxy:
        use(proxy.endpoint, monkeypatch)
        yield proxy


def counted(name: str) -> dict[str, float]:
    """A counter by the values of its labels."""
    totals = metrics._STATE.ledger._totals.items()
    return {" ".join(value for _, value in at.labels): value for at, value in totals if at.name == name}


def test_every_request_is_counted_by_what_it_asks(proxied, bucket_uri):
    storage = open_storage(bucket_uri)
    storage.write("a", b"12345")
    assert storage.read("a") == b"12345"
    assert storage.read("b") is None
    assert list(storage.keys("")) == ["a"]
    storage.delete("a")
    methods = Counter(method for method, _, _ in proxied.requests)
    assert methods == {"PUT": 1, "GET": 3, "DELETE": 1}
    assert counted("sskt_s3_requests") == {"PutObject": 1, "GetObject": 2, "ListObjectsV2": 1, "DeleteObject": 1}
    assert counted("sskt_s3_errors") == {"GetObject 404": 1}
    assert counted("sskt_s3_retries") == {}
    bytes_moved = counted("sskt_s3_bytes")
    assert bytes_moved["sent"] == 5
    assert bytes_moved["received"] == sum(size for _, _, _, size in proxied.answers)
    assert metrics.traffic() == Traffic(5, 0)


FAULTS = [
    (times(3, "503", method="PUT"), {"PutObject": 3}, {"PutObject 503": 3}),
    (times(2, "reset", method="PUT"), {"PutObject": 2}, {"PutObject ConnectionClosedError": 2}),
    (times(1, "lost", method="PUT"), {"PutObject": 1}, {"PutObject ConnectionClosedError": 1}),
    (times(2, "503", method="GET"), {"GetObject": 2}, {"GetObject 503": 2}),
    (times(2, "flip", method="GET"), {"GetObject": 2}, {"GetObject spoilt": 2}),
    (times(1, "half", method="GET"), {"GetObject": 1}, {"GetObject spoilt": 1}),
]


@pytest.mark.timeout(60)
@pytest.mark.parametrize(("rule", "retries", "errors"), FAULTS)
def test_retries_are_those_that_faults_made_necessary(proxied, bucket_uri, rule, retries, errors):
    proxied.rule = rule
    storage = open_storage(bucket_uri)
    storage.write("a", b"12345")
    assert storage.read("a") == b"12345"
    wrong = sum(fault is not None for _, _, fault in proxied.requests)
    assert metrics.traffic() == Traffic(len(proxied.requests), wrong) == Traffic(2 + wrong, wrong)
    assert (counted("sskt_s3_retries"), counted("sskt_s3_errors")) == (retries, errors)


@pytest.mark.parametrize(
    ("ask", "retries", "errors"),
    [
        (lambda storage: list(storage.keys("")), {"ListObjectsV2": 1}, {"ListObjectsV2 spoilt": 1}),
        (lambda storage: storage.read("absent"), {"GetObject": 1}, {"GetObject 404": 2}),
    ],
    ids=["a list", "a reason"],
)
def test_answers_that_break_off_are_asked_for_again_and_counted(proxied, bucket_uri, ask, retries, errors):
    proxied.rule = times(1, "half", method="GET")
    ask(open_storage(bucket_uri))
    assert metrics.traffic() == Traffic(2, 1)
    assert (counted("sskt_s3_retries"), counted("sskt_s3_errors")) == (retries, errors)


def test_every_attempt_has_its_time(proxied, bucket_uri):
    proxied.rule = times(1, "503", method="PUT")
    open_storage(bucket_uri).write("a", b"12345")
    buckets = [(at.bound, value) for at, value in metrics._STATE.ledger._totals.items() if at.name == "sskt_s3_seconds"]
    assert sum(value for _, value in buckets) == 2
    assert all(bound < 30 for bound, _ in buckets)


def test_a_retry_is_logged_with_its_reason_and_without_secrets(proxied, bucket_uri, log_lines):
    proxied.rule = times(2, "503", method="PUT")
    open_storage(bucket_uri).write("a", b"12345")
    told = log_lines()
    assert [(line["event"], line["operation"], line["attempt"], line["code"]) for line in told] == [
        ("storage_retry", "PutObject", 2, "503"),
        ("storage_retry", "PutObject", 3, "503"),
    ]
    assert SECRET_KEY not in str(told)
    assert ACCESS_KEY not in str(told)


def test_a_refusal_is_an_error_and_no_retry(proxied, bucket_uri, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(StorageError, match="cannot be read"):
        open_storage(bucket_uri).read("a")
    assert counted("sskt_s3_errors") == {"GetObject 403": 1}
    assert metrics.traffic() == Traffic(1, 0)
