"""Whatever a folder holds, the proposal is an experiment file that is taken, and says why."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.planning.experiment import load_experiment
from pipeline.starting.proposal import Machine, described, image_size, propose, target_for
from pipeline.starting.survey import Survey
from sskt.datasets.pixels import Unreadable

SEEN = Survey(
    path="photos", classes={"cat": 120, "dog": 31}, unlabelled=0, own_splits=(), looked_at=151,
    sides=(40, 55, 86), grey=False, unreadable=(Unreadable("dog/broken.jpg", "cannot identify image"),),
)  # fmt: skip
LAPTOP, SERVER = Machine(gpus=0, lite0=True), Machine(gpus=4, lite0=False)
NAMES = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=12)
SURVEYS = st.builds(
    Survey,
    path=NAMES,
    classes=st.dictionaries(NAMES, st.integers(1, 9000), min_size=2, max_size=30),
    unlabelled=st.integers(0, 9000),
    own_splits=st.sampled_from([(), ("test", "train"), ("test", "train", "validation")]),
    looked_at=st.integers(1, 3000),
    sides=st.lists(st.integers(1, 5000), min_size=1).map(lambda sides: tuple(sorted(sides))),
    grey=st.booleans(),
    unreadable=st.lists(st.builds(Unreadable, NAMES, NAMES), max_size=15).map(tuple),
)


@given(survey=SURVEYS, machine=st.builds(Machine, gpus=st.integers(0, 8), lite0=st.booleans()))
def test_every_proposal_is_taken(tmp_path_factory, survey, machine):
    file = tmp_path_factory.mktemp("proposed") / "mine.yaml"
    file.write_text(propose(survey, machine, name="mine"), encoding="utf-8")
    experiment = load_experiment(str(file))
    assert experiment.dataset.path == survey.path
    assert experiment.dataset.max_unreadable == len(survey.unreadable)
    assert [entry["method"] for entry in experiment.methods] == ["scratch", "sskt", "embed"]
    assert len(experiment.trials()) == 9


def test_images_are_seldom_enlarged_and_small_without_a_device():
    def size(side, machine):
        return image_size(dataclasses.replace(SEEN, sides=(side,)), machine)

    assert [size(side, LAPTOP) for side in (8, 16, 31, 50, 500)] == [8, 16, 24, 48, 64]
    assert [size(side, SERVER) for side in (50, 100, 223, 4000)] == [48, 96, 160, 224]


@pytest.mark.parametrize(("size", "target"), [(16, "small_cnn"), (24, "resnet20"), (64, "resnet20"), (96, "resnet18")])
def test_the_target_is_at_home_at_its_size(size, target):
    assert target_for(size) == target


def test_what_is_worth_knowing_is_said():
    assert described(SEEN) == [
        "151 images in 2 classes: cat 120, dog 31.",
        "A network that always says 'cat' is right in 79 %.",
        "dog/broken.jpg cannot be read: cannot identify image.",
    ]
    many = {f"class {number:02}": 50 for number in range(12)} | {"rare": 3}
    some = dataclasses.replace(SEEN, classes=many, unlabelled=7, looked_at=100, unreadable=())
    assert described(some)[0].endswith("class 09 50 and 3 more.")
    assert "7 are unlabelled" in described(some)[1]
    assert described(some)[2] == "100 of them, spread evenly, were read."
    assert described(some)[-1] == "'rare' has 3 images: what is measured on so few says little."


def test_devices_and_downloads_are_proposed_where_they_are_needed(tmp_path):
    laptop, server = propose(SEEN, LAPTOP, name="a"), propose(SEEN, SERVER, name="a")
    assert "efficientnet_lite0" in laptop
    assert "resources" not in laptop
    assert "mobilenet_v3_small" in server
    assert "gpus_per_trial: 0.5" in server
