"""The definitions of clusters are valid, agree with each other and with what is pinned, and open nothing."""

import re
import subprocess
import tomllib
from pathlib import Path

import jsonschema
import pytest
import yaml

from pipeline.caches.claims import LEASE
from pipeline.planning.settings import ResourceSettings

ROOT = Path(__file__).parent.parent.parent
CLUSTER = ROOT / "cluster"
SCRIPT = CLUSTER / "slurm.sh"
DEFINITIONS = [
    path for path in sorted(CLUSTER.rglob("*")) if path.suffix in (".yaml", ".sh", ".json") or path.name == "Dockerfile"
]
WITH_HEALTH = ("Dockerfile", "slurm.sh")
VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
PINS = dict(re.findall(r"^([\w-]+)(?:\[.*\])?==(.*)$", (ROOT / "requirements.txt").read_text(), re.MULTILINE))


def documents(name: str) -> list[dict]:
    return list(yaml.safe_load_all((CLUSTER / "kuberay" / name).read_text()))


def ray_spec(name: str) -> dict:
    """The Ray cluster in a manifest."""
    spec = documents(name)[-1]["spec"]
    return spec.get("rayClusterSpec", spec)


def pods(name: str) -> list[dict]:
    spec = ray_spec(name)
    return [group["template"]["spec"] for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])]


# --- all of them


def test_nothing_is_overlooked():
    names = {path.relative_to(CLUSTER).as_posix() for path in DEFINITIONS}
    assert {"Dockerfile", "aws.yaml", "slurm.sh", "kuberay/raycluster.yaml", "kuberay/rayjob.yaml"} < names
    assert {f"policies/{role}.json" for role in ("autoscaler", "builder", "trainer", "reader")} < names


@pytest.mark.parametrize("path", DEFINITIONS, ids=lambda path: path.name)
def test_no_secret_no_open_dashboard_no_floating_version(path):
    text = path.read_text()
    assert not re.search(r"\b(AKIA|ASIA)[A-Z0-9]{16}\b", text), "an access key"
    assert not re.search(r"AWS_SECRET_ACCESS_KEY|aws_secret_access_key|stringData|BEGIN [A-Z ]*PRIVATE KEY", text)
    assert not re.search(r"\b[0-9a-f]{32,}\b|RAY_AUTH_TOKEN[\"' ]*[:=]", text), "a token"
    assert not re.search(r"0\.0\.0\.0|\[::\]", text), "open to all"
    assert not re.search(r":latest\b|image: *[\w./-]+$", text, re.MULTILINE), "no version"
    assert set(re.findall(r"RAY_AUTH_MODE=(\w+)", text)) <= {"token"}


def test_every_way_to_a_cluster_asks_for_the_token():
    assert "RAY_AUTH_MODE=token" in (CLUSTER / "Dockerfile").read_text()
    assert "RAY_AUTH_MODE=token" in SCRIPT.read_text()
    assert "--env=RAY_AUTH_MODE=token" in aws()["docker"]["run_options"]
    assert all(ray_spec(name)["authOptions"] == {"mode": "token"} for name in ("raycluster.yaml", "rayjob.yaml"))


def test_a_machine_is_given_up_before_the_trainings_that_wait_for_it_count_as_hung():
    """By Ray's head, which reads it from its environment: in the image, or set by the script."""
    set_so = [dict(re.findall(r"RAY_health_check_(\w+)=(\d+)", (CLUSTER / name).read_text())) for name in WITH_HEALTH]
    assert set_so[0] == set_so[1]
    period = 3.0  # Ray's own
    seconds = int(set_so[0]["failure_threshold"]) * (int(set_so[0]["timeout_ms"]) / 1000 + period)
    assert 15 < seconds < min(LEASE, ResourceSettings().hung_after)


def test_one_image_of_one_version_everywhere():
    image = f"REGISTRY/sskt:{VERSION}"
    assert aws()["docker"]["image"] == image
    assert image in (CLUSTER / "Dockerfile").read_text()
    for name in ("raycluster.yaml", "rayjob.yaml"):
        assert ray_spec(name)["rayVersion"] == PINS["ray"]
        assert {container["image"] for pod in pods(name) for container in pod["containers"]} == {image}


@pytest.mark.parametrize("name", ["aws.yaml", "kuberay/raycluster.yaml", "kuberay/rayjob.yaml"])
def test_what_is_to_be_filled_in_is_listed_first(name):
    """A placeholder is a word in capitals."""
    lines = (CLUSTER / name).read_text().splitlines()
    head = [line for line in lines[:20] if line.startswith("#")]
    body = "\n".join(line.partition(" #")[0] for line in lines if not line.startswith("#"))
    placeholders = set(re.findall(r"\b(?:REGION|ACCOUNT|REGISTRY|[A-Z]+_(?:ID|ARN))\b", body))
    assert len(placeholders) >= 3
    assert [name for name in placeholders if not any(re.match(rf"#.*  {name}  +\S", line) for line in head)] == []


# --- ray up


def aws() -> dict:
    return yaml.safe_load((CLUSTER / "aws.yaml").read_text())


def test_ray_takes_the_definition_of_the_cluster_on_aws():
    from ray.autoscaler._private.util import prepare_config, validate_config

    prepared = prepare_config(aws())
    validate_config(prepared)
    assert prepared["setup_commands"] == []  # nothing is installed on the way: all of it is in the image
    assert prepared["head_start_ray_commands"] == aws()["head_start_ray_commands"]
    with pytest.raises(jsonschema.ValidationError):
        validate_config(prepared | {"idle_minutes": 1})


def test_the_head_on_aws_does_no_work_and_stays_while_workers_are_spot():
    types = aws()["available_node_types"]
    head, gpu = types[aws()["head_node_type"]], types["gpu"]
    (start,) = [line for line in aws()["head_start_ray_commands"] if "ray start" in line]
    assert head["resources"] == {"CPU": 0, "GPU": 0}
    assert "--num-cpus=0" in start
    assert "--dashboard-host=127.0.0.1" in start
    assert "InstanceMarketOptions" not in head["node_config"]
    assert gpu["node_config"]["InstanceMarketOptions"]["MarketType"] == "spot"
    assert 1 <= gpu["min_workers"] <= gpu["max_workers"] <= aws()["max_workers"]  # none, and no run could start
    assert aws()["idle_timeout_minutes"] > 0
    for node in (head["node_config"], gpu["node_config"]):
        assert node["IamInstanceProfile"]["Arn"].startswith("arn:aws:iam::ACCOUNT:instance-profile/sskt-")
        assert node["MetadataOptions"]["HttpTokens"] == "required"
        assert node["SecurityGroupIds"]  # without, Ray makes one that lets in SSH from everywhere
        assert all(disk["Ebs"]["Encrypted"] for disk in node["BlockDeviceMappings"])


def test_every_machine_on_aws_gets_the_token_where_ray_looks_for_it():
    options = dict(option.removeprefix("--env=").split("=", 1) for option in aws()["docker"]["run_options"])
    (folder,) = aws()["file_mounts"]
    assert options["RAY_AUTH_TOKEN_PATH"] == f"{folder}/token"


def test_workers_on_aws_hear_that_they_are_taken_back():
    """In the very form in which `ray up` runs a command; what runs beside Ray outlives the shell."""
    *_, start, notices = aws()["worker_start_ray_commands"]
    assert start.startswith("ray start --address=$RAY_HEAD_IP")
    assert re.fullmatch(r"nohup .*python -m cluster notices > \S+ 2>&1 &", notices)
    assert (
        subprocess.run(
            ["bash", "-n", "-c", f"true && (export RAY_HEAD_IP=10.0.0.1; {notices})"], check=False
        ).returncode
        == 0
    )
    assert "notices" not in " ".join(aws()["head_start_ray_commands"])  # it is on demand


# --- KubeRay. No package has its resource definitions: these are the fields of ray.io/v1 in KubeRay 1.5, by hand.


def only(required: tuple[str, ...] = (), **fields: dict) -> dict:
    return {"type": "object", "additionalProperties": False, "required": list(required), "properties": fields}


TEXT, NUMBER, FLAG, ANYTHING = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "boolean"}, {}
TEXTS = {"type": "object", "additionalProperties": TEXT}
TEMPLATE = only(
    ("spec",),
    metadata=only(labels=TEXTS, annotations=TEXTS),
    spec={"type": "object", "required": ["containers"], "properties": {"containers": {"type": "array", "minItems": 1}}},
)
GROUP = {"rayStartParams": TEXTS, "template": TEMPLATE, "resources": TEXTS, "labels": TEXTS}
CLUSTER_SPEC = only(
    ("headGroupSpec",),
    rayVersion=TEXT,
    suspend=FLAG,
    managedBy=TEXT,
    enableInTreeAutoscaling=FLAG,
    authOptions=only(mode={"enum": ["token", "disabled"]}),
    autoscalerOptions=only(
        idleTimeoutSeconds=NUMBER,
        upscalingMode={"enum": ["Default", "Conservative", "Aggressive"]},
        version={"enum": ["v1", "v2"]},
        image=TEXT,
        imagePullPolicy=TEXT,
        resources=ANYTHING,
        securityContext=ANYTHING,
        env=ANYTHING,
        envFrom=ANYTHING,
        volumeMounts=ANYTHING,
    ),
    gcsFaultToleranceOptions=ANYTHING,
    headServiceAnnotations=TEXTS,
    upgradeStrategy=ANYTHING,
    headGroupSpec=only(
        ("rayStartParams", "template"), **GROUP, serviceType=TEXT, headService=ANYTHING, enableIngress=FLAG
    ),
    workerGroupSpecs={
        "type": "array",
        "items": only(
            ("groupName", "minReplicas", "maxReplicas", "rayStartParams", "template"),
            **GROUP,
            groupName=TEXT,
            replicas=NUMBER,
            minReplicas=NUMBER,
            maxReplicas=NUMBER,
            numOfHosts=NUMBER,
            idleTimeoutSeconds=NUMBER,
            suspend=FLAG,
            scaleStrategy=ANYTHING,
        ),
    },
)
JOB_SPEC = only(
    ("entrypoint", "rayClusterSpec"),
    entrypoint=TEXT,
    rayClusterSpec=CLUSTER_SPEC,
    submissionMode={"enum": ["K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode"]},
    backoffLimit=NUMBER,
    activeDeadlineSeconds=NUMBER,
    shutdownAfterJobFinishes=FLAG,
    ttlSecondsAfterFinished=NUMBER,
    suspend=FLAG,
    runtimeEnvYAML=TEXT,
    metadata=TEXTS,
    jobId=TEXT,
    managedBy=TEXT,
    clusterSelector=TEXTS,
    deletionStrategy=ANYTHING,
    entrypointNumCpus={"type": "number"},
    entrypointNumGpus={"type": "number"},
    entrypointResources=TEXT,
    submitterConfig=ANYTHING,
    submitterPodTemplate=ANYTHING,
)
METADATA = only(("name",), name=TEXT, annotations=TEXTS, labels=TEXTS, namespace=TEXT)
KINDS = {
    "RayCluster": ("ray.io/v1", CLUSTER_SPEC),
    "RayJob": ("ray.io/v1", JOB_SPEC),
    "NetworkPolicy": (
        "networking.k8s.io/v1",
        only(("podSelector",), podSelector=ANYTHING, policyTypes=ANYTHING, ingress=ANYTHING, egress=ANYTHING),
    ),
}
MANIFESTS = ["network-policy.yaml", "raycluster.yaml", "rayjob.yaml"]


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifests_have_the_fields_of_their_kind(name):
    for document in documents(name):
        if document["kind"] == "ServiceAccount":
            assert document["metadata"]["annotations"] == {"eks.amazonaws.com/role-arn": "ROLE_ARN"}
            continue
        version, spec = KINDS[document["kind"]]
        whole = only(("metadata", "spec"), apiVersion={"const": version}, kind=TEXT, metadata=METADATA, spec=spec)
        jsonschema.validate(document, whole)


def test_the_schema_refuses_a_field_of_another_name():
    (wrong,) = (one for one in documents("raycluster.yaml") if one["kind"] == "RayCluster")
    wrong["spec"]["headGroupSpec"]["startParams"] = {}
    with pytest.raises(jsonschema.ValidationError, match="startParams"):
        jsonschema.validate(wrong["spec"], CLUSTER_SPEC)


@pytest.mark.parametrize("name", MANIFESTS[1:])
def test_the_head_on_kubernetes_does_no_work_and_stays_while_workers_are_spot(name):
    spec = ray_spec(name)
    head, (workers,) = spec["headGroupSpec"], spec["workerGroupSpecs"]
    assert head["rayStartParams"]["num-cpus"] == "0"
    assert spec["enableInTreeAutoscaling"]
    assert spec["autoscalerOptions"]["idleTimeoutSeconds"] > 0
    assert head["template"]["spec"]["nodeSelector"] == {"eks.amazonaws.com/capacityType": "ON_DEMAND"}
    assert workers["template"]["spec"]["nodeSelector"] == {"eks.amazonaws.com/capacityType": "SPOT"}
    assert {one["key"] for one in workers["template"]["spec"]["tolerations"]} == {"nvidia.com/gpu", "spot"}
    assert 1 <= workers["minReplicas"] == workers["replicas"] <= workers["maxReplicas"]


@pytest.mark.parametrize("name", MANIFESTS[1:])
def test_pods_are_confined(name):
    accounts = {one["metadata"]["name"] for one in documents(name) if one["kind"] == "ServiceAccount"}
    for pod in pods(name):
        (container,) = pod["containers"]
        assert pod["serviceAccountName"] in accounts
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == 1000  # the person of the Dockerfile
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
        assert container["resources"]["requests"] == container["resources"]["limits"]
        volumes = {volume["name"]: volume for volume in pod["volumes"]}
        mounted = {mount["mountPath"]: volumes[mount["name"]] for mount in container["volumeMounts"]}
        assert mounted["/dev/shm"]["emptyDir"]["medium"] == "Memory"  # noqa: S108
        assert {"/tmp", "/home/ray"} <= set(mounted)  # noqa: S108 (what Ray writes to)
        names = {variable["name"] for variable in container["env"]}
        assert names <= {"AWS_REGION", "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"}  # no secret by value
    assert pods(name)[1]["automountServiceAccountToken"] is False


def test_shared_memory_holds_ray_s_object_store():
    """Ray takes three tenths of the container's memory for it."""
    for pod in pods("raycluster.yaml"):
        (shared,) = (one["emptyDir"]["sizeLimit"] for one in pod["volumes"] if one["name"] == "shared-memory")
        memory = pod["containers"][0]["resources"]["limits"]["memory"]
        assert int(shared.removesuffix("Gi")) >= 0.3 * int(memory.removesuffix("Gi"))


def test_the_job_s_cluster_is_that_of_the_other_manifest():
    cluster, job = ray_spec("raycluster.yaml"), ray_spec("rayjob.yaml")
    assert cluster["headGroupSpec"]["rayStartParams"].pop("dashboard-host") == "127.0.0.1"
    pod = job["headGroupSpec"]["template"]["spec"]
    assert pod["volumes"].pop() == {"name": "experiment", "configMap": {"name": "sskt-experiment"}}
    assert pod["containers"][0]["volumeMounts"].pop()["readOnly"] is True
    assert job == cluster


def test_workers_have_a_label_by_which_trials_can_ask_for_them():
    groups = [aws()["available_node_types"]["gpu"]]
    groups += [group for name in MANIFESTS[1:] for group in ray_spec(name)["workerGroupSpecs"]]
    assert [group["labels"] for group in groups] == [{"pool": "gpu"}] * 3


@pytest.mark.parametrize("name", MANIFESTS[1:])
def test_a_worker_that_ends_gives_its_trials_time_to_leave(name):
    """At SIGTERM `ray start` drains its node; bash 5.2 of the image makes it the pod's first process."""
    from ray._private.ray_constants import RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S as USUAL

    (container,) = pods(name)[1]["containers"]
    patience = {one["name"]: one["value"] for one in container["env"]}["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"]
    assert 0 < USUAL < float(patience) <= pods(name)[1]["terminationGracePeriodSeconds"] - 10
    assert "lifecycle" not in container


def test_the_job_tries_again_and_ends():
    spec = documents("rayjob.yaml")[-1]["spec"]
    assert spec["backoffLimit"] >= 1
    assert spec["shutdownAfterJobFinishes"] is True
    assert spec["activeDeadlineSeconds"] > 0 < spec["ttlSecondsAfterFinished"]


def test_only_the_operator_reaches_the_dashboard_from_outside():
    (policy,) = documents("network-policy.yaml")
    labels = policy["spec"]["podSelector"]["matchLabels"]
    for name in MANIFESTS[1:]:
        groups = ray_spec(name)["headGroupSpec"], *ray_spec(name)["workerGroupSpecs"]
        assert all(group["template"]["metadata"]["labels"] == labels for group in groups)
    outside = [rule for rule in policy["spec"]["ingress"] if "ports" in rule]
    dashboard = [rule["from"] for rule in outside if {"protocol": "TCP", "port": 8265} in rule["ports"]]
    operator = {"namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "kuberay-system"}}}
    assert dashboard == [[operator]]
    assert [rule["from"] for rule in policy["spec"]["ingress"] if "ports" not in rule] == [
        [{"podSelector": {"matchLabels": labels}}]
    ]
    assert policy["spec"]["policyTypes"] == ["Ingress", "Egress"]


# --- the image


def test_the_image_is_pinned_small_and_nobody_s_root():
    lines = (CLUSTER / "Dockerfile").read_text().splitlines()
    bases = {line.split()[1] for line in lines if line.startswith("FROM")}
    assert len(bases) == 1
    assert re.fullmatch(r"python:3\.11\.\d+-slim-bookworm", *bases)
    assert lines.count("USER 1000:1000") == 1
    assert sum(line.startswith("FROM") for line in lines) == 2
    assert not [line for line in lines if line.startswith("ADD") or "ARG" in line.split()[:1]]
