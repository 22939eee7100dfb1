"""How many pieces of work fit on the cluster at once: computed, not guessed."""

import math
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cluster.notices import draining
from cluster.session import usable_cpus

OWN_LABEL = "ray.io/node-id"
"""A label of every node that no two have alike."""


class ResourceError(ValueError):
    """A piece of work that can never fit."""


@dataclass(frozen=True)
class Resources:
    """What a node has, or what a piece of work wants of its node."""

    cpus: float = 1
    gpus: float = 0
    memory: float = 0
    """Bytes, as Ray keeps account of them."""
    labels: Mapping[str, str] = field(default_factory=dict)
    """Of a node all it has, of work those its node has to have."""

    def __str__(self) -> str:
        memory = f", {self.memory / 1e9:.4g} GB" if self.memory else ""
        labels = (f", {name}={self.labels[name]}" for name in sorted(self.labels) if name != OWN_LABEL)
        return f"{self.cpus:g} CPUs, {self.gpus:g} GPUs{memory}{''.join(labels)}"

    def holds(self, need: "Resources") -> int:
        """How many pieces of work fit on this node: the scarcest resource decides."""
        if not need.labels.items() <= self.labels.items():
            return 0
        pairs = ((self.cpus, need.cpus), (self.gpus, need.gpus), (self.memory, need.memory))
        return math.floor(min(there / wanted for there, wanted in pairs if wanted > 0) + 1e-9)

    def options(self) -> dict[str, Any]:
        """The same as Ray's own options of a task or an actor."""
        return {
            "num_cpus": self.cpus,
            "num_gpus": self.gpus or None,
            "memory": self.memory or None,
            "label_selector": dict(self.labels) or None,
        }


def concurrency(nodes: Sequence[Resources], need: Resources, *, workers: int = 1) -> int:
    """How many pieces of work fit at once, each on as many places as it has workers. None is an error."""
    fits = sum(node.holds(need) for node in nodes) // workers
    if fits < 1:
        there = "; ".join(f"{count} x {words}" for words, count in Counter(map(str, nodes)).items())
        wanted = f"{workers} workers of {need}" if workers > 1 else str(need)
        raise ResourceError(f"a trial or worker needs {wanted}; the nodes have {there or 'nothing'}")
    return fits


def local_limits(*, gpus: int) -> list[Resources]:
    """What a local session will have at most on a machine with so many devices: one node, without labels."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return [Resources(cpus=usable_cpus(), gpus=gpus, memory=memory)]


def cluster_nodes() -> list[Resources]:
    """What each node of the running session has, but for those that are about to go."""
    import ray  # only where a session runs

    going = draining()
    return [node_resources(node) for node in ray.nodes() if node["Alive"] and node["NodeID"] not in going]


def node_resources(node: Mapping[str, Any]) -> Resources:
    """What a node has, as Ray describes it."""
    has = node["Resources"]
    return Resources(has.get("CPU", 0), has.get("GPU", 0), has.get("memory", 0), node["Labels"])
