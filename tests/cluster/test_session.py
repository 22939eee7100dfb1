import os
import subprocess
import sys

import pytest

from cluster.session import usable_cpus, withhold_credentials


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
