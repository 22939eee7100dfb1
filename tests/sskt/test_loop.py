import copy
import itertools
import pickle
import time

import pytest
import torch
from torch import nn

from sskt.errors import DivergedError, LeavingError
from sskt.loop import Context, evaluate, fit
from sskt.methods import METHODS
from sskt.metrics import accuracy
from sskt.orders import Share
from sskt.settings import TargetSettings
from tests.sskt.learning import TARGET, feed, method, served, source, training
from tests.sskt.methods.test_base import needed

CPU = torch.device("cpu")


class Memory:
    """Keeps what a training saves, as a storage would."""

    def __init__(self) -> None:
        self.states: list[dict] = []
        self.reports: list[dict] = []

    def context(self, **changes) -> Context:
        known = {"save": self.save, "load": self.load, "report": self.reports.append}
        return Context(device=CPU, **(known | changes))

    def save(self, state: dict) -> None:
        self.states.append(copy.deepcopy(state))

    def load(self) -> dict | None:
        return self.states[-1] if self.states else None


def run(epochs: int, memory: Memory, *, settings=None, **changes):
    settings = settings or training(epochs=6)
    wise = source()
    model = method("sskt", wise, settings=settings, learn_from="all")
    served = feed(settings, sources=[wise], pool=True)
    return model, fit(model, served, epochs=epochs, seed=0, context=memory.context(**changes))


def test_training_learns_and_reports_every_epoch():
    memory = Memory()
    _, progress = run(6, memory)
    assert [report["epoch"] for report in memory.reports] == list(range(1, 7))
    assert memory.reports[-1]["primary"] < memory.reports[0]["primary"]
    assert progress.history[-1]["validation_accuracy"] > 80
    assert progress.label_rows == 6 * 4 * 16
    assert set(progress.history[0]) == {"epoch", "loss", "primary", "auxiliary/wise", "validation_accuracy"}


def test_an_interrupted_training_ends_as_if_it_had_not_been():
    whole, progress = run(6, Memory())
    memory = Memory()
    run(3, memory)
    resumed, resumed_progress = run(6, memory)
    assert len(memory.reports) == 6
    for name, value in whole.export().state_dict().items():
        assert torch.equal(value, resumed.export().state_dict()[name]), name
    assert resumed_progress.history == progress.history
    assert resumed_progress.label_rows == progress.label_rows


def test_a_finished_training_is_not_trained_again():
    memory = Memory()
    run(2, memory)
    states = len(memory.states)
    _, progress = run(2, memory)
    assert (len(memory.states), progress.epoch) == (states, 2)


def test_a_loss_that_is_no_number_ends_the_training_with_its_reason():
    memory = Memory()
    with pytest.raises(DivergedError, match=r"no longer finite in epoch 1 \(loss, primary.*lower training") as raised:
        run(6, memory, settings=training(epochs=6, lr=1e30))
    assert memory.states == []
    assert raised.value.last is None


def breaks_in_epoch(number: int, *, weight: bool):
    """A method whose loss, or else one of whose weights, is no number from the last step of an epoch on."""
    model = method("scratch", settings=training(epochs=6))
    step, steps = model.step, []

    def broken(batch):
        parts = step(batch)
        steps.append(batch)
        if len(steps) == number * 4:
            if weight:
                next(iter(model.export().parameters())).data.fill_(torch.inf)
            else:
                parts["primary"] = parts["primary"] * torch.nan
        return parts

    model.step = broken
    return model


@pytest.mark.parametrize(
    ("weight", "reason"), [(False, r"the loss .* in epoch 3 \(primary\)"), (True, "what the target predicts is no")]
)
def test_what_diverges_later_leaves_the_metrics_of_the_last_good_epoch(weight, reason):
    memory = Memory()
    model = breaks_in_epoch(3, weight=weight)
    served = feed(training(epochs=6))
    assert served.steps_per_epoch == 4
    with pytest.raises(DivergedError, match=reason) as raised:
        fit(model, served, epochs=6, seed=0, context=memory.context())
    error = pickle.loads(pickle.dumps(raised.value))  # noqa: S301 (our own)
    assert str(error) == str(raised.value)
    assert error.last == memory.reports[-1]
    assert error.last["epoch"] == 2
    assert [state["epoch"] for state in memory.states] == [1, 2]


def test_a_resumed_training_that_diverges_knows_the_epochs_before():
    memory = Memory()
    run(2, memory)
    memory.states[-1]["method"]["target"] = {
        name: value * torch.nan if value.is_floating_point() else value
        for name, value in memory.states[-1]["method"]["target"].items()
    }
    with pytest.raises(DivergedError, match="in epoch 3") as raised:
        run(6, memory)
    assert raised.value.last == memory.reports[1]


def test_every_step_and_every_batch_of_an_evaluation_is_a_sign_of_life():
    beats = []
    wise, settings = source(), training(epochs=3)
    model, served = method("sskt", wise, settings=settings), feed(settings, sources=[wise])
    whole = served.evaluation
    served.evaluation = lambda split: whole(split, batch_size=5)
    fit(model, served, epochs=3, seed=0, context=Context(device=CPU, beat=lambda: beats.append(None)))
    assert len(beats) == 3 * (served.steps_per_epoch + 3)  # 12 validation images, 5 at a time
    evaluate(model, served, "test", beat=lambda: beats.append("test"))
    assert beats.count("test") == 3


def test_of_every_step_is_told_how_many_images_and_how_long_it_waited_and_took():
    told, settings = [], training(epochs=3)
    model, served = method("scratch", settings=settings), feed(settings)
    serve, learn = served.batch, model.step
    served.batch = lambda step: time.sleep(0.02) or serve(step)
    model.step = lambda batch: time.sleep(0.03) or learn(batch)
    fit(model, served, epochs=3, seed=0, context=Context(device=CPU, learned=lambda *step: told.append(step)))
    assert [samples for samples, _, _ in told] == [len(serve(0).ids)] * 3 * served.steps_per_epoch
    assert all(waited >= 0.02 and seconds >= waited + 0.03 for _, waited, seconds in told)


def test_of_a_process_with_others_in_it_a_part_of_the_time_is_its_own():
    context = Memory().context(share=0.25)
    began = time.perf_counter() - 8.0
    assert context.since(began) == pytest.approx(2.0, rel=1e-2)
    memory, told = Memory(), []
    run(1, memory, share=0.0, learned=lambda samples, waited, seconds: told.append(seconds))
    assert memory.states[-1]["seconds"] == sum(told) == 0


def test_an_evaluation_is_of_the_split_and_in_evaluation_mode():
    model, served = method("scratch"), feed(training())
    modes = []
    predict = model.predict
    model.predict = lambda images: modes.append(model.export().training) or predict(images)
    model.train(mode=True)
    found = evaluate(model, served, "test", beat=lambda: None)
    assert modes == [False]
    assert found == {"accuracy": accuracy(predict, served.evaluation("test"))}


def test_a_saved_state_may_hold_what_others_put_there():
    plain, marked = Memory(), Memory()
    for memory in (plain, marked):
        run(2, memory)
    marked.states[-1] |= {"lineage": ["another"], "seed": 7}
    assert run(4, marked)[1].history == run(4, plain)[1].history


def test_losses_are_averaged_over_processes():
    memory = Memory()
    run(1, memory, gather=lambda own: torch.stack([own * 0 + 4.0 * 5, own * 0 + 4.0 * 9]))
    assert memory.reports[0]["loss"] == 7.0


def forgetful(*, classes: int) -> nn.Module:
    """A target that draws random numbers in every step."""
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.Dropout(0.5), nn.Linear(16, classes))


FORGETFUL = TargetSettings(architecture="tests.sskt.test_loop:forgetful")


def life(name: str, memory: Memory, *, steps: int | None = None, target: TargetSettings = TARGET):
    """What a process does that trains so many steps, or None that go on to the end: the method and its progress."""
    sources, settings = needed(name), training(epochs=2)
    options = {"learn_from": "all"} if "learn_from" in METHODS[name].Options.__dataclass_fields__ else {}
    model = method(name, *sources, settings=settings, target=target, **options)
    batches, asked = served(model, *sources, settings=settings), itertools.count()
    context = memory.context(leaving=lambda: next(asked) == steps)
    return model, fit(model, batches, epochs=2, seed=0, context=context)


def same(one: object, other: object) -> bool:
    """Whether two states are equal to the bit."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[key]) for key, value in one.items())
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(map(same, one, other))
    return one == other


def check_same(memory: Memory, ended: tuple, whole: tuple, whole_memory: Memory) -> None:
    (model, progress), (expected, expected_progress) = ended, whole
    assert progress.history == expected_progress.history
    assert progress.label_rows == expected_progress.label_rows
    assert memory.reports == whole_memory.reports
    assert same(model.state_dict(), expected.state_dict())
    timeless = {"seconds": 0, "waited": 0, "earlier": 0}
    assert same(memory.states[-1] | timeless, whole_memory.states[-1] | timeless)


STEPS = 4  # an epoch of the settings above


@pytest.mark.parametrize(("name", "target"), [("scratch", FORGETFUL), ("sskt", TARGET), ("maxl", TARGET)])
def test_a_training_that_leaves_at_any_step_ends_as_if_it_had_not(name, target):
    whole_memory = Memory()
    whole = life(name, whole_memory, target=target)
    for steps in range(2 * STEPS):
        memory = Memory()
        with pytest.raises(LeavingError, match=f"^after {steps // STEPS} epochs and {steps % STEPS} of {STEPS} steps$"):
            life(name, memory, steps=steps, target=target)
        assert [(state["epoch"], state["step"]) for state in memory.states[-1:]] == (
            [(steps // STEPS, steps % STEPS)] if steps else []
        )
        check_same(memory, life(name, memory, target=target), whole, whole_memory)


@pytest.mark.parametrize("name", METHODS)
def test_a_training_may_leave_again_and_again(name):
    whole_memory, memory = Memory(), Memory()
    whole = life(name, whole_memory)
    for _ in range(2):
        with pytest.raises(LeavingError):
            life(name, memory, steps=3)
    check_same(memory, life(name, memory, steps=3), whole, whole_memory)


def test_what_has_trained_nothing_leaves_nothing_behind():
    memory = Memory()
    for _ in range(2):
        with pytest.raises(LeavingError, match="after 0 epochs and 0 of"):
            life("scratch", memory, steps=0)
    assert memory.states == []


def left(memory: Memory, share: Share | None = None, **changes) -> list[float]:
    """Train until it has to leave; the sums of the loss that it leaves behind, by process."""
    settings = training(epochs=2)
    batches = feed(settings, share=share)
    with pytest.raises(LeavingError):
        fit(method("scratch", settings=settings), batches, epochs=2, seed=0, context=memory.context(**changes))
    return memory.states[-1]["sums"]["loss"].tolist()


def test_each_process_goes_on_with_its_own_sums():
    memory, asked = Memory(), itertools.count()
    one, two = left(memory, leaving=lambda: next(asked) == 1, gather=lambda own: torch.stack([own, own * 3]))
    assert two == pytest.approx(one * 3)
    # A number of processes that is not that of before: each has the mean.
    for share, expected in ((Share(rank=0, world=2), one), (Share(rank=1, world=2), two), (Share(), (one + two) / 2)):
        assert left(copy.deepcopy(memory), share, leaving=lambda: True) == pytest.approx([expected], abs=1e-6)


def test_a_state_of_a_version_that_knew_whole_epochs_only_goes_on():
    whole, older = Memory(), Memory()
    run(3, whole)
    older.states = [{name: part for name, part in whole.states[0].items() if name not in ("step", "sums")}]
    assert run(3, older)[1].history == run(3, whole)[1].history
