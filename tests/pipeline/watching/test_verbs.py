"""`watch` waits for what is not there yet, follows, and ends by itself."""

import os
import pty
import subprocess
import sys
import time
from types import SimpleNamespace

from pipeline.__main__ import main
from pipeline.planning.experiment import load_experiment
from pipeline.stages import Stages
from pipeline.trials.results import write_result
from pipeline.watching import verbs


def packed(experiment_file):
    stages = Stages(load_experiment(str(experiment_file)), lambda line: None)
    return stages.pack(), stages.storage


def finish(storage, planned):
    write_result(storage, planned.run_key, {"metric": "accuracy", "validation": {"accuracy": 75.0}})


def test_a_single_look(experiment_file, capsys):
    plan, storage = packed(experiment_file)
    finish(storage, plan.trials[0])
    assert main(["watch", str(experiment_file), "--once"]) == 0
    text = capsys.readouterr().out
    assert f"1 done, {len(plan.trials) - 1} waiting" in text
    assert "75.0" in text


def test_what_is_not_packed_has_nothing_to_look_at(experiment_file, capsys):
    assert main(["watch", str(experiment_file), "--once"]) == 2
    assert "is not packed on" in capsys.readouterr().err


def test_without_a_terminal_there_is_a_line_for_each_look_until_the_end(experiment_file, capsys, monkeypatch):
    looks = []

    def sleep(seconds):  # what a sweep does meanwhile
        looks.append(seconds)
        if len(looks) == 1:
            packed(experiment_file)
            return
        plan, storage = packed(experiment_file)
        for planned in plan.trials[: 2 * (len(looks) - 1)]:
            finish(storage, planned)

    # Its own clock, not that of the module: threads of this process sleep too.
    monkeypatch.setattr(verbs, "time", SimpleNamespace(sleep=sleep, monotonic=time.monotonic))
    assert main(["watch", str(experiment_file)]) == 0
    said = [one for one in capsys.readouterr().out.splitlines() if not one.startswith("pack")]
    assert said[0].startswith("waiting: ")
    assert "0 of " in said[1]
    assert "waiting" not in said[-1]
    assert all(seconds >= 60 for seconds in looks[1:])


def test_in_a_terminal_the_screen_follows(experiment_file):
    """A real pseudo-terminal, and a sweep that goes on meanwhile."""
    plan, storage = packed(experiment_file)
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "pipeline", "watch", str(experiment_file)]
    environment = os.environ | {"TERM": "xterm", "COLUMNS": "90", "LINES": "40"}
    process = subprocess.Popen(command, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    seen = b""
    for planned in plan.trials:
        time.sleep(0.2)
        finish(storage, planned)
    while True:
        try:
            chunk = os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
        if not chunk:
            break
        seen += chunk
    os.close(ours)
    assert process.wait(timeout=60) == 0
    assert f"{len(plan.trials)} done".encode() in seen
