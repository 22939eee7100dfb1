"""What a cluster is: nodes, what they cost and how long they live, the storage they share.

A description is a small YAML file; without one it is this machine.
"""

import math
from dataclasses import dataclass, field, fields
from pathlib import Path

import torch

from cluster.resources import Resources, concurrency, local_limits
from cluster.session import is_local
from pipeline.caches.claims import LEASE
from pipeline.planning.strict_yaml import parse_yaml
from pipeline.planning.validation import validate
from sskt.errors import InputError

HOUR = 3600.0


@dataclass(frozen=True, kw_only=True)
class Fleet:
    """The machines."""

    nodes: int
    start_seconds: float = 0.0
    """Until a new node, or one that replaces another, takes work."""
    loss_per_hour: float = 0.0
    """Of each node, at any time alike."""
    replacement_seconds: float = 0.0
    lease: float = LEASE
    """Until what a lost node worked on is given to another."""
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class Link:
    """The storage, as a client sees it."""

    latency: float = 0.0
    """Seconds of a request."""
    bytes_per_second: float = math.inf
    """Of one client."""
    requests_per_second: float = math.inf
    """Of all clients together, below one prefix; what was not used of the last second may be made up for."""


@dataclass(frozen=True, kw_only=True)
class StorageDescription:
    """How a storage answers, and what that costs. The prices are those of S3 in most regions of AWS, in dollars."""

    latency_ms: float = 0.0
    """Of a request."""
    mb_per_second: float | None = None
    """Of one client; None is no limit."""
    requests_per_second: float | None = None
    """Of all clients below one prefix; S3 answers 3500 that write. None is no limit."""
    price_per_1000_writes: float = 0.005
    """PUT and LIST."""
    price_per_1000_reads: float = 0.0004
    """GET."""

    def __post_init__(self) -> None:
        for name in ("latency_ms", "price_per_1000_writes", "price_per_1000_reads"):
            _at_least_0(f"storage.{name}", getattr(self, name))
        for name in ("mb_per_second", "requests_per_second"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"storage.{name} is {value}; it has to be above 0, or left out for no limit")

    @property
    def link(self) -> Link:
        """The same for the simulation."""
        return Link(
            latency=self.latency_ms / 1000,
            bytes_per_second=(self.mb_per_second or math.inf) * 1e6,
            requests_per_second=self.requests_per_second or math.inf,
        )


@dataclass(frozen=True, kw_only=True)
class Supposed:
    """An experiment of another size than the one in the file; None is as in the file."""

    images: int | None = None
    """Of the pool; held-out splits grow alike."""
    trials: int | None = None
    """Those that are still to be done, the experiment's own in turn."""

    def __post_init__(self) -> None:
        for name in ("images", "trials"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise InputError(f"suppose.{name} is {value}; it has to be at least 1")


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """Machines that are all alike, and their storage."""

    nodes: tuple[int, ...] = (1,)
    """Sizes to compare; the first is the one that is forecast in full."""
    cpus: float
    """Of each node, as all that follows."""
    gpus: float = 0
    memory_gb: float
    disk_gb: float | None = None
    """For copies of what lies on the storage; None is enough."""
    speed: float = 1.0
    """How many times as fast it is as the machine that was measured."""
    network_mb_per_second: float | None = None
    """From node to node; None is no limit."""
    price_per_hour: float = 0.0
    start_seconds: float = 0.0
    """From the request for a node until it takes work."""
    loss_per_hour: float = 0.0
    """How often a node is lost, such as 0.05 of spot machines."""
    replacement_seconds: float = 0.0
    """Until another is offered in its place; it then takes its start_seconds."""
    seed: int = 0
    """Of when nodes are lost."""
    storage: StorageDescription = field(default_factory=StorageDescription)
    suppose: Supposed = field(default_factory=Supposed)

    def __post_init__(self) -> None:
        if not self.nodes or min(self.nodes) < 1:
            raise InputError(f"nodes are {list(self.nodes)}; name at least one size, each at least 1")
        for name in ("cpus", "memory_gb", "speed"):
            if not getattr(self, name) > 0:
                raise InputError(f"{name} is {getattr(self, name)}; it has to be above 0")
        for name in ("disk_gb", "network_mb_per_second"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise InputError(f"{name} is {value}; it has to be above 0, or left out for no limit")
        for name in ("gpus", "price_per_hour", "start_seconds", "loss_per_hour", "replacement_seconds"):
            _at_least_0(name, getattr(self, name))

    def places(self, need: Resources, *, workers: int = 1) -> int:
        """How many pieces of work a node holds; one that is spread over workers has them all on one node."""
        node = Resources(self.cpus, self.gpus, self.memory_gb * 1e9, need.labels)
        return concurrency([node], need, workers=workers)

    def fleet(self, nodes: int) -> Fleet:
        """So many of them, for the simulation."""
        told = {one.name: getattr(self, one.name) for one in fields(Fleet) if hasattr(self, one.name)}
        return Fleet(**told | {"nodes": nodes})


def load_cluster(path: str) -> Cluster:
    """Read a description; every mistake is one line."""
    try:
        raw = parse_yaml(Path(path).read_text())
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: the description of the cluster cannot be read: {error}") from error
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    sizes = raw.get("nodes", 1)
    try:
        return validate(Cluster, raw | {"nodes": sizes if isinstance(sizes, list) else [sizes]})
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def this_machine() -> Cluster:
    """The machine that asks. Of a cluster that runs elsewhere nothing is known here."""
    if not is_local():
        raise InputError("RAY_ADDRESS names a cluster; describe its nodes in a file and name that with --cluster")
    (node,) = local_limits(gpus=torch.cuda.device_count())
    return Cluster(cpus=node.cpus, gpus=node.gpus, memory_gb=node.memory / 1e9)


def _at_least_0(name: str, value: float) -> None:
    if not value >= 0:
        raise InputError(f"{name} is {value}; it has to be at least 0")
