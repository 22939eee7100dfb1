"""How many pieces of work fit on the cluster at once: computed, not guessed."""

import math
from dataclasses import dataclass

from cluster.session import usable_cpus


class ResourceError(ValueError):
    """A piece of work that can never fit."""


@dataclass(frozen=True)
class Resources:
    """Processors and devices, of one piece of work or of a whole cluster."""

    cpus: float = 1
    gpus: float = 0


def concurrency(total: Resources, need: Resources) -> int:
    """How many pieces of work fit at once: the scarcest resource decides. One that never fits is an error."""
    pairs = ((total.cpus, need.cpus), (total.gpus, need.gpus))
    fits = min(there / wanted for there, wanted in pairs if wanted > 0) + 1e-9
    if fits < 1:
        raise ResourceError(
            f"a trial or worker needs {need.cpus:g} CPUs and {need.gpus:g} GPUs; "
            f"the cluster has {total.cpus:g} and {total.gpus:g}"
        )
    return math.floor(fits)


def local_limits(*, gpus: int) -> Resources:
    """What a local session will have on a machine with so many devices."""
    return Resources(cpus=usable_cpus(), gpus=gpus)


def cluster_resources() -> Resources:
    """What the running session has in all."""
    import ray  # only where a session runs

    total = ray.cluster_resources()
    return Resources(cpus=total.get("CPU", 0), gpus=total.get("GPU", 0))
