import pytest
from hypothesis import given
from hypothesis import strategies as st

from cluster.resources import ResourceError, Resources, concurrency, local_limits

GB = 10**9
A, B = {"zone": "a", "ray.io/node-id": "1"}, {"zone": "b", "ray.io/node-id": "2"}


@pytest.mark.parametrize(
    ("nodes", "need", "fits"),
    [
        ([Resources(2)], Resources(1), 2),
        ([Resources(2)], Resources(1.5), 1),
        ([Resources(64, 8)], Resources(1, 0.25), 32),
        ([Resources(16, 8)], Resources(1, 0.25), 16),
        ([Resources(8, 1)], Resources(1, 0.1), 8),
        ([Resources(80, 1)], Resources(1, 0.1), 10),
        ([Resources(64, 2)], Resources(4, 1), 2),
        ([Resources(8, 0, 30 * GB)], Resources(1, 0, 8 * GB), 3),
        ([Resources(0), Resources(8, 1), Resources(8, 1)], Resources(1, 1), 2),
        ([Resources(3), Resources(3)], Resources(2), 2),  # what is left on two nodes is no place for one
        ([Resources(4, labels=A), Resources(8, labels=B)], Resources(1, labels={"zone": "b"}), 8),
        ([Resources(4, labels=A), Resources(8, labels=B)], Resources(1), 12),
    ],
)
def test_the_scarcest_resource_decides(nodes, need, fits):
    assert concurrency(nodes, need) == fits


def test_workers_of_a_piece_of_work_may_lie_on_several_nodes():
    nodes = [Resources(3), Resources(3)]
    assert [concurrency(nodes, Resources(1), workers=workers) for workers in (1, 2, 4, 6)] == [6, 3, 1, 1]
    with pytest.raises(ResourceError, match="needs 7 workers of 1 CPUs, 0 GPUs; the nodes have 2 x 3 CPUs, 0 GPUs"):
        concurrency(nodes, Resources(1), workers=7)


COUNTS = st.integers(0, 8)
NODES = st.builds(
    Resources, COUNTS, COUNTS, COUNTS, st.dictionaries(st.sampled_from("xy"), st.sampled_from("12"), max_size=2)
)


@given(st.lists(NODES, max_size=4), NODES.filter(lambda need: need.cpus + need.gpus + need.memory > 0))
def test_as_many_fit_as_can_be_put_down_one_by_one(nodes, need):
    left, placed = [[node.cpus, node.gpus, node.memory] for node in nodes], 0
    for node, has in zip(nodes, left, strict=True):
        wanted = [need.cpus, need.gpus, need.memory]
        while all(node.labels.get(name) == value for name, value in need.labels.items()) and all(
            there >= want for there, want in zip(has, wanted, strict=True)
        ):
            has[:] = [there - want for there, want in zip(has, wanted, strict=True)]
            placed += 1
    if placed:
        assert concurrency(nodes, need) == placed
    else:
        with pytest.raises(ResourceError):
            concurrency(nodes, need)


@pytest.mark.parametrize(
    ("need", "words"),
    [
        (Resources(3), "needs 3 CPUs, 0 GPUs; the nodes have "),
        (Resources(1, 1), "needs 1 CPUs, 1 GPUs; "),
        (Resources(1, 0, 64.5 * GB), "needs 1 CPUs, 0 GPUs, 64.5 GB; "),
        (Resources(1, labels={"zone": "c"}), "needs 1 CPUs, 0 GPUs, zone=c; "),
        (Resources(1, labels={"rack": "a"}), "rack=a; "),
    ],
)
def test_what_never_fits_is_an_error_of_one_line_that_says_what_there_is(need, words):
    nodes = [Resources(2, 0, 30.5 * GB, A), Resources(2, 0, 30.5 * GB, A | {"ray.io/node-id": "3"}), Resources(1)]
    with pytest.raises(ResourceError) as refused:
        concurrency(nodes, need)
    said = str(refused.value)
    assert words in said
    assert said.endswith("; the nodes have 2 x 2 CPUs, 0 GPUs, 30.5 GB, zone=a; 1 x 1 CPUs, 0 GPUs")
    assert "\n" not in said


def test_a_cluster_without_nodes_holds_nothing():
    with pytest.raises(ResourceError, match="the nodes have nothing"):
        concurrency([], Resources(1))


def test_a_machine_has_the_memory_it_has_and_no_labels():
    (machine,) = local_limits(gpus=2)
    assert (machine.gpus, machine.labels) == (2, {})
    assert 10**8 < machine.memory < 10**14
    assert machine.holds(Resources(1, memory=1.01 * machine.memory)) == 0
    assert machine.holds(Resources(1, labels={"zone": "a"})) == 0


def test_ray_is_told_no_more_than_was_asked_for():
    plain = {"num_cpus": 1, "num_gpus": None, "memory": None, "label_selector": None}
    assert Resources(1).options() == plain
    assert Resources(2, 1, GB, {"zone": "a"}).options() == {
        "num_cpus": 2,
        "num_gpus": 1,
        "memory": GB,
        "label_selector": {"zone": "a"},
    }
