import json
import logging
import math
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from cluster.logs import LogError, check_choice, event
from cluster.metrics import working


def test_a_line_says_when_what_where_and_for_which_work(log_lines):
    with working("mine", "train"):
        event("trial_epoch", run_key="ab12", epoch=3, score=91.23456789)
    event("storage_retry", level=logging.WARNING, attempt=2, code="503")
    first, second = log_lines()
    when = datetime.fromisoformat(first.pop("time"))
    assert timedelta(0) <= datetime.now(UTC) - when < timedelta(seconds=5)
    assert first == {
        "level": "info",
        "event": "trial_epoch",
        "experiment": "mine",
        "stage": "train",
        "node": platform.node(),
        "pid": os.getpid(),
        "run_key": "ab12",
        "epoch": 3,
        "score": 91.234568,
    }
    assert (second["level"], second["stage"], second["attempt"]) == ("warning", "", 2)


@pytest.mark.parametrize("message", ['two\nlines and a "quote"', "ä € \u2028", "", "x" * 100_000])
def test_any_text_is_one_line(log_lines, message):
    event("notice", message=message)
    assert [line["message"] for line in log_lines()] == [message]


def test_what_json_cannot_say_is_said_otherwise(log_lines):
    event("trial_ended", score=math.nan, reason=None, path=Path("a/b"), done=True)
    (line,) = log_lines()
    assert (line["score"], line["reason"], line["path"], line["done"]) == (None, None, "a/b", True)


def test_without_the_variable_nothing_is_logged(monkeypatch, capsys):
    monkeypatch.delenv("SSKT_LOG", raising=False)
    event("notice", message="hello")
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("chosen", ["JSON", "plain", "1"])
def test_another_kind_of_log_is_refused(monkeypatch, chosen):
    monkeypatch.setenv("SSKT_LOG", chosen)
    with pytest.raises(LogError, match=f"^SSKT_LOG is '{chosen}'; it has to be json, or not set$"):
        check_choice()
    for right in ("json", ""):
        monkeypatch.setenv("SSKT_LOG", right)
        check_choice()


def test_loggers_of_other_libraries_do_not_hear_it():
    program = """
import logging
logging.basicConfig(format="other %(message)s")
from cluster.logs import event
event("notice", message="hello")
"""
    told = os.environ | {"SSKT_LOG": "json"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, env=told)
    assert [json.loads(line)["message"] for line in done.stderr.splitlines()] == ["hello"]
