import json
import os
import re
import signal
import subprocess
import sys
import threading

import pytest

from cluster import __main__ as command
from cluster.__main__ import main
from cluster.doctor import ClusterFacts
from cluster.examine import JoinError
from tests.dashboard import Dashboard, serving
from tests.metadata import metadata


@pytest.fixture
def cluster_of_none(monkeypatch):
    """A cluster that says nothing, and what was asked of it."""
    asked = {}

    def gather(**questions):
        asked.update(questions)
        return ClusterFacts(nodes=(), expected=questions["expected"])

    monkeypatch.setattr(command, "gather", gather)
    return asked


def test_a_right_cluster_is_0_and_a_wrong_one_is_1(cluster_of_none, capsys):
    assert main(["doctor"]) == 0
    assert cluster_of_none == {"storage": "", "expected": None}
    assert main(["doctor", "--nodes", "2"]) == 1
    assert "bad  0 nodes instead of 2: see `ray status`" in capsys.readouterr().out


def test_a_relative_folder_is_the_same_for_all_nodes(cluster_of_none, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main(["doctor", "--storage", "runs"])
    assert cluster_of_none["storage"] == str(tmp_path / "runs")


@pytest.mark.usefixtures("cluster_of_none")
def test_json_says_the_same(capsys):
    assert main(["doctor", "--nodes", "2", "--json"]) == 1
    said = json.loads(capsys.readouterr().out)
    assert {"ok": False, "what": "0 nodes instead of 2", "todo": "see `ray status`; each needs address and token"} in (
        said["findings"]
    )
    assert said["facts"]["nodes"] == []


def test_a_cluster_that_cannot_be_joined_is_a_finding(monkeypatch, capsys):
    def gather(**_):
        raise JoinError("the cluster at RAY_ADDRESS=x does not answer")

    monkeypatch.setattr(command, "gather", gather)
    assert main(["doctor"]) == 1
    assert capsys.readouterr().out.startswith("bad  the cluster at RAY_ADDRESS=x does not answer: start it")
    assert main(["doctor", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["facts"] is None


def test_a_storage_of_unknown_kind_is_bad_input(capsys):
    assert main(["doctor", "--storage", "ftp://somewhere"]) == 2
    assert capsys.readouterr().err.startswith("error: storage 'ftp://somewhere'")


@pytest.mark.parametrize("arguments", [[], ["doctor", "--nodes", "0"], ["doctor", "--nodes", "-1"], ["surgeon"]])
def test_arguments_that_mean_nothing_are_bad_input(arguments):
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2


@pytest.fixture
def dashboard(monkeypatch):
    """A cluster whose jobs succeed at once, at the address that the environment names."""
    there = Dashboard()
    with serving(there) as address:
        monkeypatch.setenv("RAY_API_SERVER_ADDRESS", address)
        yield there


@pytest.fixture
def mine(tmp_path):
    (tmp_path / "mine.yaml").write_text("storage: s3://bucket/prefix\n")
    return str(tmp_path / "mine.yaml")


def test_a_submitted_job_is_followed_to_its_end(dashboard, mine, capsys):
    dashboard.log = "one\ntwo\n"
    assert main(["submit", mine, "--verb", "train", "--", "--trial", "3"]) == 0
    said = capsys.readouterr()
    assert said.out == "one\ntwo\n"
    assert dashboard.posted[0]["entrypoint"] == "python -m pipeline train ./mine.yaml --trial 3"
    assert dashboard.posted[0]["submission_id"] in said.err


def test_a_detached_job_is_only_named(dashboard, mine, capsys):
    dashboard.log = "one\n"
    assert main(["submit", mine, "--detach"]) == 0
    assert capsys.readouterr().out.strip() == dashboard.posted[0]["submission_id"]


@pytest.mark.parametrize(
    ("details", "code"),
    [
        ({"status": "SUCCEEDED", "driver_exit_code": 0}, 0),
        ({"status": "FAILED", "driver_exit_code": 1, "message": "error: why"}, 1),
        ({"status": "FAILED", "driver_exit_code": 2, "message": "error: why"}, 2),
        ({"status": "FAILED", "driver_exit_code": None, "message": "error: why"}, 1),
        ({"status": "STOPPED"}, 130),
    ],
)
def test_a_follower_has_the_jobs_exit_code_and_its_log(dashboard, capsys, details, code):
    dashboard.job("sskt-a", **details)
    dashboard.log = "one\n"
    assert main(["follow", "sskt-a"]) == code
    said = capsys.readouterr()
    assert said.out == "one\n"
    assert ("error: why" in said.err) == ("message" in details)


def test_jobs_are_listed_or_shown_one_by_one(dashboard, capsys):
    assert main(["status"]) == 0
    assert capsys.readouterr().out.startswith("no job was submitted to http://")
    dashboard.job("sskt-a", metadata={"verb": "pack", "experiment": "mine.yaml"})
    dashboard.job("sskt-b")
    assert main(["status"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["name", "sskt-a", "sskt-b"]
    assert main(["status", "sskt-a", "--json"]) == 0
    [job] = json.loads(capsys.readouterr().out)
    assert (job["name"], job["verb"], job["state"], job["started"]) == ("sskt-a", "pack", "running", 1.0)


def test_a_job_is_cancelled(dashboard, capsys):
    dashboard.job("sskt-a")
    assert main(["cancel", "sskt-a"]) == 0
    assert capsys.readouterr().err.startswith("sskt-a: cancelled; what is finished is kept")
    assert dashboard.jobs[0]["status"] == "STOPPED"


@pytest.mark.usefixtures("dashboard")
@pytest.mark.parametrize("verb", ["status", "follow", "cancel"])
def test_a_job_that_is_unknown_is_bad_input(verb, capsys):
    assert main([verb, "sskt-none"]) == 2
    assert "knows no job 'sskt-none'" in capsys.readouterr().err


def test_what_is_wrong_is_found_before_anything_is_sent(dashboard, mine, tmp_path, capsys):
    (tmp_path / "relative.yaml").write_text("storage: runs\n")
    assert main(["submit", str(tmp_path / "relative.yaml")]) == 2
    assert main(["submit", str(tmp_path / "none.yaml")]) == 2
    assert main(["submit", mine, "--address", "head:8265"]) == 2
    assert main(["status", "--", "--trial", "3"]) == 2
    wrong = capsys.readouterr().err
    assert [line.partition(" ")[0] for line in wrong.splitlines()] == ["error:"] * 4
    assert dashboard.posted == []


def test_ctrl_c_says_how_to_go_on(dashboard, monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    dashboard.job("sskt-a")
    monkeypatch.setattr(command.Supervisor, "run", interrupted)
    assert main(["follow", "sskt-a"]) == 130
    assert "python -m cluster cancel sskt-a --address http://127.0.0.1:" in capsys.readouterr().err


def test_a_cluster_that_goes_away_meanwhile_is_a_failure(dashboard, monkeypatch, capsys):
    dashboard.job("sskt-a")
    dashboard.status["POST /api/jobs/sskt-a/stop"] = 500
    assert main(["cancel", "sskt-a"]) == 1
    assert capsys.readouterr().err.startswith("failed in cancel: http://127.0.0.1:")


@pytest.mark.parametrize(
    "arguments",
    [["--verb", "demo"], ["--tries", "0"], ["--patience", "-1"], ["--patience", "nan"], ["--patience", "x"]],
)
def test_options_that_mean_nothing_are_bad_input(mine, arguments):
    with pytest.raises(SystemExit) as ended:
        main(["submit", mine, *arguments])
    assert ended.value.code == 2


def test_asking_for_help_imports_no_ray():
    program = "import sys, cluster.__main__ as m; m.make_parser(); print('ray' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


@pytest.fixture
def own_sigterm():
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("own_sigterm")
@pytest.mark.parametrize("cause", ["notice", "SIGTERM"])
def test_the_node_of_a_machine_that_goes_is_drained(monkeypatch, capsys, cause):
    told = []

    def drain(address, *, until, why):
        told.append((address, until, why))
        return "it is told"

    monkeypatch.setattr(command, "drain", drain)
    with metadata() as service:
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", service.endpoint)
        until = service.reclaim(100.9) if cause == "notice" else 0
        if cause == "SIGTERM":
            threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGTERM)).start()
        assert main(["notices", "--node-ip-address", "10.0.0.2"]) == 0
    ((address, when, why),) = told
    assert (address, when) == ("10.0.0.2", until)
    assert re.fullmatch(r"taken back in (99|100|101) s" if cause == "notice" else "SIGTERM", why)
    assert capsys.readouterr().err == "it is told\n"
