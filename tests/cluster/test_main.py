import json

import pytest

from cluster import __main__ as command
from cluster.__main__ import main
from cluster.doctor import ClusterFacts
from cluster.examine import JoinError


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
