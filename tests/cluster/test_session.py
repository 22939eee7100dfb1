import os
import subprocess
import sys

import pytest

from cluster.session import usable_cpus


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
