"""How many pieces of work fit on the cluster at once: computed, not guessed."""

import math
from dataclasses import dataclass


class ResourceError(ValueError):
    """A piece of work that can never fit."""


@dataclass(frozen=True)
class Resources:
    """Processors and devices, of one piece of work or of a whole cluster."""

    cpus: float = 1
    gpus: float = 0


def concurrency(total: Resources, need: Resources) -> int:
    """How many pieces of work fit at once: the scarcest resource decides. One that never fits is an error."""
    fits = [
        math.floor(there / wanted + 1e-9)
        for there, wanted in ((total.cpus, need.cpus), (total.gpus, need.gpus))
        if wanted > 0
    ]
    if not fits or min(fits) < 1:
        raise ResourceError(
            f"a trial or worker needs {need.cpus:g} CPUs and {need.gpus:g} GPUs; "
            f"the cluster has {total.cpus:g} and {total.gpus:g}"
        )
    return min(fits)


def cluster_resources() -> Resources:
    """What the running session has in all."""
    import ray  # only where a session runs

    total = ray.cluster_resources()
    return Resources(cpus=total.get("CPU", 0), gpus=total.get("GPU", 0))
