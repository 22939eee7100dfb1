import copy
import pickle

import pytest
import torch

from sskt.errors import DivergedError
from sskt.loop import Context, evaluate, fit
from sskt.metrics import accuracy
from tests.sskt.learning import feed, method, source, training

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
    run(1, memory, average=lambda means: means * 0 + 4.0 * 7)
    assert memory.reports[0]["loss"] == 7.0
