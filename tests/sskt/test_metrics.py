import numpy as np
import pytest
import torch
from sklearn.metrics import average_precision_score, precision_recall_curve

from sskt.errors import DivergedError, InputError
from sskt.metrics import (
    MOST_CONFUSED,
    accuracy,
    by_class,
    mean_average_precision,
    sample_average_precision,
    scores,
)

SINGLE = {"classes": 3, "multi_label": False}


def test_accuracy_counts_over_batches():
    batches = [(torch.tensor([[0.9], [0.1]]), torch.tensor([1, 1])), (torch.tensor([[0.8]]), torch.tensor([1]))]
    assert accuracy(lambda images: torch.cat([1 - images, images], dim=1), batches) == pytest.approx(200 / 3)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("multi_label", [False, True])
def test_predictions_that_are_no_numbers_have_no_score(bad, multi_label):
    logits, labels = made(0)
    logits[20, 3] = bad
    batches = batches_of(logits, labels if multi_label else labels[:, 0])
    with pytest.raises(DivergedError, match=r"^what the target predicts is no longer finite; lower training\.lr$"):
        scores(identity, batches, multi_label=multi_label)


def identity(images: torch.Tensor) -> torch.Tensor:
    return images


def batches_of(logits: np.ndarray, labels: np.ndarray, size: int = 7) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The logits stand for the images."""
    return list(zip(torch.tensor(logits).split(size), torch.tensor(labels, dtype=torch.int8).split(size), strict=True))


def made(seed: int, *, images: int = 30, classes: int = 6, levels: int | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Logits that know a little of the labels, one in six of which is unknown; `levels` rounds, so that many tie."""
    generator = np.random.default_rng(seed)
    labels = generator.choice([1, 0, 0, 0, -1], size=(images, classes), p=[0.3, 0.2, 0.2, 0.13, 0.17])
    logits = generator.normal(size=labels.shape) + (labels == 1)
    return (logits if levels is None else np.round(logits * levels) / levels), labels


def slow_curve(logits: np.ndarray, labels: np.ndarray) -> list[tuple[float, float]]:
    """Recall and precision at every threshold, from the highest; unknown entries do not exist."""
    points = []
    for threshold in sorted({float(x) for x, y in zip(logits, labels, strict=True) if y != -1}, reverse=True):
        chosen = [y for x, y in zip(logits, labels, strict=True) if y != -1 and x >= threshold]
        points.append((chosen.count(1) / list(labels).count(1), chosen.count(1) / len(chosen)))
    return points


def slow_area(points: list[tuple[float, float]], *, interpolated: bool) -> float:
    area, before = 0.0, 0.0
    for place, (recall, precision) in enumerate(points):
        height = max(p for _, p in points[place:]) if interpolated else precision
        area, before = area + (recall - before) * height, recall
    return area


def slow_mean(logits: np.ndarray, labels: np.ndarray, *, interpolated: bool) -> float:
    pairs = [(x, y) for x, y in zip(logits, labels, strict=True) if (y == 1).any()]
    return 100 * float(np.mean([slow_area(slow_curve(x, y), interpolated=interpolated) for x, y in pairs]))


@pytest.mark.parametrize("levels", [None, 2])
@pytest.mark.parametrize("shape", [(30, 6), (1, 6), (30, 1), (5, 40)])
@pytest.mark.parametrize("seed", range(3))
def test_both_figures_are_their_formulas(seed, shape, levels):
    logits, labels = made(seed, images=shape[0], classes=shape[1], levels=levels)
    labels[0, 0] = 1
    found = scores(identity, batches_of(logits, labels), multi_label=True)
    assert found["sample_ap"] == pytest.approx(slow_mean(logits, labels, interpolated=False), rel=1e-12)
    assert found["mean_ap"] == pytest.approx(slow_mean(logits.T, labels.T, interpolated=True), rel=1e-12)
    assert sample_average_precision(identity, batches_of(logits, labels)) == found["sample_ap"]
    assert mean_average_precision(identity, batches_of(logits, labels)) == found["mean_ap"]


@pytest.mark.parametrize("levels", [None, 2])
def test_the_figure_per_image_is_that_of_scikit_learn(levels):
    logits, labels = made(4, levels=levels)
    pairs = [(x[y >= 0], y[y >= 0]) for x, y in zip(logits, labels, strict=True) if (y == 1).any()]
    expected = 100 * np.mean([average_precision_score(y, x) for x, y in pairs])
    assert sample_average_precision(identity, batches_of(logits, labels)) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("levels", [None, 2])
def test_the_figure_per_class_is_the_area_under_the_envelope_of_scikit_learn_s_curve(levels):
    logits, labels = made(5, levels=levels)
    areas = []
    for x, y in zip(logits.T, labels.T, strict=True):
        precision, recall, _ = precision_recall_curve(y[y >= 0], x[y >= 0])
        envelope = [precision[recall >= least].max() for least in recall[:-1]]
        areas.append(-np.sum(np.diff(recall) * envelope))  # its recall falls along the array
    found = mean_average_precision(identity, batches_of(logits, labels))
    assert found == pytest.approx(100 * np.mean(areas), rel=1e-12)
    pairs = zip(logits.T, labels.T, strict=True)
    assert found > 100 * np.mean([average_precision_score(y[y >= 0], x[y >= 0]) for x, y in pairs])


def test_two_rankings_worked_out_by_hand():
    logits = np.array([[4.0, 3.0, 2.0, 1.0]])
    # Found at ranks 2 and 3: precision 1/2, then 2/3, which is the best from there on for both.
    labels = np.array([[0, 1, 1, 0]])
    assert sample_average_precision(identity, batches_of(logits, labels)) == pytest.approx(100 * (1 / 2 + 2 / 3) / 2)
    assert mean_average_precision(identity, batches_of(logits.T, labels.T)) == pytest.approx(100 * 2 / 3)
    # Without the unknown first one, ranks 1 and 2.
    labels = np.array([[-1, 1, 1, 0]])
    assert sample_average_precision(identity, batches_of(logits, labels)) == pytest.approx(100)


def test_what_cannot_tell_anything_scores_the_share_of_what_holds():
    labels = np.array([[1, 0, 0, 0], [1, 1, 0, -1]])
    constant = np.zeros(labels.shape)
    assert sample_average_precision(identity, batches_of(constant, labels)) == pytest.approx(100 * (1 / 4 + 2 / 3) / 2)
    assert mean_average_precision(identity, batches_of(constant, labels)) == pytest.approx(100 * (1 + 1 / 2) / 2)


def test_neither_the_order_of_images_nor_the_batches_nor_an_increasing_function_matters():
    logits, labels = made(6, levels=2)
    order = np.random.default_rng(0).permutation(len(logits))
    expected = scores(identity, batches_of(logits, labels), multi_label=True)
    shuffled = scores(identity, batches_of(logits[order], labels[order], size=4), multi_label=True)
    assert shuffled == pytest.approx(expected, rel=1e-12)
    assert scores(torch.sigmoid, batches_of(logits, labels), multi_label=True) == pytest.approx(expected, rel=1e-12)


def test_huge_logits_and_low_precision_are_ranked_alike():
    logits, labels = made(7, levels=4)
    expected = scores(identity, batches_of(logits, labels), multi_label=True)
    assert scores(lambda x: (x * 1e30).float(), batches_of(logits, labels), multi_label=True) == expected
    assert scores(lambda x: x.bfloat16(), batches_of(logits, labels), multi_label=True) == expected


def test_a_network_that_is_right_has_all_of_it():
    labels = np.array([[1, 0, 1], [0, 1, -1], [0, 0, 0]])
    found = scores(identity, batches_of(labels * 2.0 - 1, labels), multi_label=True)
    assert found == {"mean_ap": 100.0, "sample_ap": 100.0}


def test_all_figures_come_from_one_pass():
    seen = []
    logits, labels = made(8)
    scores(lambda images: seen.append(len(images)) or images, batches_of(logits, labels, size=10), multi_label=True)
    assert seen == [10, 10, 10]
    batches = [(torch.eye(3), torch.tensor([0, 1, 1]))]
    assert scores(identity, batches, multi_label=False) == {"accuracy": accuracy(identity, batches)}


def test_where_nothing_holds_there_is_nothing_to_measure():
    with pytest.raises(InputError, match=r"^no class holds in any of the held-out images, so there is no average"):
        mean_average_precision(identity, batches_of(np.zeros((2, 3)), np.array([[0, 0, -1], [-1, -1, -1]])))


def test_a_confusion_is_counted_as_one_does_by_hand():
    logits = torch.tensor([[9.0, 0, 0], [0, 9, 0], [0, 9, 0], [0, 0, 9]])
    found = by_class(identity, [(logits[:3], torch.tensor([0, 1, 0])), (logits[3:], torch.tensor([0]))], **SINGLE)
    assert found == {"confusion": [[1, 1, 1], [0, 1, 0], [0, 0, 0]]}


@pytest.mark.parametrize("classes", [MOST_CONFUSED, MOST_CONFUSED + 1])
def test_of_many_classes_the_hits_are_kept_which_agree_with_the_accuracy(classes):
    generator = np.random.default_rng(0)
    logits, labels = generator.normal(size=(300, classes)), generator.integers(0, classes, 300)
    logits[np.arange(300), labels] += 3
    batches = batches_of(logits, labels)
    found = by_class(identity, batches, classes=classes, multi_label=False)
    if classes <= MOST_CONFUSED:
        counts = np.array(found["confusion"])
        found = {"images": counts.sum(axis=1).tolist(), "hits": np.diag(counts).tolist()}
    assert found["images"] == np.bincount(labels, minlength=classes).tolist()
    assert 100 * sum(found["hits"]) / 300 == accuracy(identity, batches)


def test_average_precisions_of_the_classes_have_the_mean_that_is_reported():
    logits, labels = made(3)
    labels[:, 2] = 0
    (found,) = by_class(identity, batches_of(logits, labels), classes=6, multi_label=True).values()
    assert [place for place, precision in enumerate(found) if precision is None] == [2]
    mean = mean_average_precision(identity, batches_of(logits, labels))
    assert np.mean([one for one in found if one is not None]) == pytest.approx(mean)
