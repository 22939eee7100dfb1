"""Published figures stand beside the rows that repeat them, and only those."""

from dataclasses import replace

import pytest

from pipeline.reports.published import beside, published
from pipeline.reports.report import report_experiment
from sskt.methods import METHODS
from sskt.metrics import TITLES
from sskt.networks import ARCHITECTURES
from tests.made_up import make_plan

TEXT = """
training: {epochs: 4, batch_size: 64%s}
methods:
  - {method: scratch}
  - {method: kd, sources: [wise]}
  - {method: sskt, sources: [wise, fool], heads: transfer}
  - {method: sskt, sources: [wise], heads: transfer}
  - {method: sskt, sources: [wise, fool], heads: transfer, loss: kl}
"""


def found(
    folder,
    *,
    labels="",
    weights=("IMAGENET1K_V1", "resnet50_places365.pth.tar"),
    dataset="STL10",
    target="resnet20",
    begun_with=None,
):
    folder.mkdir(exist_ok=True)
    plan, storage = make_plan(folder, TEXT % labels)
    report = report_experiment(plan, storage)
    sources = dict(zip(("wise", "fool"), weights, strict=True))
    told = {name: replace(plan.experiment.sources[name], weights=said) for name, said in sources.items()}
    network = replace(plan.experiment.target, architecture=target, options={}, weights=begun_with)
    planned = {key: replace(one, trial=replace(one.trial, target=network)) for key, one in report.planned.items()}
    experiment = replace(plan.experiment, sources=told)
    plan = replace(plan, experiment=experiment, packed=replace(plan.packed, name=dataset))
    return [(one.row.label, one.theirs.score) for one in beside(plan, replace(report, planned=planned))]


def test_a_row_stands_beside_what_was_published_of_it(tmp_path):
    assert found(tmp_path) == [
        ("scratch", "81.15"),
        ("kd wise", "77.67"),
        ("sskt wise+fool, heads transfer", "84.56"),
        ("sskt wise, heads transfer", "83.45"),
        ("sskt wise+fool, heads transfer, loss kl", "81.33"),
    ]


@pytest.mark.parametrize(
    "other",
    [{"labels": ", labels_per_class: 5"}, {"dataset": "digits"}, {"target": "resnet56"}],
)
def test_other_data_other_targets_and_fewer_labels_repeat_nothing(tmp_path, other):
    assert found(tmp_path, **other) == []


def test_a_target_that_begins_with_pretrained_weights_is_another_one(tmp_path):
    begun = found(tmp_path / "begun", dataset="VOCDetection", target="resnet18", begun_with="IMAGENET1K_V1")
    random = found(tmp_path / "random", dataset="VOCDetection", target="resnet18")
    assert dict(begun)["scratch"] == "90.52"
    assert dict(random)["scratch"] == "67.28"


def test_other_sources_do_not_repeat_what_sskt_published(tmp_path):
    labels = [label for label, _ in found(tmp_path, weights=("mine.safetensors", "IMAGENET1K_V1"))]
    assert labels == ["scratch", "kd wise"]


def test_the_file_holds_numbers_of_methods_and_networks_that_exist():
    rows = published()
    assert len(rows) == len({tuple(vars(one).items()) for one in rows}) > 100
    for one in rows:
        assert one.method in METHODS
        architecture = one.target.partition(" from ")[0]
        assert architecture in ARCHITECTURES or architecture in (
            "mobilenet_v2",
            "densenet121",
            "vgg16",
            "resnet18",
            "resnet34",
            "resnet50",
        )
        assert one.metric in TITLES
        assert 0 < float(one.score) < 100
        assert not one.spread or 0 <= float(one.spread) < 5
        assert one.paper
        assert one.place
