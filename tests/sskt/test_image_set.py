from sskt.image_set import labelled_ids
from tests.sskt.learning import CLASSES, image_set


def test_labels_in_use_are_the_first_of_each_class():
    images = image_set()
    everything = labelled_ids(images, classes=CLASSES, per_class=None)
    assert everything.tolist() == [sample for sample in range(36) if sample % 4]
    two_each = labelled_ids(images, classes=CLASSES, per_class=2)
    labels = image_set().labels[two_each]
    assert labels.bincount(minlength=CLASSES).tolist() == [2, 2, 2]
    assert two_each.tolist() == [1, 2, 3, 5, 6, 7]
