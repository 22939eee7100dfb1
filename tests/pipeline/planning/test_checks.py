from types import SimpleNamespace

import pytest

from pipeline.planning.checks import check_labels, check_streamed
from sskt.errors import InputError
from sskt.methods import Needs
from sskt.settings import TrainingSettings


def training(**changes):
    return TrainingSettings(epochs=1, **changes)


def test_more_labels_of_a_class_than_there_are_name_the_class():
    packed = SimpleNamespace(classes=("cat", "dog"), labelled=(9, 4))
    for wanted in (None, 4):
        check_labels(training(labels_per_class=wanted), packed)
    with pytest.raises(InputError, match="labels_per_class is 5, but class 'dog' has 4 labelled training images"):
        check_labels(training(labels_per_class=5), packed)


@pytest.mark.parametrize(
    ("needs", "changes", "live", "reason"),
    [
        (Needs(pool=True, graph=3, near=3), {}, set(), "the 3 nearest neighbours of every image"),
        (Needs(pool=True), {"mix": "cutmix"}, set(), r"mixed with others of the pool \(training.mix is 'cutmix'\)"),
        (Needs(outputs=("embedding",), asks=True), {}, {"wise", "fool"}, r"live sources \(fool, wise\) say"),
    ],
)
def test_what_wants_images_of_the_whole_pool_is_refused_and_told_what_to_set(needs, changes, live, reason):
    with pytest.raises(InputError, match=rf"images are streamed.*{reason}.*set resources.feed to 'resident'"):
        check_streamed(training(**changes), needs, live=live)


@pytest.mark.parametrize(
    ("needs", "changes", "live"),
    [
        (Needs(), {"mix": "mixup"}, set()),
        (Needs(pool=True, pair=True, turned=True, graph=5), {}, set()),
        (Needs(outputs=("embedding",), asks=True), {}, set()),
        (Needs(outputs=("logits",)), {}, {"wise"}),
    ],
)
def test_everything_else_streams(needs, changes, live):
    check_streamed(training(**changes), needs, live=live)
