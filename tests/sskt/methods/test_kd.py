import numpy as np
import pytest
import torch

from sskt.errors import InputError
from tests.sskt.learning import feed, method, source, training
from tests.sskt.methods.test_base import run
from tests.sskt.test_losses import slow_softmax


def slow_kd(logits, labels, teachers, *, weight, temperature):
    """Hinton's loss a row at a time; several teachers by their mean probability."""
    hard, soft, labelled = 0.0, 0.0, 0
    for row, label in enumerate(labels):
        q_hot = slow_softmax(logits[row] / temperature)
        p_hot = np.mean([slow_softmax(teacher[row] / temperature) for teacher in teachers], axis=0)
        soft += float(np.sum(p_hot * (np.log(p_hot) - np.log(q_hot)))) * temperature**2
        if label >= 0:
            hard -= float(np.log(slow_softmax(logits[row])[label]))
            labelled += 1
    return (1 - weight) * hard / labelled + weight * soft / len(labels)


@pytest.mark.parametrize("teachers", [1, 2])
@pytest.mark.parametrize("learn_from", ["labelled", "all"])
def test_the_loss_is_hintons(teachers, learn_from):
    sources = [source("wise", classes=3), source("wiser", classes=3)][:teachers]
    model = method("kd", *sources, weight=0.8, temperature=3.0, learn_from=learn_from)
    batch = feed(training(), sources=sources, pool=learn_from == "all").batch(0)
    model.train(mode=True)
    with torch.no_grad():
        logits, _ = model.student(batch.images)
    expected = slow_kd(
        logits.double().numpy(),
        batch.labels.tolist(),
        [batch.outputs[one.name]["logits"].double().numpy() for one in sources],
        weight=0.8,
        temperature=3.0,
    )
    assert model.step(batch)["loss"].item() == pytest.approx(expected, rel=1e-4)


def test_weight_zero_is_scratch_bit_for_bit():
    plain, _ = run("scratch")
    distilled, _ = run("kd", source(classes=3), weight=0.0, learn_from="all")
    for left, right in zip(plain.export().parameters(), distilled.export().parameters(), strict=True):
        assert torch.equal(left, right)


def test_a_teacher_with_other_classes_is_refused():
    with pytest.raises(InputError, match=r"source 'wise' has 5 classes and the target 3; kd needs the same ones"):
        method("kd", source())
    with pytest.raises(InputError, match=r"weight is 1\.5; it has to be between 0 and 1"):
        method("kd", source(classes=3), weight=1.5)
