from pipeline.forecasts.figures import Forecast, Side, Size
from pipeline.forecasts.records import Compared
from pipeline.forecasts.shown import compared_lines, forecast_lines, megabytes

CACHED = Side(passes=324, requests={"PUT": 10, "LIST": 2, "GET": 7, "DELETE": 1}, source_hours=0.5, training_hours=2.0,
              seconds=7200.0, first=9.0, cost=1.234)  # fmt: skip
LIVE = Side(passes=4000, requests={"PUT": 5, "GET": 3})


def lines(**more):
    told = {
        "experiment": "small", "trials": 3, "found": 1, "epochs": 9, "dataset_bytes": 2_000_000,
        "cache_bytes": {"wise logits": 3_500_000}, "checkpoint_bytes": None, "node_bytes": 5_500_000_000,
        "cached": CACHED, "live": LIVE,
    }  # fmt: skip
    return list(forecast_lines(Forecast(**told | more)))


def test_both_sides_stand_beside_each_other_and_what_is_unknown_is_called_so():
    said = lines(unknown=["seconds a view of source wise"], warnings=["it does not fit"])
    assert said[:5] == [
        "trials  3 to do, 1 found; 9 epochs",
        "bytes   packed images 2.00 MB",
        "bytes   cache of wise logits 3.50 MB",
        "bytes   checkpoints unknown",
        "bytes   memory of a node 5.50 GB",
    ]
    table = {line[:22].strip(): line[22:].split() for line in said[6:15]}
    assert table[""] == ["cached", "live"]
    assert table["source passes"] == ["324", "4000"]
    assert table["training device hours"] == ["2", "unknown"]
    assert table["PUT, LIST"] == ["12", "5"]
    assert table["wall clock"] == ["2.0", "h", "unknown"]
    assert table["cost in dollars"] == ["1.23", "unknown"]
    assert said[-2:] == [
        "unknown seconds a view of source wise: run with --measure, or run some trials", "warning it does not fit",
    ]  # fmt: skip


def test_sizes_are_a_table_with_its_conclusion():
    sizes = [
        Size(nodes=1, seconds=7200, cost=2.0, efficiency=0.93, limit="starting up", losses=0),
        Size(nodes=64, seconds=400, cost=7.0, efficiency=0.3, limit="the driver", losses=2),
    ]
    said = lines(sizes=sizes)
    assert said[-2].split() == ["64", "6.7", "min", "7.00", "30", "%", "2", "the", "driver"]
    assert said[-1] == "stops scaling at 64 nodes: the driver"


def test_sizes_of_bytes():
    assert [megabytes(size) for size in (8.65e6, 2.5e9)] == ["8.65 MB", "2.50 GB"]


def test_what_came_is_told_with_its_ratio():
    compared = [
        Compared(what="caches", unit="bytes", forecast=90.0, actual=100.0),
        Compared(what="trials", unit="", forecast=4.0, actual=0.0),
    ]
    assert list(compared_lines(compared)) == [
        "caches         forecast 90, actual 100 bytes: 0.90 times what came", "trials         forecast 4, actual 0",
    ]  # fmt: skip
