import copy

import numpy as np
import pytest
import torch

from sskt.errors import InputError
from sskt.methods.ema import EMA, EMAOptions, squared_difference
from tests.sskt.learning import feed, method, source, training
from tests.sskt.methods.test_base import run
from tests.sskt.test_losses import slow_soft_loss, slow_softmax

STEPS = 8
"""Of a training of two epochs of four steps each."""


def slow_squared_difference(logits, wanted):
    """The formula, a class at a time."""
    total = 0.0
    for row, wanted_row in zip(logits, wanted, strict=True):
        for own, other in zip(slow_softmax(row), slow_softmax(wanted_row), strict=True):
            total += float((own - other) ** 2)
    return total / len(logits)


def slow_cross_entropy(logits, labels):
    """Mean over the labelled rows."""
    rows = [row for row, label in enumerate(labels) if label >= 0]
    return -sum(float(np.log(slow_softmax(logits[row])[labels[row]])) for row in rows) / len(rows)


def make(**options):
    model = method("ema", **options)
    model.train(mode=True)
    return model, feed(training(), pool=model.needs(model.options).pool)


def states(module):
    return {name: value.clone() for name, value in module.state_dict().items()}


def same(left, right):
    assert left.keys() == right.keys()
    return all(torch.equal(value, right[name]) for name, value in left.items())


def test_the_squared_difference_is_that_of_the_formula():
    generator, step = np.random.default_rng(0), 1e-6
    logits, wanted = generator.normal(size=(4, 3)) * 2, generator.normal(size=(4, 3)) * 2
    student = torch.tensor(logits, requires_grad=True)
    value = squared_difference(student, torch.tensor(wanted))
    value.backward()
    assert value.item() == pytest.approx(slow_squared_difference(logits, wanted), rel=1e-10)
    for index in np.ndindex(logits.shape):
        up, down = logits.copy(), logits.copy()
        up[index] += step
        down[index] -= step
        slope = (slow_squared_difference(up, wanted) - slow_squared_difference(down, wanted)) / (2 * step)
        assert student.grad[index].item() == pytest.approx(slope, abs=1e-7)


@pytest.mark.parametrize("learn_from", ["labelled", "all"])
@pytest.mark.parametrize("options", [{"loss": "mse"}, {"loss": "kl"}, {"loss": "kl", "temperature": 3.0}])
def test_a_step_is_the_formula(options, learn_from):
    """The average is kept here by hand, in float64; half of the training ramps up."""
    model, served = make(weight=2.0, decay=0.5, ramp=0.5, learn_from=learn_from, **options)
    average = {name: value.double() for name, value in model.target.named_parameters()}
    for step in range(STEPS):
        batch, twin = served.batch(step), copy.deepcopy(model.target)
        teacher = copy.deepcopy(model.target).eval()
        with torch.no_grad():
            for name, parameter in teacher.named_parameters():
                parameter.copy_(average[name])
            logits = twin(batch.images).logits.double().numpy()
            wanted = teacher(batch.images).logits.double().numpy()
        consistency = (
            slow_squared_difference(logits, wanted)
            if options["loss"] == "mse"
            else slow_soft_loss("kl", logits, wanted, options.get("temperature", 1.0))
        )
        parts = model.step(batch)
        assert parts["primary"].item() == pytest.approx(slow_cross_entropy(logits, batch.labels.tolist()), rel=1e-4)
        expected = 2.0 * min(1.0, step / 4) * consistency
        assert parts["consistency"].item() == pytest.approx(expected, rel=1e-3, abs=1e-6)
        for name, value in model.target.named_parameters():
            average[name] = 0.5 * average[name] + 0.5 * value.detach().double()
        for name, value in model.teacher.module.named_parameters():
            assert torch.allclose(value.double(), average[name], atol=1e-6), name


@pytest.mark.parametrize("loss", ["mse", "kl"])
def test_the_gradient_reaches_the_student_alone(loss):
    model, served = make(loss=loss, ramp=0.0, decay=1.0, weight=3.0)
    for step in range(2):
        model.step(served.batch(step))
    batch, twin = served.batch(2), copy.deepcopy(model.target)
    model.step(batch)
    assert all(parameter.grad is None for parameter in model.teacher.parameters())
    teacher = copy.deepcopy(model.teacher.module)
    # The buffers have followed the student since; what the teacher spoke with were those before the step.
    for left, right in zip(teacher.buffers(), twin.buffers(), strict=True):
        left.copy_(right)
    logits, wanted = twin(batch.images).logits, teacher(batch.images).logits.detach()
    p, q = torch.softmax(wanted, 1), torch.softmax(logits, 1)
    consistency = {"mse": ((p - q) ** 2).sum(), "kl": (p * (p / q).log()).sum()}[loss] / len(p)
    hard = torch.nn.functional.cross_entropy(logits, batch.labels, ignore_index=-1)
    expected = torch.autograd.grad(hard + 3.0 * consistency, list(twin.parameters()))
    for parameter, gradient in zip(model.target.parameters(), expected, strict=True):
        # The optimiser leaves the gradients of its last step where they are.
        assert torch.allclose(parameter.grad, gradient, atol=1e-5)


def test_without_weight_the_student_is_scratch_bit_for_bit():
    plain, parts = run("scratch")
    averaged, its = run("ema", weight=0.0, export="student")
    assert same(plain.export().state_dict(), averaged.export().state_dict())
    assert [part["loss"] for part in parts] == [part["loss"] for part in its]


def test_decay_zero_makes_the_teacher_the_student():
    model, served = make(decay=0.0)
    for step in range(3):
        model.step(served.batch(step))
        assert same(model.target.state_dict(), model.teacher.module.state_dict())


def test_decay_one_leaves_the_teacher_at_its_start():
    model, served = make(decay=1.0)
    start = {name: value.clone() for name, value in model.teacher.module.named_parameters()}
    for step in range(3):
        model.step(served.batch(step))
    assert same(start, dict(model.teacher.module.named_parameters()))
    assert same(dict(model.target.named_buffers()), dict(model.teacher.module.named_buffers()))
    assert not same(start, dict(model.target.named_parameters()))


def test_the_teacher_speaks_in_evaluation_mode():
    model, served = make()
    assert model.target.training
    assert not any(module.training for module in model.teacher.modules())
    before = states(model.teacher)
    with torch.no_grad():
        model.teacher(served.batch(0).images)
    assert same(before, model.teacher.state_dict())


def test_what_is_exported_can_be_chosen():
    images = feed(training()).batch(0).images
    for choice in ("student", "teacher"):
        model, _ = run("ema", export=choice)
        model.train(mode=False)
        wanted = model.target if choice == "student" else model.teacher.module
        assert model.export() is wanted
        assert torch.equal(model.predict(images), wanted(images).logits)
    assert EMAOptions().export == "teacher"


@pytest.mark.parametrize("loss", ["mse", "kl"])
@pytest.mark.parametrize("logits", [torch.zeros(4, 1), torch.eye(4) * 1e4])
def test_one_class_and_saturated_logits_stay_finite(loss, logits):
    model, _ = make(loss=loss, ramp=0.0)
    batch = feed(training()).batch(0)
    batch = type(batch)(batch.images[:4], torch.tensor([0, 0, -1, 0]), batch.ids[:4], batch.views[:4])
    model.teacher.forward = lambda images: model.target(images)._replace(logits=logits.flip(0))
    student = logits.clone().requires_grad_()
    total = sum(model.losses(batch, student, {}).values())
    total.backward()
    assert total.isfinite()
    assert student.grad.isfinite().all()


@pytest.mark.parametrize("stop", [1, 3])
def test_a_training_stopped_in_the_ramp_goes_on_as_if_it_had_not(stop):
    options = {"ramp": 0.75, "decay": 0.9, "weight": 4.0}
    model, served = make(**options)
    for step in range(stop):
        model.step(served.batch(step))
    other = method("ema", seed=9, **options)
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    other.train(mode=True)
    assert other.ramp() == pytest.approx(stop / 6)
    for step in range(stop, STEPS):
        assert model.step(served.batch(step)) == other.step(served.batch(step))
    assert model.ramp() == 1
    for name, module in model.modules().items():
        assert same(module.state_dict(), other.modules()[name].state_dict())


def test_the_ramp():
    model, served = make(ramp=1.0)
    seen = []
    for step in range(STEPS):
        seen.append(model.ramp())
        model.step(served.batch(step))
    assert seen == [step / STEPS for step in range(STEPS)]
    assert make(ramp=0.0)[0].ramp() == 1


def test_the_pool_is_asked_for_only_where_it_counts():
    assert EMA.needs(EMAOptions()).pool
    assert not EMA.needs(EMAOptions(learn_from="labelled")).pool
    assert not EMA.needs(EMAOptions(weight=0.0)).pool


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"weight": -1.0}, r"weight is -1\.0; it has to be at least 0"),
        ({"loss": "kl", "temperature": 0.0}, r"temperature is 0\.0; it has to be above 0"),
        ({"temperature": 4.0}, r"temperature is 4\.0 with loss 'mse'; it goes with loss 'kl' only"),
        ({"decay": 1.5}, r"decay is 1\.5; it has to be between 0 and 1"),
        ({"ramp": -0.1}, r"ramp is -0\.1; it has to be between 0 and 1"),
    ],
)
def test_options_out_of_range_are_refused(options, says):
    with pytest.raises(InputError, match=says):
        EMAOptions(**options)


def test_sources_are_refused():
    with pytest.raises(InputError, match="not used by this method"):
        method("ema", source())
