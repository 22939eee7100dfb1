"""What each role may do on a storage is what its verbs do."""

import fnmatch
import json
from pathlib import Path

import pytest
import yaml
from botocore.exceptions import ClientError

from cluster.s3 import PROBE
from cluster.s3_client import status_of
from cluster.storage import StorageError, open_storage
from tests.object_store import BUCKET, POLICIES, ROLES, ROLES_PREFIX, forget, role_keys
from tests.processes import finish

CLUSTER = Path(__file__).parent.parent.parent / "cluster"


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


def decision(client, action: str, key: str) -> int:
    """What the server answers to somebody who asks for something: 200, 403, 404 ..."""
    requests = {
        "s3:GetObject": lambda: client.get_object(Bucket=BUCKET, Key=key),
        "s3:PutObject": lambda: client.put_object(Bucket=BUCKET, Key=key, Body=b""),
        "s3:DeleteObject": lambda: client.delete_object(Bucket=BUCKET, Key=key),
        "s3:AbortMultipartUpload": lambda: client.abort_multipart_upload(Bucket=BUCKET, Key=key, UploadId="none"),
        "s3:ListBucket": lambda: client.list_objects_v2(Bucket=BUCKET, Prefix=key),
    }
    try:
        return requests[action]()["ResponseMetadata"]["HTTPStatusCode"] // 100 * 100
    except ClientError as error:
        return status_of(error)


@pytest.mark.parametrize("role", ROLES)
def test_a_server_decides_as_the_policy_is_meant(object_store, role):
    """The files themselves, evaluated by a server: every place and action, beside the prefix and below it."""
    client, unequal = object_store.client(*role_keys(role)), []
    keys = [f"{prefix}/{place}/x" for prefix in (ROLES_PREFIX, f"{ROLES_PREFIX}2", "other") for place in PLACES]
    for key in [*keys, f"{ROLES_PREFIX}/{PROBE}", PROBE]:
        for action in ACTIONS:
            refused = decision(client, action, key) == 403
            if refused == allowed(role, action, key.replace(ROLES_PREFIX, "PREFIX", 1)):
                unequal.append((action, key, refused))
    assert unequal == []
    asked = (f"{ROLES_PREFIX}/", f"{ROLES_PREFIX}/results/", ROLES_PREFIX, f"{ROLES_PREFIX}2/", "other/", "")
    assert [decision(client, "s3:ListBucket", key) for key in asked] == [200, 200, 403, 403, 403, 403]


@pytest.mark.parametrize("role", ROLES)
def test_a_server_lets_no_role_change_the_bucket_itself(object_store, role):
    client, key = object_store.client(*role_keys(role)), f"{ROLES_PREFIX}/reports/x"
    everyone = {"Effect": "Allow", "Principal": "*", "Action": "s3:*", "Resource": f"arn:aws:s3:::{BUCKET}/*"}
    for request in (
        lambda: client.put_bucket_policy(Bucket=BUCKET, Policy=json.dumps({"Statement": [everyone]})),
        lambda: client.put_object_acl(Bucket=BUCKET, Key=key, ACL="public-read"),
        lambda: client.put_bucket_versioning(Bucket=BUCKET, VersioningConfiguration={"Status": "Suspended"}),
        lambda: client.delete_bucket(Bucket=BUCKET),
        lambda: client.create_bucket(Bucket="another-bucket"),
    ):
        with pytest.raises(ClientError) as refused:
            request()
        assert status_of(refused.value) == 403


@pytest.fixture
def place_of_the_roles(bucket_uri, object_store) -> str:
    """What their policies are filled in for, empty."""
    client = object_store.client()
    for entry in client.list_objects_v2(Bucket=BUCKET, Prefix=f"{ROLES_PREFIX}/").get("Contents", ()):
        client.delete_object(Bucket=BUCKET, Key=entry["Key"])
    return f"s3://{BUCKET}/{ROLES_PREFIX}"


def play(role: str, monkeypatch) -> None:
    """Have the rights of a role and no others."""
    for name, value in zip(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), role_keys(role), strict=True):
        monkeypatch.setenv(name, value)
    forget()


@pytest.mark.parametrize(
    ("role", "place"), [("builder", "results"), ("trainer", "caches"), ("reader", "claims"), ("reader", PROBE)]
)
def test_what_a_role_may_not_do_is_told_in_one_line(bucket_uri, monkeypatch, role, place):
    play(role, monkeypatch)
    storage = open_storage(f"s3://{BUCKET}/{ROLES_PREFIX}")
    told = "access is denied; the credentials need GetObject, PutObject, DeleteObject and AbortMultipartUpload"
    for done, action in (
        ("written", lambda: storage.write(f"{place}/x", b"")),
        ("deleted", lambda: storage.delete(f"{place.replace('caches', 'results')}/x")),
    ):
        with pytest.raises(StorageError) as refused:
            action()
        assert f"/x cannot be {done}: {told}" in str(refused.value)
        assert "\n" not in str(refused.value)
    with pytest.raises(StorageError, match="x cannot be listed: access is denied"):
        list(open_storage(f"s3://{BUCKET}/elsewhere").keys("x"))


def test_a_command_of_another_role_ends_with_one_line_before_any_work(
    experiment_file, place_of_the_roles, monkeypatch, capsys
):
    from pipeline.__main__ import main

    uri, file = place_of_the_roles, str(experiment_file)
    changed = ("--set", f"storage={uri}")
    made: set[str] = set()
    for role, verb, refused_at in (
        ("reader", "pack", ""),
        ("trainer", "pack", "/datasets/"),
        ("builder", "pack", None),
        ("trainer", "cache", "/caches"),
        ("builder", "sweep", "/claims"),
        ("builder", "train", "/claims"),
        ("reader", "sweep", "/claims"),
        ("reader", "cache", ""),
    ):
        play(role, monkeypatch)
        code = main([verb, file, *(("--trial", "0") if verb == "train" else ()), *changed])
        said = capsys.readouterr().err.strip().splitlines()
        if refused_at is None:
            assert (code, said) == (0, [])
            made = set(open_storage(uri).keys(""))
            continue
        assert (code, len(said)) == (2, 1), said
        assert said[0].startswith(f"error: {uri}{refused_at}")
        assert "cannot be written: access is denied" in said[0]
        assert set(open_storage(uri).keys("")) == made


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_each_role_does_its_work_with_its_rights_alone(experiment_file, place_of_the_roles, monkeypatch):
    """Real commands with the keys of one who has nothing but the policy, in the order of a project."""
    from pipeline.__main__ import main

    uri, file = place_of_the_roles, str(experiment_file)
    changed = ("--set", f"storage={uri}")
    for role, *verb in (
        ("builder", "pack", file, *changed),
        ("builder", "cache", file, *changed),
        ("builder", "verify", file, *changed),
        ("trainer", "sweep", file, *changed),
        ("trainer", "train", file, *changed, "--trial", "0", "--in-process"),
        ("reader", "report", file, *changed),
        ("reader", "watch", file, *changed, "--once"),
        ("reader", "caches", uri),
        ("builder", "gc", uri, file, *changed, "--yes"),
    ):
        play(role, monkeypatch)
        starts_workers = verb[0] in ("cache", "sweep")
        code, said = finish(*verb) if starts_workers else (main(verb), "")
        assert code == 0, f"{verb} by the {role}: {said}"
    play("reader", monkeypatch)
    storage = open_storage(uri)
    assert {key.partition("/")[0] for key in storage.keys("")} == {
        "datasets", "caches", "networks", "results", "reports"
    }  # fmt: skip


def test_a_key_is_used_by_way_of_the_storage_alone():
    """GenerateDataKey for what is written, Decrypt for what is read and for parts; never the key's own management."""
    (statement,) = json.loads((POLICIES / "kms.json").read_text())["Statement"]
    assert set(statement["Action"]) == {"kms:GenerateDataKey", "kms:Decrypt"}
    assert statement["Resource"].endswith(":key/KEY")
    assert statement["Condition"] == {"StringEquals": {"kms:ViaService": "s3.REGION.amazonaws.com"}}


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
