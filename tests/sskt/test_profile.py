import time

import pytest
import torch

from sskt.loop import fit
from sskt.profile import OTHER_PARTS, STEP_PARTS, Profile, profile_lines
from tests.sskt.learning import feed, method, source, training
from tests.sskt.test_loop import CPU, Memory

STEPS = 4
"""Of an epoch."""
DELAY = 0.1


def trained(name: str, *, wanted: bool = True, slow: tuple[str, ...] = ()):
    """Train two epochs; what is named is made slow by DELAY a call."""
    settings, wise = training(epochs=2), source()
    sources = [] if name == "scratch" else [wise]
    model, served, memory = method(name, *sources, settings=settings), feed(settings, sources=sources), Memory()
    if "source" in slow:
        wise.outputs = lengthened(wise.outputs)
    if "input" in slow:
        served.gallery.__dict__["show"] = lengthened(served.gallery.show)
    if "optimizer" in slow:
        model.optimizer.register_step_pre_hook(lambda *_: time.sleep(DELAY))
    if "save" in slow:
        memory.save = lengthened(memory.save)
    profile, context = Profile(CPU, wanted=wanted), memory.context()
    began = time.perf_counter()
    with profile.taking(model, served):
        progress = fit(model, served, epochs=2, seed=0, context=profile.told(context))
    return profile, progress, model, time.perf_counter() - began


def lengthened(call):
    def run(*arguments, **named):
        time.sleep(DELAY)
        return call(*arguments, **named)

    return run


def test_the_parts_add_up_to_the_whole():
    profile, _, _, whole = trained("sskt")
    kept = profile.kept()["profile"]
    assert kept["steps"] == 2 * STEPS
    assert set(kept["seconds"]) == {*STEP_PARTS, *OTHER_PARTS}
    assert all(seconds > 0 for seconds in kept["seconds"].values())
    assert sum(kept["seconds"].values()) <= whole < sum(kept["seconds"].values()) + kept["bare"] * 60 + 0.5
    assert 0 < kept["bare"] < whole


@pytest.mark.parametrize(
    ("part", "around", "calls"), (("source", "input", 8), ("optimizer", "forward", 8), ("save", "rest", 2))
)
def test_what_takes_longer_counts_for_its_own_part_and_not_for_what_is_around_it(part, around, calls):
    slow, longer = trained("sskt", slow=(part,))[0].seconds, DELAY * calls
    assert slow[part] >= longer
    assert slow[around] < longer


def test_it_changes_nothing_and_leaves_nothing():
    gradient = torch.autograd.backward
    _, profiled, model, _ = trained("sskt")
    assert torch.autograd.backward is gradient
    assert "step" not in vars(model)
    _, plain, other, _ = trained("sskt", wanted=False)
    assert [*profiled.history] == [*plain.history]
    for name, value in model.export().state_dict().items():
        assert torch.equal(value, other.export().state_dict()[name]), name


def test_one_that_is_not_wanted_is_not_taken():
    profile, *_ = trained("scratch", wanted=False)
    assert profile.kept() == {}
    assert profile.steps == 0
    assert not any(profile.seconds.values())


def test_what_fails_ends_it_too():
    settings = training()
    model, served, profile = method("scratch", settings=settings), feed(settings), Profile(CPU)
    gradient = torch.autograd.backward
    with pytest.raises(KeyError), profile.taking(model, served):
        raise KeyError
    assert torch.autograd.backward is gradient
    assert "batch" not in vars(served)


def test_the_table_says_each_part_and_what_is_left_of_the_bound():
    seconds = dict.fromkeys([*STEP_PARTS, *OTHER_PARTS], 0.0) | {"input": 0.1, "forward": 0.3, "save": 2.0}
    lines = profile_lines({"seconds": seconds, "steps": 100, "bare": 0.003})
    cells = {line[:16].strip(): line[16:].split()[:2] for line in lines[1:]}
    assert cells["input"] == ["1.000", "25.0"]
    assert cells["forward"] == ["3.000", "75.0"]
    assert cells["all of it"] == ["4.000", "100.0"]
    assert cells["bare step"] == ["3.000", "75.0"]
    assert cells["beside: save"][0] == "2000"
    assert all(len(line) <= 120 for line in lines)
