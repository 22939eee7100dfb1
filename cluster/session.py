"""The Ray session: the only place that calls `ray.init`."""

import logging
import os
import secrets
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from types import FrameType

from cluster.logs import as_json
from cluster.metrics import export

# Read by Ray, or by what its workers compute with, when they start.
_ENVIRONMENT = {
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths of an experiment file keep their meaning inside trials
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # Train takes one report per poll; 2 s would stall short epochs
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # a worker without a GPU sees none, and Ray need not warn of it
    "RAY_AIR_NEW_OUTPUT": "0",  # Tune's own tables; ours are shown instead
    "THP_MEM_ALLOC_ENABLE": "1",  # PyTorch asks the system for large pages; a batch's layers cost a fault for each page
    "TUNE_DISABLE_SIGINT_HANDLER": "1",  # Ctrl-C ends the command at once; what is finished is kept anyway
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",  # results are ours; three loggers a trial cost more than small trials
}

# Their warnings are about defaults that are meant: tokens are on, Tune keeps no files of its own.
_TALKATIVE = ("ray._private.authentication", "ray.tune", "ray.data")


def start_session() -> None:
    """Join the cluster RAY_ADDRESS names, or start a local one; nothing if one is running. It ends with the process."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.ERROR)
    import ray  # takes a second, and work that is found done never needs it

    if ray.is_initialized():
        return
    with _held_back():
        if is_local():
            _keep_token_private()
            # No dashboard: nothing here asks it. What a stopped Ray Train run held is given back in
            # pipeline/trials/tuning.py.
            here = {"address": "local", "num_cpus": usable_cpus(), "include_dashboard": False}
            _patiently(partial(ray.init, **here, logging_level=logging.WARNING, log_to_driver=False))
        else:
            # Lines of workers would stand among those of the driver, behind a prefix that is no JSON.
            ray.init(logging_level=logging.WARNING, log_to_driver=not as_json())
    export()


def _patiently(start: Callable[[], object]) -> None:
    """Start again where Ray gave up: it waits half a minute for its processes, which a busy machine may exceed once."""
    try:
        start()
    except Exception as error:
        if "timed out during startup" not in str(error):  # Ray has no class for it
            raise
        start()


@contextmanager
def _held_back() -> Iterator[None]:
    """Have interrupts wait until Ray has started; the second gets through.

    One that comes while Ray makes its core worker leaves a worker that Ray knows nothing of and does not stop: its
    threads take the process down when it ends. Ray also puts a handler of its own on SIGTERM; where the command has
    one, that stays.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGALRM)
    handlers = {number: handler for number in numbers if callable(handler := signal.getsignal(number))}
    held: list[int] = []

    def hold(number: int, frame: FrameType | None) -> None:
        if held:
            handlers[number](number, frame)
        held.append(number)

    for number in handlers:
        signal.signal(number, hold)
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        if held:
            signal.raise_signal(held[0])


def _keep_token_private() -> None:
    """Have the token of this machine's sessions where its owner alone reads it: Ray would write it for all to read."""
    if {"RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"} & os.environ.keys():
        return
    file = Path.home() / ".ray" / "auth_token"
    file.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile("w", dir=file.parent) as fresh, suppress(FileExistsError):
        fresh.write(secrets.token_hex(32))
        fresh.flush()
        os.link(fresh.name, file)  # whole, or another process's
    file.chmod(0o600)


def withhold_credentials() -> None:
    """Keep Ray Tune from handing those of AWS to its actors: they would stand in logs that anybody may read.

    Actors have them without that: from their node's environment, its ~/.aws or its role, as all other workers.
    """
    from ray.tune.execution import class_cache  # only inside a session

    handed_on = class_cache.ENV_VARS_TO_PROPAGATE
    handed_on -= {name for name in handed_on if name.startswith("AWS_")}


def is_local() -> bool:
    """Whether sessions are started on this machine, for no address of a cluster is given."""
    return "RAY_ADDRESS" not in os.environ


def usable_cpus() -> int:
    """The processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
