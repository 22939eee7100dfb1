import threading
import time

import pytest

from cluster import notices
from cluster.notices import Metadata, Notice, NoticeError, attend
from tests.metadata import metadata


@pytest.fixture
def service():
    with metadata() as running:
        yield running


def test_a_machine_that_nobody_wants_is_not_reclaimed(service):
    source = Metadata(service.endpoint)
    assert [source.reclaimed() for _ in range(3)] == [None] * 3
    assert (len(service.tokens), service.asked) == (1, 3)


def test_a_notice_says_when_the_machine_goes(service):
    source = Metadata(service.endpoint + "/")
    until = service.reclaim(118)
    assert source.reclaimed() == until


def test_a_token_that_is_no_longer_taken_is_renewed(service):
    source = Metadata(service.endpoint)
    source.reclaimed()
    service.tokens.clear()
    until = service.reclaim(60)
    with pytest.raises(NoticeError, match=r"^http://127.0.0.1:\d+ answers 401$"):
        source.reclaimed()
    assert source.reclaimed() == until


@pytest.mark.parametrize("said", [b"soon", b"{}", b'{"time": "tomorrow"}', b"[]", b'{"time": 3}'])
def test_what_is_no_notice_is_none(service, said):
    service.notice = said
    with pytest.raises(NoticeError, match="answers what is no notice"):
        Metadata(service.endpoint).reclaimed()


def test_no_proxy_is_asked_for_what_the_machine_knows_itself(service, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", service.endpoint)
    assert Metadata().reclaimed() is None


def test_other_machines_have_no_such_service():
    with pytest.raises(NoticeError, match=r"^http://127.0.0.1:9 does not answer \(.*refused"):
        Metadata("http://127.0.0.1:9").reclaimed()


@pytest.fixture
def quick(monkeypatch):
    monkeypatch.setattr(notices, "POLL_SECONDS", 0.01)


class Answers:
    """Gives what it was given, one after the other: values, or errors to raise."""

    def __init__(self, *answers):
        self.left, self.heard = list(answers), []

    def __call__(self, *heard):
        self.heard.append(heard)
        answer = self.left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.mark.usefixtures("quick")
def test_what_troubles_is_said_once_and_tried_again():
    away, refused = NoticeError("away"), NoticeError("no node")
    said, tell = [], Answers(refused, refused, "told")
    assert attend(Answers(away, away, None, away, 70.0), tell, ending=threading.Event(), say=said.append) == "told"
    assert tell.heard == [(70.0,)] * 3
    assert said == [f"{what}; tried again every 0.01 s" for what in ("away", "away", "no node")]


def test_a_machine_that_ends_is_told_at_once_whatever_the_service_says():
    ending, tell = threading.Event(), Answers("told")
    threading.Timer(0.1, ending.set).start()
    began = time.monotonic()
    assert attend(lambda: None, tell, ending=ending, say=print) == "told"
    assert tell.heard == [(0.0,)]
    assert time.monotonic() - began < notices.POLL_SECONDS / 2


@pytest.mark.usefixtures("quick")
@pytest.mark.parametrize("reclaimed", [None, 70.0])
def test_where_ray_cannot_be_told_a_machine_that_ends_is_not_kept(reclaimed):
    ending, said = threading.Event(), []
    threading.Timer(0.1, ending.set).start()

    def tell(until: float) -> str:
        raise NoticeError("no node")

    with pytest.raises(NoticeError, match="no node"):
        attend(lambda: reclaimed, tell, ending=ending, say=said.append)
    assert said == (["no node; tried again every 0.01 s"] if reclaimed else [])


def test_a_notice_is_heard_within_one_look_and_never_taken_back():
    asked, gone = Answers(None, None, 1234.5), threading.Event()
    notice = Notice(lambda: asked() if gone.is_set() else None, every=0.01)
    time.sleep(0.05)
    assert not notice.given()
    gone.set()
    deadline = time.monotonic() + 5
    while not notice.given():
        assert time.monotonic() < deadline
        time.sleep(0.005)
    assert notice.until == 1234.5
    time.sleep(0.05)
    assert asked.left == []  # it would have raised, had anybody asked again
    assert notice.given()


def test_a_deadline_that_is_not_known_is_a_notice_too():
    notice = Notice(lambda: 0.0, every=0.01)
    while not notice.given():
        time.sleep(0.005)
    assert str(notice).endswith(", which goes")


def test_to_look_costs_a_training_step_nothing():
    """Of a step of a millisecond less than a thousandth."""
    notice = Notice(lambda: None)
    began = time.perf_counter()
    for _ in range(10_000):
        notice.given()
    assert (time.perf_counter() - began) / 10_000 < 1e-6
