import asyncio
import io
import os
import socket
import time
import zipfile

import pytest

from cluster import jobs as module
from cluster.jobs import (
    ADDRESS,
    Job,
    Jobs,
    JobsError,
    Order,
    State,
    UnreachableError,
    checked_address,
    essence,
    to_table,
    usual_address,
)
from tests.dashboard import Dashboard, serving

ORDER = Order(verb="sweep", file="mine.yaml", text=b"storage: /x\n", command="python -m pipeline", name="sskt-a")


@pytest.fixture
def dashboard(monkeypatch):
    """One that answers, at an address that the environment does not name."""
    monkeypatch.setenv("RAY_API_SERVER_ADDRESS", "")  # set by what is tested, so to be put back
    monkeypatch.setenv("RAY_ADDRESS", "10.9.9.9:6379")
    there = Dashboard()
    with serving(there) as address:
        there.address = address
        yield there


def test_jobs_are_those_of_this_project_the_oldest_first(dashboard):
    dashboard.job("sskt-b", "PENDING", start_time=3000, message="Job has not started yet.")
    dashboard.job("sskt-a", "FAILED", start_time=2000, end_time=2500, driver_exit_code=2, message="x\nerror: y\n")
    dashboard.job("raysubmit_1")
    dashboard.jobs.append({"type": "DRIVER", "status": "RUNNING", "entrypoint": "", "job_id": "01"})
    dashboard.job("sskt-c", "STOPPED", start_time=4000, metadata={"verb": "pack", "experiment": "mine.yaml"})
    first, second, third = Jobs(dashboard.address).all()
    assert first == Job(
        name="sskt-a", verb="", experiment="", state=State.FAILED, started=2, ended=2.5, exit_code=2, message="error: y"
    )
    assert (second.name, second.state, second.message) == ("sskt-b", State.WAITING, "Job has not started yet.")
    assert (third.verb, third.experiment, third.state, third.message) == ("pack", "mine.yaml", State.CANCELLED, "")
    assert Jobs(dashboard.address).get("sskt-b") == second
    assert Jobs(dashboard.address).get("raysubmit_1") is None


def test_the_file_and_nothing_else_is_sent(dashboard, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "theirs")
    Jobs(dashboard.address).send("sskt-a", ORDER)
    [sent], [package] = dashboard.posted, dashboard.packages
    assert set(sent["runtime_env"]) - {"_ray_commit"} == {"working_dir"}
    assert sent["metadata"] == {"verb": "sweep", "experiment": "mine.yaml"}
    assert (sent["entrypoint"], sent["submission_id"]) == ("python -m pipeline", "sskt-a")
    with zipfile.ZipFile(io.BytesIO(package)) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == {"mine.yaml": ORDER.text}
    assert "theirs" not in f"{sent}{package}"


def test_a_job_that_is_there_already_counts_as_sent(dashboard):
    """Another was faster, or the answer was lost; without the job it is a failure that may pass."""
    dashboard.status["POST /api/jobs/"] = 500
    with pytest.raises(UnreachableError, match="answers: ValueError: no"):
        Jobs(dashboard.address).send("sskt-a", ORDER)
    dashboard.job("sskt-a")
    Jobs(dashboard.address).send("sskt-a", ORDER)
    dashboard.status["POST /api/jobs/"] = 400
    with pytest.raises(JobsError, match="answers: ValueError: no"):
        Jobs(dashboard.address).send("sskt-a", ORDER)


def test_a_job_is_told_to_stop(dashboard):
    dashboard.job("sskt-a")
    Jobs(dashboard.address).stop("sskt-a")
    assert Jobs(dashboard.address).get("sskt-a").state is State.CANCELLED


def test_a_log_comes_in_pieces_and_may_break_off(dashboard):
    dashboard.job("sskt-a")
    dashboard.log, dashboard.cuts = "one\ntwo\nthree\n", [10]
    told = []

    async def read():
        async for text in Jobs(dashboard.address).log("sskt-a"):
            told.append(text)

    with pytest.raises(UnreachableError, match="the log of sskt-a breaks off"):
        asyncio.run(read())
    assert dashboard.log.startswith("".join(told))
    told.clear()
    asyncio.run(read())
    assert "".join(told) == dashboard.log
    dashboard.status["GET /api/jobs/sskt-a/logs/tail"] = 404
    with pytest.raises(UnreachableError):
        asyncio.run(read())


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (401, "asks for a token; set RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH"),
        (403, "refuses the token of RAY_AUTH_TOKEN_PATH"),
        (404, "Version check returned 404"),
        (502, "does not answer as a Ray dashboard; give the address"),
    ],
)
def test_a_first_contact_that_fails_is_bad_input_in_one_line(dashboard, status, words):
    dashboard.status["GET /api/version"] = status
    with pytest.raises(JobsError, match=words) as error:
        Jobs(dashboard.address)
    assert dashboard.address in str(error.value)
    assert "\n" not in str(error.value)


def test_the_variable_that_holds_the_token_is_named(dashboard, monkeypatch):
    monkeypatch.setenv("RAY_AUTH_TOKEN", "x")
    dashboard.status["GET /api/version"] = 403
    with pytest.raises(JobsError, match=r"refuses the token of RAY_AUTH_TOKEN;"):
        Jobs(dashboard.address)


@pytest.mark.parametrize("version", [[], {"else": 1}, {"ray_version": "?"}, None])
def test_another_server_is_no_dashboard(dashboard, version):
    dashboard.version = version
    with pytest.raises(JobsError, match="does not answer as a Ray dashboard"):
        Jobs(dashboard.address)


def test_an_address_where_nobody_listens_or_answers_is_not_waited_for(dashboard, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        closed = f"http://127.0.0.1:{server.getsockname()[1]}"
    with pytest.raises(JobsError, match=f"{closed} does not answer"):
        Jobs(closed)
    assert sum(module.FIRST_SECONDS) < 10
    monkeypatch.setattr(module, "FIRST_SECONDS", (0.3, 0.3))
    dashboard.hangs = True
    began = time.monotonic()
    with pytest.raises(JobsError, match="does not answer"):
        Jobs(dashboard.address)
    assert time.monotonic() - began < 3


def test_later_on_silence_and_errors_of_the_head_may_pass(dashboard, monkeypatch):
    monkeypatch.setattr(module, "SECONDS", (0.3, 0.3))
    jobs = Jobs(dashboard.address)
    dashboard.hangs = True
    with pytest.raises(UnreachableError):
        jobs.all()
    dashboard.hangs = False
    dashboard.status["GET /api/jobs/"] = 500
    with pytest.raises(UnreachableError, match="answers: ValueError: no"):
        jobs.get("sskt-a")
    dashboard.status["GET /api/jobs/"] = 403
    with pytest.raises(JobsError, match="refuses the token"):
        jobs.get("sskt-a")


@pytest.mark.parametrize("address", ["http://head:8265", "https://head/ray", "http://[::1]:1"])
def test_an_address_is_one_of_a_web_server(address):
    assert checked_address(f"{address}/") == address


@pytest.mark.parametrize(
    "address", ["", "auto", "head:8265", "10.0.0.1:6379", "ray://head:10001", "http://", "http://h:x"]
)
def test_other_addresses_are_refused(address):
    with pytest.raises(JobsError, match="write it as http://HOST:8265"):
        checked_address(address)


@pytest.mark.parametrize(
    ("named", "usual"),
    [
        ({}, ADDRESS),
        ({"RAY_ADDRESS": "auto"}, ADDRESS),
        ({"RAY_ADDRESS": "10.0.0.1:6379"}, ADDRESS),
        ({"RAY_ADDRESS": "http://head:1"}, "http://head:1"),
        ({"RAY_ADDRESS": "http://head:1", "RAY_API_SERVER_ADDRESS": "https://other"}, "https://other"),
    ],
)
def test_the_environment_may_name_the_dashboard(monkeypatch, named, usual):
    for name in ("RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in named.items():
        monkeypatch.setenv(name, value)
    assert usual_address() == usual


@pytest.mark.parametrize(
    ("message", "line"),
    [
        ("", ""),
        ("one\n\n two \n", "two"),
        ("failed with exit code 2, last logs:\nusage: x\nx: error: no such thing\nbye\n", "x: error: no such thing"),
        ("error: first\nerror: second\n", "error: second"),
    ],
)
def test_the_line_that_matters_is_found(message, line):
    assert essence(message) == line


def test_a_table_has_a_line_for_each_job(monkeypatch):
    monkeypatch.setitem(os.environ, "TZ", "UTC")
    time.tzset()
    done = Job(name="sskt-a", verb="pack", experiment="a.yaml", state=State.SUCCEEDED, started=0, ended=3661)
    other = Job(name="sskt-bb", verb="sweep", experiment="b.yaml", state=State.RUNNING, started=60, message="m")
    assert to_table([done, other], now=65.5).splitlines() == [
        "name     verb   experiment  state      started              duration  message",
        "sskt-a   pack   a.yaml      succeeded  1970-01-01 00:00:00  1:01:01",
        "sskt-bb  sweep  b.yaml      running    1970-01-01 00:01:00  0:00:05   m",
    ]
    monkeypatch.undo()
    time.tzset()
