import math

import pytest

from cluster.resources import ResourceError, Resources
from pipeline.forecasts.machines import Fleet, Link, load_cluster, this_machine
from sskt.errors import InputError


def written(tmp_path, text):
    file = tmp_path / "cluster.yaml"
    file.write_text(text)
    return str(file)


def test_a_description_becomes_machines_and_a_storage(tmp_path):
    cluster = load_cluster(written(tmp_path, """
nodes: [1, 16]
cpus: 8
gpus: 1
memory_gb: 64
loss_per_hour: 0.05
replacement_seconds: 120
start_seconds: 90
storage: {latency_ms: 30, mb_per_second: 100, requests_per_second: 3500}
suppose: {trials: 10000}
"""))  # fmt: skip
    assert cluster.nodes == (1, 16)
    assert cluster.fleet(16) == Fleet(nodes=16, loss_per_hour=0.05, replacement_seconds=120, start_seconds=90)
    assert cluster.storage.link == Link(latency=0.03, bytes_per_second=1e8, requests_per_second=3500)
    assert (cluster.suppose.trials, cluster.suppose.images) == (10_000, None)


def test_one_size_may_stand_alone_and_no_limits_are_infinite(tmp_path):
    cluster = load_cluster(written(tmp_path, "{nodes: 3, cpus: 2, memory_gb: 4}"))
    assert cluster.nodes == (3,)
    assert cluster.storage.link == Link(latency=0, bytes_per_second=math.inf, requests_per_second=math.inf)


def test_places_are_what_the_scarcest_resource_holds_whatever_labels_are_asked_for(tmp_path):
    cluster = load_cluster(written(tmp_path, "{cpus: 8, gpus: 1, memory_gb: 64}"))
    assert cluster.places(Resources(1, 0.25)) == 4
    assert cluster.places(Resources(1, 0, 16e9, {"zone": "a"})) == 4
    assert cluster.places(Resources(2), workers=2) == 2
    with pytest.raises(ResourceError, match="the nodes have 1 x 8 CPUs"):
        cluster.places(Resources(16))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{cpus: 2}", "field memory_gb; it is missing"),
        ("{cpus: 2, memory_gb: 4, node: 3}", "field 'node' is unknown; did you mean 'nodes'?"),
        ("{cpus: 2, memory_gb: 4, nodes: []}", "nodes are []; name at least one size"),
        ("{cpus: 2, memory_gb: 4, nodes: [4, 0]}", "nodes are [4, 0]"),
        ("{cpus: many, memory_gb: 4}", "field cpus is 'many'; it has to be a number"),
        ("{cpus: 0, memory_gb: 4}", "cpus is 0.0; it has to be above 0"),
        ("{cpus: 2, memory_gb: 4, loss_per_hour: -1}", "loss_per_hour is -1.0; it has to be at least 0"),
        ("{cpus: 2, memory_gb: 4, disk_gb: 0}", "disk_gb is 0.0; it has to be above 0, or left out"),
        ("{cpus: 2, memory_gb: 4, storage: {latency: 3}}", "did you mean 'storage.latency_ms'?"),
        ("{cpus: 2, memory_gb: 4, storage: {requests_per_second: 0}}", "storage.requests_per_second is 0.0"),
        ("{cpus: 2, memory_gb: 4, suppose: {trials: 0}}", "suppose.trials is 0; it has to be at least 1"),
        ("- 3", "the file has to hold fields"),
    ],
)
def test_mistakes_are_one_line_that_names_the_file(tmp_path, text, says):
    with pytest.raises(InputError) as wrong:
        load_cluster(written(tmp_path, text))
    assert "cluster.yaml: " in str(wrong.value)
    assert says in str(wrong.value)
    assert "\n" not in str(wrong.value)


def test_a_file_that_is_not_there_is_named():
    with pytest.raises(InputError, match=r"nowhere.yaml: the description of the cluster cannot be read"):
        load_cluster("nowhere.yaml")


def test_without_a_description_it_is_this_machine(monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    machine = this_machine()
    assert (machine.nodes, machine.price_per_hour, machine.loss_per_hour) == ((1,), 0, 0)
    assert machine.cpus >= 1
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    with pytest.raises(InputError, match="with --cluster"):
        this_machine()
