import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cluster import session
from cluster.session import usable_cpus, withhold_credentials

LARGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")


def test_processors_are_counted():
    assert 1 <= usable_cpus() <= (os.cpu_count() or 1)


@pytest.mark.usefixtures("ray_session")
def test_a_running_session_is_joined():
    import ray

    from cluster.session import start_session

    before = ray.get_runtime_context().get_job_id()
    start_session()
    assert ray.get_runtime_context().get_job_id() == before
    assert ray.cluster_resources()["CPU"] == usable_cpus()


@pytest.mark.usefixtures("ray_session")
def test_tensors_of_workers_lie_in_large_pages():
    import ray

    if not LARGE_PAGES.is_file() or "[never]" in LARGE_PAGES.read_text():
        pytest.skip("this system gives none")

    @ray.remote
    def faults():
        import resource

        import torch

        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        torch.empty(128 << 20, dtype=torch.uint8).fill_(1)
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    assert ray.get(faults.remote()) < (128 << 20) // 4096 / 4, "a quarter of what small pages would cost"


def test_a_start_that_ran_out_of_its_time_is_tried_once_more():
    tried = []

    def slow_once():
        tried.append(1)
        if len(tried) == 1:
            raise Exception("The current node timed out during startup. This could happen because ...")

    session._patiently(slow_once)
    assert len(tried) == 2

    def broken():
        tried.append(1)
        raise RuntimeError("no such address")

    with pytest.raises(RuntimeError, match="no such"):
        session._patiently(broken)
    assert len(tried) == 3


INTERRUPTED_START = """
import os, signal
import ray
from ray import _raylet
from cluster.session import start_session

make = _raylet.CoreWorker

def interrupted(*given, **named):
    made = make(*given, **named)
    os.kill(os.getpid(), signal.SIGINT)
    return made

_raylet.CoreWorker = interrupted
try:
    start_session()
except KeyboardInterrupt:
    print("interrupted,", "started" if ray.is_initialized() else "half started")
"""


@pytest.mark.ray
def test_an_interrupt_waits_until_a_session_has_started():
    ran = subprocess.run(
        [sys.executable, "-c", INTERRUPTED_START], capture_output=True, text=True, timeout=120, check=False
    )
    assert (ran.returncode, ran.stdout) == (0, "interrupted, started\n"), ran.stderr


def test_a_second_interrupt_does_not_wait():
    with pytest.raises(KeyboardInterrupt), session._held_back():
        signal.raise_signal(signal.SIGINT)
        reached = True
        signal.raise_signal(signal.SIGINT)
        reached = False
    assert reached
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_looking_at_the_module_starts_nothing():
    program = "import sys, cluster.session, cluster.resources; print('ray' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_tune_hands_on_no_credentials(monkeypatch):
    """Were they no longer among Tune's names, or elsewhere, there would be nothing to withhold, or not there."""
    from ray.tune.execution import class_cache

    names = class_cache.ENV_VARS_TO_PROPAGATE | {"AWS_ACCESS_KEY_ID", "AWS_SESSION_TOKEN"}
    monkeypatch.setattr(class_cache, "ENV_VARS_TO_PROPAGATE", set(names))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "theirs")
    monkeypatch.setenv("RAY_CHDIR_TO_TRIAL_DIR", "0")
    withhold_credentials()
    made = class_cache._ActorClassCache().get(type("Trainable", (), {}))
    handed_on = made._default_options["runtime_env"]["env_vars"]
    assert handed_on["RAY_CHDIR_TO_TRIAL_DIR"] == "0"
    assert "theirs" not in handed_on.values()


def test_the_token_of_this_machines_sessions_is_its_owners_alone(tmp_path, monkeypatch):
    for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    file, umask = tmp_path / ".ray" / "auth_token", os.umask(0)
    try:
        session._keep_token_private()
        token = file.read_text()
        assert re.fullmatch("[0-9a-f]{64}", token)
        assert file.stat().st_mode & 0o777 == 0o600
        file.chmod(0o644)  # as Ray writes it
        session._keep_token_private()
    finally:
        os.umask(umask)
    assert (file.read_text(), file.stat().st_mode & 0o777) == (token, 0o600)
    assert [path.name for path in file.parent.iterdir()] == ["auth_token"]


def test_a_token_that_a_person_names_is_left_to_him(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    session._keep_token_private()
    assert list(tmp_path.iterdir()) == []
