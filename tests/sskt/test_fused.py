"""Trainings that step together end as each ends alone; what befalls one of them is no business of the others."""

import copy
import itertools

import pytest
import torch
from torch import nn

from sskt.errors import DivergedError, LeavingError
from sskt.fused import together, why_not, why_not_network
from sskt.loop import alone, training
from sskt.methods import METHODS, get_method
from sskt.networks import build_target
from sskt.settings import TargetSettings
from sskt.stacks import Stack
from tests.sskt import learning
from tests.sskt.learning import CLASSES, IMAGE, SIZE, TARGET
from tests.sskt.methods.test_base import needed
from tests.sskt.test_loop import CPU, FORGETFUL, Memory

STEPS = 4
"""Of an epoch of these trainings."""


class Life:
    """One training that can be taken up again, its memory outliving it."""

    def __init__(self, name: str = "scratch", *, seed: int = 0, target=TARGET, epochs: int = 2, **options) -> None:
        self.name, self.seed, self.target = name, seed, target
        changes = {key: options.pop(key) for key in list(options) if key in learning.training().__dataclass_fields__}
        self.settings, self.options = learning.training(epochs=epochs, **changes), options
        self.memory, self.seen = Memory(), []

    def training(self, *, leave_after: int | None = None):
        """Its steps; what ends it ahead of time is what it returns."""
        sources = needed(self.name)
        model = learning.method(
            self.name, *sources, settings=self.settings, target=self.target, seed=self.seed, **self.options
        )
        needs, names = model.needs(model.options), [one.name for one in sources]
        feed = learning.feed(
            self.settings, sources=sources, seed=self.seed, extras=needs.extras(names), neighbours=needs.graph
        )
        asked = itertools.count()
        context = self.memory.context(leaving=lambda: next(asked) == leave_after)
        steps = training(model, feed, epochs=self.settings.epochs, seed=self.seed, context=context)
        return self._told(steps)

    def _told(self, steps):
        try:
            parts = None
            while True:
                asked = steps.send(parts)
                self.seen.append(asked.batch.ids.tolist())
                parts = yield asked
        except StopIteration as end:
            return self, end.value
        except (DivergedError, LeavingError) as error:
            return self, error


def run_alone(*lives: Life, **changes):
    return [alone(life.training(**changes))[1] for life in lives]


def run_together(*lives: Life, **changes):
    """How each ended, in the order of the lives."""
    ends = dict(together([life.training(**changes) for life in lives], device=CPU))
    return [ends[life] for life in lives]


def nearly(one, other, *, relative=1e-5, path=""):
    """Compare two states: structure, dtypes and whole numbers exactly, others nearly."""
    if isinstance(one, dict):
        assert list(one) == list(other), path
        for key in one:
            nearly(one[key], other[key], relative=relative, path=f"{path}/{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(other), path
        for number, pair in enumerate(zip(one, other, strict=True)):
            nearly(*pair, relative=relative, path=f"{path}/{number}")
    elif isinstance(one, torch.Tensor):
        assert (one.dtype, one.shape) == (other.dtype, other.shape), path
        torch.testing.assert_close(one, other, rtol=relative, atol=relative, msg=lambda said: f"{path}: {said}")
    elif isinstance(one, float):
        assert one == pytest.approx(other, rel=relative, abs=relative), path
    else:
        assert one == other, path


def timeless(state):
    return state | {"seconds": 0, "waited": 0, "earlier": 0}


THREE = (
    {"name": "scratch", "lr": 0.05},
    {"name": "sskt", "seed": 1, "lr": 0.1, "momentum": 0.5, "alpha": 0.5, "weight_decay": 1e-3},
    {"name": "sskt", "seed": 2, "heads": "transfer", "temperature": 2.0, "nesterov": True, "schedule": "constant"},
)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_each_ends_as_alone(count):
    ours, theirs = ([Life(**one) for one in THREE[:count]] for _ in range(2))
    for ended, expected in zip(run_together(*ours), run_alone(*theirs), strict=True):
        nearly(ended.history, expected.history)
    for one, other in zip(ours, theirs, strict=True):
        assert one.seen == other.seen, "the data come in the same order"
        nearly(one.memory.reports, other.memory.reports)
        for state, expected in zip(one.memory.states, other.memory.states, strict=True):
            nearly(timeless(state), timeless(expected), relative=1e-4)  # momenta of eight steps
            assert torch.equal(state["random"]["cpu"], expected["random"]["cpu"])


def test_one_is_alone_to_the_bit():
    (ended,), (expected,) = run_together(Life()), run_alone(Life())
    assert ended.history == expected.history


@pytest.mark.parametrize("name", [name for name, method in METHODS.items() if why_not(method) is None])
def test_every_method_that_may_be_stacked_makes_the_first_steps_that_it_makes_alone(name):
    options = {"learn_from": "all"} if "learn_from" in METHODS[name].Options.__dataclass_fields__ else {}
    known = {"epochs": 1, "steps_per_epoch": 3, **options}
    ours, theirs = ([Life(name, seed=seed, **known) for seed in (0, 1)] for _ in range(2))
    for ended, expected in zip(run_together(*ours), run_alone(*theirs), strict=True):
        nearly(ended.history, expected.history, relative=1e-4)
    for one, other in zip(ours, theirs, strict=True):
        nearly(one.memory.states[-1]["method"], other.memory.states[-1]["method"], relative=1e-3)


def test_what_diverges_ends_with_its_reason_and_touches_nobody():
    bad, ours = Life(lr=1e30, epochs=3), [Life(seed=1, epochs=3), Life("sskt", seed=2, epochs=3)]
    error, *ended = run_together(bad, *ours)
    assert isinstance(error, DivergedError)
    assert "no longer finite in epoch 1" in str(error)
    assert error.last is None
    assert bad.memory.states == []
    theirs = [Life(seed=1, epochs=3), Life("sskt", seed=2, epochs=3)]
    for one, expected in zip(ended, run_together(*theirs), strict=True):
        nearly(one.history, expected.history, relative=1e-6)


def test_ends_of_different_lengths_leave_a_smaller_stack(monkeypatch):
    sizes, step = [], Stack.step
    monkeypatch.setattr(Stack, "step", lambda self, batches: sizes.append(len(batches)) or step(self, batches))
    lives = [Life(epochs=epochs, seed=epochs) for epochs in (1, 3, 2)]
    ends = list(together([life.training() for life in lives], device=CPU))
    assert [life.settings.epochs for life, _ in ends] == [1, 2, 3]
    assert sizes == [3] * STEPS + [2] * STEPS, "the last one is alone"
    theirs = [Life(epochs=epochs, seed=epochs) for epochs in (1, 3, 2)]
    for life, expected in zip(lives, run_alone(*theirs), strict=True):
        nearly(dict(ends)[life].history, expected.history)


@pytest.mark.parametrize(("first", "second"), [(run_alone, run_together), (run_together, run_alone)])
@pytest.mark.parametrize("steps", [2, 5])
def test_one_that_left_in_mid_epoch_goes_on_the_other_way(first, second, steps):
    lives, whole = ([Life(**one) for one in THREE] for _ in range(2))
    errors = first(*lives, leave_after=steps)
    assert {str(error) for error in errors} == {f"after {steps // STEPS} epochs and {steps % STEPS} of {STEPS} steps"}
    for life, ended, expected in zip(lives, second(*lives), run_alone(*whole), strict=True):
        assert life.memory.states[-1]["epoch"] == 2
        nearly(ended.history, expected.history)
    for life, other in zip(lives, whole, strict=True):
        nearly(timeless(life.memory.states[-1]), timeless(other.memory.states[-1]), relative=1e-4)


def test_they_may_be_at_different_steps_and_join_in_mid_epoch():
    early, late, whole = Life(), Life(seed=1), [Life(), Life(seed=1)]
    run_alone(early, leave_after=3)
    for ended, expected in zip(run_together(early, late), run_alone(*whole), strict=True):
        nearly(ended.history, expected.history)


def test_statistics_of_batches_are_each_ones_own():
    lives = [Life(seed=seed, epochs=1) for seed in (0, 1)]
    run_together(*lives)
    one, other = (life.memory.states[-1]["method"]["target"] for life in lives)
    means = "network.stage1.1.running_mean"
    assert not torch.allclose(one[means], other[means])
    assert one["network.stage1.1.num_batches_tracked"] == other["network.stage1.1.num_batches_tracked"] == STEPS


def test_a_saved_state_holds_nothing_of_the_others(tmp_path):
    sizes = []
    for run in (run_alone, run_together):
        lives = [Life(seed=seed, epochs=1) for seed in range(4)]
        run(*lives)
        tensors = lives[0].memory.states[-1]["method"]["target"].values()
        sizes.append(sum(tensor.untyped_storage().nbytes() for tensor in tensors))
    assert sizes[0] == sizes[1]


def test_random_numbers_are_each_ones_own():
    """A method may draw some in its first steps; whoever else is seeded in the process, they are those drawn alone."""

    def drawing(life):
        steps, drawn = life.training(), []
        parts = None
        while True:
            try:
                asked = steps.send(parts)
            except StopIteration:
                return life.seed, drawn
            drawn.append(torch.rand(()).item())
            parts = yield asked

    both = dict(together([drawing(Life(seed=seed)) for seed in (0, 1)], device=CPU))
    assert both == dict(alone(drawing(Life(seed=seed))) for seed in (0, 1))
    assert not set(both[0]) & set(both[1])


@pytest.mark.parametrize("error", [MemoryError("none left"), torch.OutOfMemoryError("CUDA out of memory")])
def test_want_of_memory_is_told_to_each(monkeypatch, error):
    def starve(self, batches):
        raise error

    monkeypatch.setattr(Stack, "step", starve)

    def lane():
        try:
            return (yield from Life().training())
        except (MemoryError, RuntimeError) as told:
            return str(told)

    assert list(together([lane(), lane()], device=CPU)) == [str(error)] * 2


def test_an_error_that_nobody_expected_closes_all():
    closed = []

    def lane(*, bad: bool):
        try:
            yield from Life().training()
        finally:
            closed.append(bad)

    def failing():
        steps = lane(bad=True)
        yield next(steps)
        steps.close()
        raise KeyError("a mistake of ours")

    with pytest.raises(KeyError, match="a mistake of ours"):
        list(together([lane(bad=False), failing()], device=CPU))
    assert sorted(closed) == [False, True]


def test_what_cannot_be_stacked_is_said():
    said = {name: why_not(method) for name, method in METHODS.items()}
    assert [name for name, reason in said.items() if reason == "it trains several networks"] == [
        "dml",
        "dogo",
        "alignahead",
    ]
    assert {"sskd", "ega", "ema", "maxl"} == {name for name, why in said.items() if why and "its own way" in why}
    assert {"finetune", "probe"} == {name for name, why in said.items() if why and "source's own" in why}
    assert all(said[name] is None for name in ("scratch", "sskt", "kd", "crd", "at"))
    assert why_not(get_method("scratch")) is None


def looking(*, classes: int) -> nn.Module:
    """A target whose course depends on its numbers."""

    class Looking(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(SIZE * SIZE, classes)

        def forward(self, x):
            return self.fc(x.flatten(1)) * (1 if x.sum() > 0 else 2)

    return Looking()


def idle(*, classes: int) -> nn.Module:
    """A target with weights that do nothing."""
    network = nn.Sequential(nn.Flatten(), nn.Linear(SIZE * SIZE, classes))
    network.register_parameter("idle", nn.Parameter(torch.zeros(3)))
    return network


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        (TARGET, None),
        (TargetSettings(architecture="resnet20"), None),
        (FORGETFUL, "random"),
        (TargetSettings(architecture="tests.sskt.test_fused:looking"), "data-dependent"),
        (TargetSettings(architecture="tests.sskt.test_fused:idle"), "some of its weights take no part in its logits"),
    ],
)
def test_a_network_is_tried(target, reason):
    network = build_target(target, classes=CLASSES, image=IMAGE)
    before = copy.deepcopy(network.state_dict())
    said = why_not_network(network, torch.zeros(2, 1, SIZE, SIZE, dtype=torch.uint8))
    assert said is None if reason is None else reason in said
    assert said is None or "\n" not in said
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_frozen_parts_stay_as_they_are(tmp_path):
    target = learning.frozen_target(tmp_path)
    ours, theirs = ([Life(seed=seed, target=target) for seed in (0, 1)] for _ in range(2))
    for ended, expected in zip(run_together(*ours), run_alone(*theirs), strict=True):
        nearly(ended.history, expected.history)
    states = [life.memory.states[-1]["method"]["target"] for life in (*ours, *theirs)]
    assert all(torch.equal(state["network.stage1.0.weight"], states[0]["network.stage1.0.weight"]) for state in states)
