"""The dashboard shows the series there are, and all of them."""

import itertools
import json
import re
from pathlib import Path

import pytest

from cluster.metrics import SERIES

DASHBOARD = json.loads((Path(__file__).parent.parent.parent / "cluster" / "grafana.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
TARGETS = [target for panel in PANELS for target in panel["targets"]]
OWN_LABELS = {"experiment", "le"}


def exported(name: str) -> set[str]:
    """What Prometheus calls a series."""
    endings = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_count", "_sum")}
    return {f"ray_{name}{ending}" for ending in endings[SERIES[name].kind]}


def test_every_expression_names_series_that_there_are_and_none_is_left_out():
    named = {name for target in TARGETS for name in re.findall(r"\bray_\w+", target["expr"])}
    assert named <= set().union(*map(exported, SERIES))
    assert [name for name in SERIES if not exported(name) & named] == []


@pytest.mark.parametrize("target", TARGETS, ids=lambda target: target["expr"][:60])
def test_an_expression_asks_for_labels_that_its_series_have(target):
    names = re.findall(r"\bray_(sskt_\w+?)(?:_total|_bucket)?\{", target["expr"])
    labels = OWN_LABELS.union(*(SERIES[name].labels for name in names))
    asked = re.findall(r"\bby \(([^)]*)\)", target["expr"]) + re.findall(r"([a-z]+)(?:=~|!~|!=|=)\"", target["expr"])
    asked += re.findall(r"{{(\w+)}}", target["legendFormat"])
    assert names
    assert {label for some in asked for label in some.split(", ")} <= labels
    assert target["expr"].count("{") == target["expr"].count('{experiment=~"$experiment"')


def test_rates_are_those_of_counters_alone():
    for target in TARGETS:
        for name in re.findall(r"rate\((\w+)", target["expr"]):
            assert name.endswith(("_total", "_bucket"))


def test_panels_have_titles_and_units_and_stand_beside_each_other():
    assert (DASHBOARD["uid"], DASHBOARD["title"]) == ("sskt", "sskt")
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    assert all(panel["title"] for panel in DASHBOARD["panels"])
    assert all(panel["fieldConfig"]["defaults"]["unit"] and panel["description"] for panel in PANELS)
    assert all(len({target["refId"] for target in panel["targets"]}) == len(panel["targets"]) for panel in PANELS)
    taken = [
        {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        for at in (panel["gridPos"] for panel in DASHBOARD["panels"])
    ]
    assert all(not one & other for one, other in itertools.combinations(taken, 2))
    assert all(0 <= x < 24 for squares in taken for x, _ in squares)


def test_it_is_bound_to_no_grafana_and_no_prometheus():
    assert "id" not in DASHBOARD
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]}
    assert variables == {"datasource", "experiment"}
    assert {target["datasource"]["uid"] for target in TARGETS} == {"${datasource}"}
