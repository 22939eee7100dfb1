"""The demo's own words; tests/test_readme.py runs it small, this file in full."""

import re

import pytest

from pipeline.demo import cost_lines, now_lines
from pipeline.reports.costs import CacheCost, Cost
from tests.processes import finish


def test_costs_are_told_with_what_the_cache_saved():
    made = {"id": "", "content": "", "encoding": "fp16", "passes": 200, "seconds": 4.0, "bytes": 750_000}
    caches = tuple(CacheCost(source="wise", name=name, **made) for name in ("logits", "embedding"))
    cost = Cost(trials=3, training_seconds=12.5, label_rows=10_000, made=caches)
    assert cost_lines(cost) == (
        "3 trials trained for 12.5 s in all; 2 caches (1.50 MB) took 400 source passes in 8.0 s.\n"
        "The trials read 10000 labels: the cache saved 9600 source passes."
    )


def test_the_time_of_a_run_adds_up():
    said = now_lines(source_passes=2.0, training=5.0, total=10.0)
    assert said.startswith("This run took 10.0 s: source passes 2.0 s, training 5.0 s, overhead 3.0 s")


@pytest.mark.slow
def test_the_whole_demo_shows_transfer_and_is_found_again(tmp_path):
    changes = ["--set", f"storage={tmp_path}/demo", "--set", f"sources.mnist.weights={tmp_path}/mnist.safetensors"]
    code, said = finish("demo", *changes)
    assert code == 0, said
    took = float(re.search(r"This run took ([\d.]+) s", said).group(1))
    assert took < 180
    verdicts = dict(re.findall(r"^\| ([\w+]+(?: [\w+]+)?)[^|]*\|.*\| (.*?) *\|$", said, re.M))
    assert verdicts["finetune mnist"] == "helps"
    assert verdicts["sskt mnist"] == "helps"
    code, again = finish("demo", *changes)
    assert code == 0
    assert "sweep   30 trials found, 0 done now" in again
    assert float(re.search(r"This run took ([\d.]+) s", again).group(1)) < 10
