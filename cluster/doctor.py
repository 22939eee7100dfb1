"""What has to be right before machines cost money: pure checks, from what nodes say of themselves to findings."""

import ipaddress
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

PACKAGES = (
    "ray", "torch", "torchvision", "pyarrow", "boto3", "filelock", "Jinja2", "matplotlib", "numpy", "optuna", "pillow",
    "pydantic", "PyYAML", "rich", "safetensors", "scikit-learn", "scipy", "shtab", "tqdm",
)  # fmt: skip
"""What the project runs on; a difference between nodes shows late, and far from its cause."""
MOST_CLOCK_SECONDS = 5.0
"""How far clocks may be apart; requests to S3 are refused at 15 minutes."""
LEAST_FREE_SHARE, LEAST_FREE_BYTES = 0.1, 5 * 10**9
"""Of the disk that Ray works on; it stops writing where less than a twentieth is free."""
LEAST_CREDENTIAL_SECONDS = 3600.0


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """How a process came to its credentials, never what they are."""

    found_by: str
    """Such as env, iam-role, assume-role-with-web-identity."""
    expire_in: float | None
    """Seconds, None for those that last or renew themselves."""


@dataclass(frozen=True, kw_only=True)
class StorageFacts:
    """What a node met when it used the storage."""

    problem: str = ""
    """Nothing where all went well."""
    write_rate: float = 0.0
    """Bytes per second, as the next."""
    read_rate: float = 0.0
    clock_off: float = 0.0
    """Seconds by which the storage's clock differs from the node's, at least."""


@dataclass(frozen=True, kw_only=True)
class NodeFacts:
    """What a node says of itself."""

    name: str
    python: str
    packages: Mapping[str, str]
    """Versions by the names of PACKAGES; those that are missing are left out."""
    gpus: int
    """As Ray offers them."""
    offers: str
    """All that Ray places work by, in words: processors, devices, memory, labels."""
    gpu_problem: str
    """What torch met when it used them all."""
    object_store_bytes: int
    shared_memory_bytes: int | None
    """None where memory is not shared through /dev/shm."""
    disk_bytes: int
    disk_free_bytes: int
    token: bool
    """Whether its Ray asks for the token."""
    unreachable: Sequence[str]
    """Addresses of other nodes that it cannot connect to."""
    storage: StorageFacts | None
    credentials: Credentials | None
    """Only where the storage is a bucket."""
    clock_off: float = 0.0
    """Seconds by which its clock differs from the driver's, at least."""


@dataclass(frozen=True, kw_only=True)
class ClusterFacts:
    """All that is known of a cluster."""

    nodes: Sequence[NodeFacts]
    silent: Mapping[str, str] = field(default_factory=dict)
    """Why a node said nothing, by its name."""
    expected: int | None = None
    """How many nodes there should be."""
    dashboard: str = ""
    """host:port, nothing where there is none."""
    storage: str = ""
    """Its address."""


@dataclass(frozen=True)
class Finding:
    """A line of the report."""

    what: str
    todo: str = ""
    """What to do about it; nothing where it is right."""

    @property
    def ok(self) -> bool:
        """Whether it is right."""
        return not self.todo

    def __str__(self) -> str:
        return f"ok   {self.what}" if self.ok else f"bad  {self.what}: {self.todo}"


def judge(facts: ClusterFacts) -> list[Finding]:
    """All findings, in an order in which the first bad one may explain the next."""
    return [finding for check in CHECKS for finding in check(facts)]


def clock_off(sent: float, told: float, received: float) -> float:
    """By how many seconds another clock differs at least, when it was read between two readings of ours."""
    return max(sent - told, told - received, 0.0)


def check_nodes(facts: ClusterFacts) -> Iterator[Finding]:
    """Every node is there and answers."""
    for name, why in facts.silent.items():
        yield Finding(f"node {name} says nothing ({why})", "look into its logs under /tmp/ray/session_latest/logs")
    there = len(facts.nodes) + len(facts.silent)
    if facts.expected is not None and there != facts.expected:
        yield Finding(f"{there} nodes instead of {facts.expected}", "see `ray status`; each needs address and token")
    elif facts.nodes and not facts.silent:
        yield Finding(f"nodes: {'; '.join(f'{node.name} ({node.offers})' for node in facts.nodes)}")


def check_versions(facts: ClusterFacts) -> Iterator[Finding]:
    """Python and all packages are the same everywhere."""
    differing = False
    for package in ("Python", *PACKAGES):
        nodes = defaultdict[str, list[str]](list)
        for node in facts.nodes:
            version = node.python if package == "Python" else node.packages.get(package, "missing")
            nodes[version].append(node.name)
        if len(nodes) > 1 or "missing" in nodes:
            differing = True
            said = "; ".join(f"{version} on {_listed(names)}" for version, names in nodes.items())
            yield Finding(f"{package} is {said}", "run all nodes from one image, built from requirements.txt")
    if facts.nodes and not differing:
        first = facts.nodes[0]
        yield Finding(f"Python {first.python}, Ray {first.packages['ray']} and {len(PACKAGES) - 1} packages agree")


def check_gpus(facts: ClusterFacts) -> Iterator[Finding]:
    """Torch can use what Ray offers."""
    todo = "check the driver and the container's NVIDIA runtime, and that torch is built for the device"
    yield from _judged(
        {node.name: (f"GPUs: {node.gpu_problem}", todo) for node in facts.nodes if node.gpu_problem},
        f"GPUs: {sum(node.gpus for node in facts.nodes)} offered by Ray, all usable by torch",
    )


def check_clocks(facts: ClusterFacts) -> Iterator[Finding]:
    """Clocks agree among nodes and with the storage."""
    off = {node.name: node.clock_off for node in facts.nodes}
    off |= {
        f"the storage, seen from {node.name}": node.storage.clock_off
        for node in facts.nodes
        if node.storage and not node.storage.problem
    }
    yield from _judged(
        {
            name: (f"clock is off by {seconds:.0f} s or more", "let chrony or another NTP client set the clocks")
            for name, seconds in off.items()
            if seconds > MOST_CLOCK_SECONDS
        },
        f"clocks: within {MOST_CLOCK_SECONDS:g} s of each other{' and of the storage' if facts.storage else ''}",
    )


def check_memory(facts: ClusterFacts) -> Iterator[Finding]:
    """Ray's object store fits into shared memory; otherwise it lies on disk, and is slow."""
    todo = "give the container more: --shm-size for docker, a larger emptyDir of medium Memory on Kubernetes"
    yield from _judged(
        {
            node.name: (f"shared memory is {_size(shared)}, the object store {_size(node.object_store_bytes)}", todo)
            for node in facts.nodes
            if (shared := node.shared_memory_bytes) is not None and shared < node.object_store_bytes
        },
        "shared memory: the object stores fit into /dev/shm",
    )


def check_disks(facts: ClusterFacts) -> Iterator[Finding]:
    """There is room for what Ray spills and logs."""
    problems = {}
    for node in facts.nodes:
        least = max(LEAST_FREE_BYTES, LEAST_FREE_SHARE * node.disk_bytes)
        if node.disk_free_bytes < least:
            room = f"disk has {_size(node.disk_free_bytes)} of {_size(node.disk_bytes)} free"
            problems[node.name] = (room, f"free {_size(least)}, or set RAY_TMPDIR to a larger disk before `ray start`")
    free = min((node.disk_free_bytes for node in facts.nodes), default=0)
    yield from _judged(problems, f"disks: {_size(free)} free or more")


def check_ports(facts: ClusterFacts) -> Iterator[Finding]:
    """Every node reaches every other."""
    todo = "let all nodes of the cluster reach each other on all TCP ports, and nobody else any"
    yield from _judged(
        {
            node.name: (f"cannot connect to {_listed(node.unreachable)}", todo)
            for node in facts.nodes
            if node.unreachable
        },
        "ports: every node reaches every other",
    )


def check_access(facts: ClusterFacts) -> Iterator[Finding]:
    """Whoever reaches a Ray cluster without a token runs what he likes on it."""
    todo = "set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN_PATH before `ray start`, on every node"
    yield from _judged(
        {node.name: ("Ray asks for no token", todo) for node in facts.nodes if not node.token},
        "token: every node asks for it",
    )
    host = facts.dashboard.rpartition(":")[0].strip("[]")
    if not host or _is_loopback(host):
        yield Finding(f"dashboard: {f'on {facts.dashboard}, this machine only' if host else 'none'}")
    elif _is_public(host) or not all(node.token for node in facts.nodes):
        todo = "bind it to 127.0.0.1 (--dashboard-host) and reach it through ssh -L or kubectl port-forward"
        yield Finding(f"dashboard is open to the network on {facts.dashboard}", todo)
    else:
        yield Finding(f"dashboard: on {facts.dashboard} of a private network, with the token only")


def check_storage(facts: ClusterFacts) -> Iterator[Finding]:
    """Every node can do with the storage whatever a run does."""
    met = {node.name: node.storage for node in facts.nodes if node.storage is not None}
    problems = {name: one.problem for name, one in met.items() if one.problem}
    if met and not problems:
        write, read = (min(getattr(one, rate) for one in met.values()) / 1e6 for rate in ("write_rate", "read_rate"))
        yield Finding(f"storage {facts.storage}: {write:.0f} MB/s written, {read:.0f} MB/s read by the slowest node")
    todo = "nothing runs without it; the same address has to work from every node (docs/cluster.md, Storage)"
    yield from _judged({name: (f"storage: {problem}", todo) for name, problem in problems.items()}, "")


def check_credentials(facts: ClusterFacts) -> Iterator[Finding]:
    """Every node has credentials for the bucket, and they outlast the next hour."""
    problems = {}
    for node in facts.nodes if facts.storage.startswith("s3:") else ():
        if node.credentials is None:
            problems[node.name] = ("no AWS credentials", "give the machine a role; keys in the environment work too")
        elif (seconds := node.credentials.expire_in) is not None and seconds < LEAST_CREDENTIAL_SECONDS:
            ending = f"credentials from {node.credentials.found_by} expire in {seconds / 60:.0f} minutes"
            problems[node.name] = (ending, "renew them, or use a role, which renews itself")
    ways = sorted({node.credentials.found_by for node in facts.nodes if node.credentials})
    yield from _judged(problems, f"credentials: from {_listed(ways)}" if ways else "")


CHECKS: tuple[Callable[[ClusterFacts], Iterable[Finding]], ...] = (
    check_nodes,
    check_ports,
    check_versions,
    check_access,
    check_clocks,
    check_gpus,
    check_memory,
    check_disks,
    check_credentials,
    check_storage,
)


def _judged(problems: Mapping[str, tuple[str, str]], good: str) -> Iterator[Finding]:
    """A bad finding for each problem, with all nodes that have it; where there is none, what is good."""
    having = defaultdict[tuple[str, str], list[str]](list)
    for name, problem in problems.items():
        having[problem].append(name)
    for (what, todo), names in having.items():
        yield Finding(f"{what}, on {_listed(names)}", todo)
    if good and not problems:
        yield Finding(good)


def _is_loopback(host: str) -> bool:
    return host == "localhost" or (_is_address(host) and ipaddress.ip_address(host).is_loopback)


def _is_public(host: str) -> bool:
    return _is_address(host) and (ipaddress.ip_address(host).is_global or ipaddress.ip_address(host).is_unspecified)


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _listed(names: Sequence[str], most: int = 5) -> str:
    """Names with commas, the many cut short."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB"
