import pytest

from pipeline.planning.entries import read_entries
from pipeline.planning.search_rules import check_axes, check_length, check_scheduler
from pipeline.planning.settings import ResourceSettings, SchedulerSettings, SearchSettings
from sskt.errors import InputError

LR = {"low": 0.1, "high": 1}
GRID = SearchSettings(by="grid")
RANDOM = SearchSettings(by="random", trials=4)
OPTUNA = SearchSettings(by="optuna", trials=4)


def entries(common, *, method="sskt", kind="search"):
    return read_entries([{"method": method}], kind=kind, common=common, sources=["m"])


@pytest.mark.parametrize("search", [None, GRID])
def test_a_grid_has_no_ranges(search):
    of_range = entries({"training.lr": LR}, kind="search" if search else "grid")
    with pytest.raises(InputError, match=r"methods\[0\]: axis 'training.lr' is a range; a grid needs a list of values"):
        check_axes(of_range, search, SchedulerSettings())
    for other in (RANDOM, OPTUNA):
        check_axes(of_range, other, SchedulerSettings())


def test_asha_compares_trainings_of_one_length():
    with pytest.raises(InputError, match=r"axis 'training.epochs' does not go with 'asha'"):
        check_axes(entries({"training.epochs": [3, 4]}), GRID, SchedulerSettings(kind="asha"))
    check_axes(entries({"training.epochs": [3, 4]}), GRID, SchedulerSettings())


@pytest.mark.parametrize(
    ("axes", "says"),
    [
        ({"training.batch_size": [8, 16]}, "axis 'training.batch_size' cannot change in mid-training"),
        ({"options.width": [8, 16]}, "axis 'options.width' cannot change in mid-training"),
        ({"options.heads": ["linear"]}, "axis 'options.heads' cannot change in mid-training"),
        ({"target.options.width": [8]}, "axis 'target.options.width' cannot change"),
        ({"sources": [["m"]]}, "axis 'sources' cannot change"),
        ({"options.alpha.m": LR}, "axis 'options.alpha.m' cannot change"),
        ({"options.alpha": [{"m": 1.0}]}, "has conditions or values that are not numbers"),
        ({"training.lr": [1, 2], "training.momentum": LR | {"when": {"training.lr": 1}}}, "has conditions"),
        ({}, "methods[0]: it has no axis that 'pbt' could change; add one, such as training.lr"),
    ],
)  # fmt: skip
def test_populations_change_numbers_alone(axes, says):
    with pytest.raises(InputError) as caught:
        check_axes(entries(axes), RANDOM, SchedulerSettings(kind="pbt"))
    assert says in str(caught.value)


def test_what_populations_can_change():
    axes = {"training.lr": LR, "training.momentum": [0.1, 0.9], "training.weight_decay": LR, "options.alpha": LR}
    check_axes(entries(axes), RANDOM, SchedulerSettings(kind="pbt"))
    check_axes(entries({"options.temperature": [1, 2.5]}, method="kd"), RANDOM, SchedulerSettings(kind="pbt"))


def test_schedulers_go_with_searches():
    for kind in ("asha", "pbt"):
        with pytest.raises(InputError, match="without a `search`; it has to be 'fifo'"):
            check_scheduler(None, SchedulerSettings(kind=kind), resources=ResourceSettings(workers=1))
    for search in (None, GRID, RANDOM, OPTUNA):
        check_scheduler(search, SchedulerSettings(), resources=ResourceSettings(workers=2))
    for search in (GRID, RANDOM, OPTUNA):
        check_scheduler(search, SchedulerSettings(kind="asha"), resources=ResourceSettings(workers=2))
    check_scheduler(RANDOM, SchedulerSettings(kind="pbt"), resources=ResourceSettings(workers=1))


@pytest.mark.parametrize("kind", ["asha", "pbt"])
def test_a_scheduler_needs_ray(kind):
    with pytest.raises(InputError, match=r"resources\.runner is 'plain'"):
        check_scheduler(RANDOM, SchedulerSettings(kind=kind), resources=ResourceSettings(runner="plain"))


@pytest.mark.parametrize("kind", ["asha", "pbt"])
def test_a_scheduler_stops_trials_one_by_one(kind):
    check_scheduler(RANDOM, SchedulerSettings(kind=kind), resources=ResourceSettings(packing="auto"))
    with pytest.raises(InputError, match=rf"resources\.packing is 'fused'; scheduler '{kind}' .* needs 'processes'"):
        check_scheduler(RANDOM, SchedulerSettings(kind=kind), resources=ResourceSettings(packing="fused"))


@pytest.mark.parametrize(
    ("search", "workers", "says"),
    [
        (GRID, 1, "search is by 'grid' with None trials; scheduler 'pbt' needs by 'random'"),
        (OPTUNA, 1, "search is by 'optuna'"),
        (SearchSettings(by="random", trials=1), 1, "with 1 trials; scheduler 'pbt' needs"),
        (RANDOM, 2, "resources.runner is 'auto' with 2 workers; scheduler 'pbt' needs 'packed' with 1"),
    ],
)
def test_a_population_is_drawn_and_has_one_worker_each(search, workers, says):
    with pytest.raises(InputError) as caught:
        check_scheduler(search, SchedulerSettings(kind="pbt"), resources=ResourceSettings(workers=workers))
    assert says in str(caught.value)


def test_a_training_is_longer_than_what_its_scheduler_waits_for():
    check_length(SchedulerSettings(), epochs=1)
    check_length(SchedulerSettings(kind="asha", grace=2), epochs=3)
    with pytest.raises(InputError, match=r"scheduler.grace is 3; it has to be below training.epochs, which is 3"):
        check_length(SchedulerSettings(kind="asha", grace=3), epochs=3)
    with pytest.raises(InputError, match=r"scheduler.every is 5; it has to be below training.epochs, which is 3"):
        check_length(SchedulerSettings(kind="pbt", every=5), epochs=3)
