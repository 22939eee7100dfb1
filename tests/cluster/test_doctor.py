from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.doctor import (
    LEAST_CREDENTIAL_SECONDS,
    LEAST_FREE_BYTES,
    MOST_CLOCK_SECONDS,
    PACKAGES,
    ClusterFacts,
    Credentials,
    Finding,
    NodeFacts,
    StorageFacts,
    check_access,
    clock_off,
    judge,
)

GB = 10**9


def node(name: str = "a", **changes) -> NodeFacts:
    healthy = NodeFacts(
        name=name,
        python="3.11.9",
        packages=dict.fromkeys(PACKAGES, "1.0"),
        gpus=1,
        offers="8 CPUs, 1 GPUs, 30 GB, zone=a",
        gpu_problem="",
        object_store_bytes=8 * GB,
        shared_memory_bytes=10 * GB,
        disk_bytes=100 * GB,
        disk_free_bytes=50 * GB,
        token=True,
        unreachable=(),
        storage=StorageFacts(write_rate=80e6, read_rate=120e6),
        credentials=Credentials(found_by="iam-role", expire_in=None),
    )
    return replace(healthy, **changes)


def cluster(*nodes: NodeFacts, **changes) -> ClusterFacts:
    facts = ClusterFacts(nodes=nodes or (node("a"), node("b")), storage="s3://bucket/x", dashboard="127.0.0.1:8265")
    return replace(facts, **changes)


def bad(facts: ClusterFacts) -> list[str]:
    return [str(finding) for finding in judge(facts) if not finding.ok]


def test_a_healthy_cluster_has_a_good_line_for_each_check():
    said = [str(finding) for finding in judge(cluster(expected=2))]
    assert said == [
        "ok   nodes: a (8 CPUs, 1 GPUs, 30 GB, zone=a); b (8 CPUs, 1 GPUs, 30 GB, zone=a)",
        "ok   ports: every node reaches every other",
        f"ok   Python 3.11.9, Ray 1.0 and {len(PACKAGES) - 1} packages agree",
        "ok   token: every node asks for it",
        "ok   dashboard: on 127.0.0.1:8265, this machine only",
        "ok   clocks: within 5 s of each other and of the storage",
        "ok   GPUs: 2 offered by Ray, all usable by torch",
        "ok   shared memory: the object stores fit into /dev/shm",
        "ok   disks: 50.0 GB free or more",
        "ok   credentials: from iam-role",
        "ok   storage s3://bucket/x: 80 MB/s written, 120 MB/s read by the slowest node",
    ]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"python": "3.12.1"}, "Python is 3.11.9 on a; 3.12.1 on b"),
        ({"packages": dict.fromkeys(PACKAGES, "1.0") | {"numpy": "2.0"}}, "numpy is 1.0 on a; 2.0 on b: run all nodes"),
        ({"packages": dict.fromkeys(PACKAGES[1:], "1.0")}, "ray is 1.0 on a; missing on b"),
        ({"gpu_problem": "torch sees 0 of 1"}, "GPUs: torch sees 0 of 1, on b: check the driver"),
        (
            {"object_store_bytes": 11 * GB},
            "shared memory is 10.0 GB, the object store 11.0 GB, on b: give",
        ),
        ({"disk_free_bytes": 9 * GB}, "disk has 9.0 GB of 100.0 GB free, on b: free 10.0 GB"),
        ({"disk_bytes": 10 * GB, "disk_free_bytes": LEAST_FREE_BYTES - 1}, "free 5.0 GB, or set RAY_TMPDIR"),
        ({"token": False}, "Ray asks for no token, on b: set RAY_AUTH_MODE=token"),
        ({"unreachable": ["10.0.0.1:1", "10.0.0.1:2"]}, "cannot connect to 10.0.0.1:1, 10.0.0.1:2, on b"),
        ({"clock_off": MOST_CLOCK_SECONDS + 1}, "clock is off by 6 s or more, on b"),
        ({"storage": StorageFacts(clock_off=900.0)}, "clock is off by 900 s or more, on the storage, seen from b"),
        ({"storage": StorageFacts(problem="access is denied")}, "storage: access is denied, on b"),
        ({"credentials": None}, "no AWS credentials, on b: give the machine a role"),
        (
            {"credentials": Credentials(found_by="env", expire_in=LEAST_CREDENTIAL_SECONDS - 60)},
            "credentials from env expire in 59 minutes, on b: renew them",
        ),
    ],
)
def test_what_is_wrong_with_one_node_is_said_once_with_what_to_do(changes, words):
    """Some faults have a consequence of their own, such as a dashboard that is open for want of a token."""
    said = [line for line in bad(cluster(node("a"), node("b", **changes))) if words in line]
    assert len(said) == 1
    assert said[0].startswith("bad  ")
    assert len(bad(cluster(node("a"), node("b")))) == 0


@pytest.mark.parametrize(
    "changes",
    [
        {"shared_memory_bytes": None},  # not a Linux
        {"shared_memory_bytes": 8 * GB},
        {"disk_free_bytes": 10 * GB},
        {"clock_off": MOST_CLOCK_SECONDS},
        {"credentials": Credentials(found_by="env", expire_in=LEAST_CREDENTIAL_SECONDS)},
    ],
)
def test_what_is_just_enough_is_right(changes):
    assert bad(cluster(node("a", **changes))) == []


def test_nodes_with_the_same_fault_share_a_line():
    many = [node(f"n{number}", gpu_problem="torch sees 0 of 8") for number in range(7)]
    assert [line for line in bad(cluster(*many)) if "GPUs" in line] == [
        "bad  GPUs: torch sees 0 of 8, on n0, n1, n2, n3, n4 and 2 more: "
        "check the driver and the container's NVIDIA runtime, and that torch is built for the device"
    ]


def test_nodes_that_are_missing_or_silent_are_told():
    said = bad(cluster(node("a"), silent={"b": "no answer within 180 s"}, expected=3))
    assert said[0].startswith("bad  node b says nothing (no answer within 180 s): look into its logs")
    assert said[1].startswith("bad  2 nodes instead of 3: ")
    assert bad(cluster(expected=1))[0].startswith("bad  2 nodes instead of 1: ")


def test_a_cluster_of_which_nothing_is_known_is_no_healthy_one():
    assert bad(ClusterFacts(nodes=(), silent={"a": "no process"}))
    assert judge(ClusterFacts(nodes=()))  # no division by nothing, no first of none


def test_without_a_storage_nothing_is_said_of_it():
    nothing = cluster(node("a", storage=None, credentials=None), storage="")
    assert not [line for line in map(str, judge(nothing)) if "storage" in line or "credentials" in line]


def test_a_folder_needs_no_credentials():
    facts = cluster(node("a", credentials=None), storage="/shared/store")
    assert bad(facts) == []


@pytest.mark.parametrize(
    ("dashboard", "token", "right"),
    [
        ("", False, True),
        ("127.0.0.1:8265", False, True),
        ("localhost:8265", False, True),
        ("[::1]:8265", False, True),
        ("10.0.0.7:8265", True, True),
        ("10.0.0.7:8265", False, False),
        ("head.internal:8265", False, False),
        ("8.8.8.8:8265", True, False),
        ("0.0.0.0:8265", True, False),
        ("[2600:1f18::1]:8265", True, False),
    ],
)
def test_the_dashboard_is_closed_or_asks_for_the_token(dashboard, token, right):
    findings = list(check_access(cluster(node(token=token), dashboard=dashboard)))
    assert findings[-1].ok is right
    assert "dashboard" in findings[-1].what


@given(st.floats(-1e6, 1e6), st.floats(0, 100), st.floats(0, 100))
def test_a_clock_read_in_between_is_blamed_for_no_more_than_it_is_off(off, before, after):
    """Whatever the way of the question and of the answer took."""
    asked = 1e6
    read = asked + before
    least = clock_off(asked, read + off, read + after)
    assert least <= abs(off) + 1e-6
    assert least >= abs(off) - (before + after) - 1e-6


def test_a_finding_is_right_where_nothing_is_to_do():
    assert (Finding("x").ok, str(Finding("x"))) == (True, "ok   x")
    assert (Finding("x", "y").ok, str(Finding("x", "y"))) == (False, "bad  x: y")
