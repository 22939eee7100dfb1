"""What each role may do on a storage is what its verbs do."""

import fnmatch
import json
from pathlib import Path

import pytest
import yaml

CLUSTER = Path(__file__).parent.parent.parent / "cluster"
POLICIES = CLUSTER / "policies"


def allowed(role: str, action: str, key: str = "") -> bool:
    """Whether a role may do something below s3://BUCKET/PREFIX; a small part of how IAM decides, without denials."""
    for statement in json.loads((POLICIES / f"{role}.json").read_text())["Statement"]:
        assert statement["Effect"] == "Allow"
        actions, resources = statement["Action"], statement["Resource"]
        actions = [actions] if isinstance(actions, str) else actions
        resources = [resources] if isinstance(resources, str) else resources
        listing = action == "s3:ListBucket"
        place = "arn:aws:s3:::BUCKET" if listing else f"arn:aws:s3:::BUCKET/{key}"
        prefix = statement.get("Condition", {}).get("StringLike", {}).get("s3:prefix", "*")
        if action in actions and any(fnmatch.fnmatchcase(place, resource) for resource in resources):
            return not listing or fnmatch.fnmatchcase(key, prefix)
    return False


ACTIONS = ("s3:GetObject", "s3:PutObject", "s3:AbortMultipartUpload", "s3:DeleteObject")
PLACES = (
    "datasets", "caches", "graphs", "pilots", "quarantine", "results", "failures", "networks", "checkpoints",
    "searches", "claims", "reports", "doctor",
)  # fmt: skip
WRITES = {
    "builder": {"datasets", "caches", "graphs", "pilots", "quarantine", "doctor"},
    "trainer": {"results", "failures", "networks", "checkpoints", "searches", "claims", "reports", "doctor"},
    "reader": {"reports"},
}
DELETES = {
    # Claims, what was damaged, what was moved aside; and what `gc` removes.
    "builder": {"caches", "graphs", "quarantine", "checkpoints", "claims", "doctor"},
    "trainer": {"failures", "checkpoints", "claims", "doctor"},
    "reader": set(),
}


@pytest.mark.parametrize("role", WRITES)
def test_a_role_may_do_its_work_and_no_other(role):
    may = {action: {place for place in PLACES if allowed(role, action, f"PREFIX/{place}/x/y")} for action in ACTIONS}
    assert may["s3:GetObject"] == set(PLACES)
    assert may["s3:PutObject"] == may["s3:AbortMultipartUpload"] == WRITES[role]
    assert may["s3:DeleteObject"] == DELETES[role]
    assert allowed(role, "s3:ListBucket", "PREFIX/results/")
    assert allowed(role, "s3:ListBucket", "PREFIX/")
    assert allowed(role, "s3:PutObject", "PREFIX/.conditional-put") == (role != "reader")


@pytest.mark.parametrize("role", WRITES)
def test_a_role_may_do_nothing_beside_its_prefix(role):
    assert not any(allowed(role, action, "OTHER/caches/x") for action in ACTIONS)
    assert not any(allowed(role, action, "PREFIX2/caches/x") for action in ACTIONS)
    assert not allowed(role, "s3:ListBucket", "OTHER/")
    assert not allowed(role, "s3:ListBucket", "")
    assert not any(
        allowed(role, action, "PREFIX/results/x")
        for action in ("s3:PutBucketPolicy", "s3:DeleteBucket", "s3:PutObjectAcl")
    )


def test_nobody_deletes_results():
    """Nor data sets and networks: nothing could bring them back."""
    for place in ("results", "datasets", "networks", "pilots", "reports", "searches"):
        assert not [role for role in WRITES if allowed(role, "s3:DeleteObject", f"PREFIX/{place}/x")]


def test_the_head_starts_and_ends_machines_of_its_own_cluster_only():
    cluster_name = yaml.safe_load((CLUSTER / "aws.yaml").read_text())["cluster_name"]
    statements = json.loads((POLICIES / "autoscaler.json").read_text())["Statement"]
    conditions = {statement["Sid"]: statement.get("Condition") for statement in statements}
    assert conditions["End"] == {"StringEquals": {"ec2:ResourceTag/ray-cluster-name": cluster_name}}
    assert conditions["HandOver"] == {"StringEquals": {"iam:PassedToService": "ec2.amazonaws.com"}}
    actions = [
        action
        for one in statements
        for action in ([one["Action"]] if isinstance(one["Action"], str) else one["Action"])
    ]
    assert not [action for action in actions if "*" in action]


@pytest.mark.slow
def test_runs_write_only_where_their_role_may(experiment_file, tmp_path):
    """What really appears or changes on a storage, verb by verb."""
    from pipeline.__main__ import main

    def snapshot() -> dict[str, float]:
        store = tmp_path / "store"
        return {path.relative_to(store).as_posix(): path.stat().st_mtime for path in store.rglob("*") if path.is_file()}

    before: dict[str, float] = {}
    for verb, role in (("cache", "builder"), ("sweep", "trainer"), ("report", "reader")):
        assert main([verb, str(experiment_file)]) == 0
        after = snapshot()
        touched = {key for key, written in after.items() if before.get(key) != written}
        assert touched, verb
        assert [key for key in touched if not allowed(role, "s3:PutObject", f"PREFIX/{key}")] == []
        gone = set(before) - set(after)
        assert [key for key in gone if not allowed(role, "s3:DeleteObject", f"PREFIX/{key}")] == []
        before = after
