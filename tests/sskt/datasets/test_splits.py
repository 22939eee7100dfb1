import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from sskt.datasets import SPLITS, DatasetSettings, Record
from sskt.datasets.splits import assign_splits, identify, order_key
from sskt.errors import InputError


def record(key, label, split=None):
    return Record(str(key), label, split, lambda: Image.new("L", (1, 1)))


def records_of(*counts, split=None):
    return [record(f"{split}{label}/{index}", label, split) for label, n in enumerate(counts) for index in range(n)]


def split_up(records, classes, *, kept=None, **settings):
    places = [order_key(identify(np.zeros((1, 1, 1), np.uint8), each.key).sample, 0) for each in records]
    names = [f"c{label}" for label in range(classes)]
    chosen = DatasetSettings(kind="digits", **settings)
    return assign_splits(records, places, classes=names, settings=chosen, kept=kept).tolist()


def counts(records, splits, label):
    chosen = [split for each, split in zip(records, splits, strict=True) if each.label == label]
    return [chosen.count(code) for code in range(3)]


def test_each_class_is_divided_alike():
    records = records_of(10, 30, 7)
    splits = split_up(records, 3, validation=0.1, test=0.2)
    assert [counts(records, splits, label) for label in range(3)] == [[7, 1, 2], [21, 3, 6], [4, 1, 2]]


def test_what_the_data_holds_out_is_kept_and_the_rest_is_taken_from_training():
    records = records_of(10, 10, split="train") + records_of(4, 4, split="test")
    splits = split_up(records, 2, validation=0.1, test=0.5)
    assert splits[20:] == [2] * 8
    assert counts(records, splits, 0) == counts(records, splits, 1) == [9, 1, 4]

    records = records_of(10, 10, split="train") + records_of(3, 3, split="validation")
    splits = split_up(records, 2, validation=0.5, test=0.2)
    assert splits[20:] == [1] * 6
    assert counts(records, splits, 0) == [8, 3, 2]


def test_unlabelled_images_are_never_held_out():
    records = records_of(10) + [record(f"u{index}", -1) for index in range(50)]
    assert split_up(records, 1, validation=0.3, test=0.3)[10:] == [0] * 50


def test_an_unlabelled_test_image_is_refused():
    with pytest.raises(
        InputError, match=r"^dataset: image 'x' of the test split has no label; label it or take it out$"
    ):
        split_up([*records_of(5), record("x", -1, "test")], 1)


def test_a_class_has_to_keep_a_training_image():
    with pytest.raises(InputError) as caught:
        split_up(records_of(10, 2), 2, validation=0.1, test=0.2)
    assert str(caught.value) == (
        "dataset.test 0.2 and dataset.validation 0.1 leave nothing to train on of class 'c1', "
        "which has 2 labelled image(s); lower them or add images"
    )
    with pytest.raises(InputError, match=r"^dataset: class 'c1' has no labelled image to train on; add some or take"):
        split_up(records_of(10), 2)


def test_the_key_distinguishes_equal_pictures_and_the_pixels_equal_keys():
    black, white = np.zeros((1, 2, 2), np.uint8), np.full((1, 2, 2), 255, np.uint8)
    assert len({identify(black, "a").sample, identify(black, "b").sample, identify(white, "a").sample}) == 3
    assert identify(black, "a") == identify(black.copy(), "a")


def test_the_identity_of_a_picture_is_its_pixels_alone():
    black, white = np.zeros((1, 2, 2), np.uint8), np.full((1, 2, 2), 255, np.uint8)
    assert identify(black, "a").picture == identify(black, "b").picture != identify(white, "a").picture


def test_the_seed_changes_the_order():
    digests = [identify(np.zeros((1, 1, 1), np.uint8), str(index)).sample for index in range(50)]
    orders = [sorted(digests, key=lambda digest: order_key(digest, seed)) for seed in (0, 1)]
    assert orders[0] != orders[1]


@given(st.permutations(range(40)), st.floats(0, 0.45), st.floats(0, 0.45))
def test_splits_do_not_depend_on_the_order_of_reading(permutation, validation, test):
    records = records_of(20, 20)
    splits = split_up(records, 2, validation=validation, test=test)
    shuffled = split_up([records[row] for row in permutation], 2, validation=validation, test=test)
    assert shuffled == [splits[row] for row in permutation]
    for label in range(2):
        train, held, tested = counts(records, splits, label)
        assert train >= 1
        assert validation * 20 - 1e-5 <= held < validation * 20 + 1
        assert test * 20 - 1e-5 <= tested < test * 20 + 1


def multi_records(*labels, split=None):
    return [record(f"{index}", label, split) for index, label in enumerate(labels)]


def test_an_image_of_several_classes_counts_as_one_of_the_rarest():
    # 0 holds 30 times, 1 holds 20 times, 2 holds 10 times; 40 images hold nothing.
    records = multi_records(*[(0, 1, 2)] * 10, *[(0, 1)] * 10, *[(0,)] * 10, *[()] * 40)
    splits = split_up(records, 3, validation=0.1, test=0.2)
    assert [splits[start : start + 10].count(2) for start in (0, 10, 20)] == [2, 2, 2]
    assert [splits[start : start + 10].count(1) for start in (0, 10, 20)] == [1, 1, 1]
    assert [splits[30:].count(code) for code in range(3)] == [28, 4, 8]


def test_a_set_of_one_class_is_split_as_that_class():
    single = records_of(10, 30, 7)
    sets = [record(each.key, (each.label,)) for each in single]
    assert split_up(sets, 3) == split_up(single, 3)


def test_images_of_no_class_are_held_out_and_unlabelled_ones_are_not():
    records = multi_records(*[(0,)] * 10, *[()] * 10, *[-1] * 10)
    splits = split_up(records, 1, validation=0.2, test=0.3)
    assert [splits[start : start + 10].count(0) for start in (0, 10, 20)] == [5, 5, 10]
    with pytest.raises(InputError, match=r"image '0' of the test split has no label"):
        split_up([*multi_records(-1, split="test"), *records], 1)


def test_a_class_of_sets_has_to_keep_a_training_image_too():
    with pytest.raises(InputError, match=r"leave nothing to train on of class 'c1', which has 2 labelled image"):
        split_up(multi_records(*[(0,)] * 10, (0, 1), (1,)), 2, validation=0.1, test=0.2)
    with pytest.raises(InputError, match=r"class 'c1' has no labelled image to train on"):
        split_up(multi_records(*[(0,)] * 10, ()), 2)


def test_without_a_class_there_is_nothing_to_split():
    with pytest.raises(InputError, match=r"^dataset: no image has a label, so there is no class to learn; label some$"):
        split_up(multi_records(-1, -1), 0)


@given(st.permutations(range(40)), st.lists(st.sets(st.integers(0, 3)), min_size=40, max_size=40))
def test_splits_of_sets_do_not_depend_on_the_order_of_reading(permutation, sets):
    # Enough of every class that none can be held out as a whole.
    records = multi_records(*(tuple(sorted(each)) for each in sets), *[(label,) for label in range(4)] * 20)
    order = [*permutation, *range(40, 120)]
    splits = split_up(records, 4)
    assert split_up([records[row] for row in order], 4) == [splits[row] for row in order]


def kept_of(splits):
    return {row: SPLITS[split] for row, split in enumerate(splits)}


@given(st.lists(st.integers(0, 6), min_size=2, max_size=2), st.randoms(use_true_random=False))
def test_kept_splits_stay_and_the_new_ones_have_their_share(more, random):
    old, new = records_of(10, 20), [record(f"new{label}/{i}", label) for label, n in enumerate(more) for i in range(n)]
    before = [random.choice((0, 0, 1, 2)) for _ in old]
    before[0] = before[10] = 0  # of either class something to train on
    splits = split_up([*old, *new], 2, kept=kept_of(before))
    assert splits[:30] == before
    for label, count in enumerate(more):
        held = counts(new, splits[30:], label)
        had = counts(old, before, label)
        for code, fraction in ((1, 0.1), (2, 0.2)):
            share, lacking = np.ceil([fraction * count, fraction * (count + sum(had)) - 1e-9]) - [0, had[code]]
            assert held[code] <= max(min(share, lacking), 0)
        assert held[2] == max(min(np.ceil(0.2 * count), np.ceil(0.2 * (count + sum(had)) - 1e-9) - had[2]), 0)


def test_images_that_come_singly_are_not_all_held_out():
    records = records_of(10)
    splits = split_up(records, 1)
    for _ in range(90):
        records.append(record(f"later/{len(records)}", 0))
        splits = split_up(records, 1, kept=kept_of(splits))
    assert [splits.count(code) for code in range(3)] == [70, 10, 20]


def test_new_images_of_a_split_of_their_own_are_in_it_and_then_no_other_is_held_out():
    old = records_of(10)
    before = split_up(old, 1)
    new = [*records_of(4, split="test"), *[record(f"later/{index}", 0) for index in range(10)]]
    splits = split_up([*old, *new], 1, kept=kept_of(before))
    assert splits[:10] == before
    assert splits[10:14] == [2] * 4
    assert sorted(splits[14:]) == [0] * 9 + [1]


def test_everything_kept_changes_nothing_whatever_the_labels_are_now():
    before = split_up(records_of(10, 10), 2)
    relabelled = [record(index, 0 if index < 3 else 1) for index in range(20)]
    assert split_up(relabelled, 2, kept=kept_of(before)) == before
