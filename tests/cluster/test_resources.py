import pytest

from cluster.resources import ResourceError, Resources, concurrency


@pytest.mark.parametrize(
    ("total", "need", "fits"),
    [
        (Resources(2), Resources(1), 2),
        (Resources(2), Resources(1.5), 1),
        (Resources(64, 8), Resources(1, 0.25), 32),
        (Resources(16, 8), Resources(1, 0.25), 16),
        (Resources(8, 1), Resources(1, 0.1), 8),
        (Resources(80, 1), Resources(1, 0.1), 10),
        (Resources(64, 2), Resources(4, 1), 2),
    ],
)
def test_the_scarcest_resource_decides(total, need, fits):
    assert concurrency(total, need) == fits


@pytest.mark.parametrize("need", [Resources(3), Resources(1, 1)])
def test_what_never_fits_is_an_error(need):
    with pytest.raises(ResourceError, match="the cluster has 2 and 0"):
        concurrency(Resources(2), need)
