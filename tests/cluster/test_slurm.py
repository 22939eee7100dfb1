"""The script for Slurm, with programs that stand for Slurm and Ray and write down what they are asked."""

import os
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent.parent.parent / "cluster" / "slurm.sh"


@pytest.fixture
def slurm(tmp_path):
    """A folder of programs that stand for Slurm and Ray, and an environment in which the script finds them."""
    programs = tmp_path / "env" / "bin"
    programs.mkdir(parents=True)
    log = tmp_path / "log"
    said = {
        "scontrol": "printf 'one\\ntwo\\nthree\\n'",
        "hostname": "echo 10.0.0.1 172.17.0.1",
        # The options first, then what is to run on the node, which runs here.
        "srun": "while [[ $1 == --* ]]; do [[ $1 == --nodelist=* ]] && node=${1#*=}; shift; done\n"
        'echo "$node: $*" >> "$LOG"\nexec "$@"',
        "ray": 'stat -c "token %a" "$RAY_AUTH_TOKEN_PATH" >> "$LOG"; wc -c < "$RAY_AUTH_TOKEN_PATH" >> "$LOG"\n'
        'echo $$ >> "$LOG.pids"; exec sleep 60',
        # The doctor finds the cluster whole once all have started.
        "python": 'echo "$RAY_AUTH_MODE $RAY_ADDRESS" >> "$LOG"; [[ $* == *doctor* ]] || exit 0\n'
        "for i in {1..100}; do\n"
        '[[ $(cat "$LOG.pids" 2> /dev/null | wc -l) != 3 ]] || exit "${DOCTOR:-0}"; sleep 0.1\n'
        "done",
    }
    for name, body in said.items():
        (programs / name).write_text(f"#!/bin/bash\n{body}\n")
        (programs / name).chmod(0o755)
    environment = {
        "PATH": os.environ["PATH"],
        "LOG": str(log),
        "SSKT_ENV": str(programs.parent),
        "SSKT_PATIENCE": "1",
        "SLURM_JOB_ID": "123456",
        "SLURM_JOB_NODELIST": "node[1-3]",
        "SLURM_CPUS_PER_TASK": "8",
        "SLURM_GPUS_ON_NODE": "4",
    }
    return environment, log


def start_job(environment: dict, folder: Path, *command: str) -> subprocess.Popen:
    return subprocess.Popen(
        ["bash", str(SCRIPT), *command], cwd=folder, env=environment, stderr=subprocess.PIPE, text=True
    )


def assert_nothing_is_left(folder: Path, log: Path) -> None:
    assert list(folder.glob(".sskt-*")) == []
    for pid in Path(f"{log}.pids").read_text().split():
        with pytest.raises(ProcessLookupError):
            os.kill(int(pid), 0)


def test_a_job_starts_head_and_workers_runs_the_command_and_ends_all(slurm, tmp_path):
    environment, log = slurm
    job = start_job(environment, tmp_path, "python", "-m", "pipeline", "sweep", "mine.yaml")
    assert job.wait(timeout=30) == 0, job.stderr.read()
    said = log.read_text()
    port = 20000 + 3456
    assert re.search(rf"one: ray start --head --block --node-ip-address 10.0.0.1 --port {port} ", said)
    assert "--dashboard-host 127.0.0.1" in said
    for node in ("two", "three"):
        assert f"{node}: ray start --address 10.0.0.1:{port} --block --num-cpus 8 --num-gpus 4" in said
    assert "one: python -m cluster doctor --nodes 3" in said
    assert "one: python -m pipeline sweep mine.yaml" in said
    assert f"token 10.0.0.1:{port}" in said
    assert said.count("token 600") == 3
    assert "\n64\n" in said
    assert_nothing_is_left(tmp_path, log)


def test_a_job_fails_with_its_command(slurm, tmp_path):
    environment, log = slurm
    assert start_job(environment, tmp_path, "bash", "-c", "exit 7").wait(timeout=30) == 7
    assert_nothing_is_left(tmp_path, log)


def test_no_command_runs_on_a_sick_cluster(slurm, tmp_path):
    environment, log = slurm
    assert start_job(environment | {"DOCTOR": "1"}, tmp_path, "touch", "ran").wait(timeout=30) == 1
    assert not (tmp_path / "ran").exists()
    assert_nothing_is_left(tmp_path, log)


def test_a_preempted_job_cleans_up(slurm, tmp_path):
    environment, log = slurm
    job = start_job(environment, tmp_path, "sleep", "60")
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and "one: sleep" not in (log.read_text() if log.exists() else ""):
        time.sleep(0.05)
    job.send_signal(signal.SIGTERM)
    assert job.wait(timeout=20) == 143
    assert_nothing_is_left(tmp_path, log)


@pytest.mark.parametrize("command", [[], ["true"]])
def test_a_job_without_command_or_slurm_is_refused(slurm, tmp_path, command):
    environment, log = slurm
    if command:
        del environment["SLURM_JOB_NODELIST"]
    job = start_job(environment, tmp_path, *command)
    assert job.wait(timeout=10) == 2
    assert "slurm.sh: " in job.stderr.read()
    assert not log.exists()


def test_the_job_is_a_sound_script_that_may_be_queued_again():
    assert subprocess.run(["bash", "-n", SCRIPT], check=False).returncode == 0
    assert re.search(r"^#SBATCH --requeue$", SCRIPT.read_text(), re.MULTILINE)
    assert os.access(SCRIPT, os.X_OK)
    if program := shutil.which("shellcheck"):
        done = subprocess.run([program, SCRIPT], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout
