"""Where the time went, in sentences whose figures are the cost's."""

from pipeline.reports.costs import CacheCost, Cost
from pipeline.reports.evidence import Evidence
from pipeline.reports.spending import money_lines, size, took

MADE = CacheCost(
    source="wise", name="logits", id="", content="", encoding="fp16", passes=100, seconds=2.0, bytes=8_650_000
)


def test_what_was_spent_saved_and_estimated_is_told_apart():
    cost = Cost(
        trials=10, training_seconds=40.0, process_seconds=80.0, readers=8, label_rows=8000,
        live_seconds=160.0, made=(MADE,),
    )  # fmt: skip
    told = money_lines(cost, Evidence({}))
    assert told[0] == "10 trainings took 40.0 s, 80.0 s of devices in use."
    assert told[1] == "How long hosts waited for batches was not recorded."
    assert told[2:5] == [
        "1 cache of 8.65 MB took 100 source passes in 2.0 s.",
        "Trials read 8000 labels from them: 7900 source passes saved.",
        "A source took per image: wise 20.00 ms.",
    ]
    assert "2.7 min more: caching was 4.76 times as fast, 95 % of the 5.00 times that no cache" in told[5]
    assert told[6] == "The caches had paid for themselves after 1 trial that read them."


def test_without_caches_there_is_little_to_tell():
    assert money_lines(Cost(), Evidence({}))[-1] == "No caches were read."


def test_units_grow_with_what_they_measure():
    assert [took(seconds) for seconds in (4.26, 600, 9000)] == ["4.3 s", "10.0 min", "2.5 h"]
    assert [size(count) for count in (8.65e6, 2.5e9)] == ["8.65 MB", "2.50 GB"]
