"""The Ray session: the only place that calls `ray.init`."""

import logging
import os

# Read by Ray when it starts, in this process and in every worker.
_ENVIRONMENT = {
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # relative paths of an experiment file keep their meaning inside trials
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",  # Train takes one report per poll; 2 s would stall short epochs
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",  # a worker without a GPU sees none, and Ray need not warn of it
    "RAY_AIR_NEW_OUTPUT": "0",  # Tune's own tables; ours are shown instead
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
    if not is_local():
        ray.init(logging_level=logging.WARNING)
        return
    # No dashboard: nothing here asks it. What a stopped Ray Train run held is given back in pipeline/trials/tuning.py.
    ray.init(
        "local", num_cpus=usable_cpus(), include_dashboard=False, logging_level=logging.WARNING, log_to_driver=False
    )


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
