import copy

import pytest
import torch

from sskt.errors import DivergedError
from sskt.loop import Context, fit
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
    with pytest.raises(DivergedError, match=r"no longer finite in epoch 1 \(loss, primary.*lower training.lr"):
        run(6, memory, settings=training(epochs=6, lr=1e30))
    assert memory.states == []


def test_losses_are_averaged_over_processes():
    memory = Memory()
    run(1, memory, average=lambda means: means * 0 + 4.0 * 7)
    assert memory.reports[0]["loss"] == 7.0
