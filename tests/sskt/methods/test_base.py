import copy

import pytest
import torch

from sskt.errors import InputError, UnknownNameError
from sskt.methods import METHODS, get_method
from sskt.methods.base import labelled_cross_entropy, require_sources
from tests.sskt.learning import facts, feed, method, source, training


def run(name, *sources, steps=6, settings=None, **options):
    settings = settings or training()
    model = method(name, *sources, settings=settings, **options)
    served = feed(settings, sources=sources, pool=model.needs(model.options).pool)
    model.train(mode=True)
    return model, [model.step(served.batch(step)) for step in range(steps)]


def is_part(key: str) -> bool:
    return key != "loss" and not key.startswith("watch/")


def needed(name: str) -> list:
    """The sources a method can be run with here."""
    return {"scratch": [], "maxl": [], "dml": [], "ema": [], "kd": [source(classes=3)]}.get(name, [source()])


def test_hidden_labels_do_not_count():
    logits = torch.randn(4, 3)
    labels = torch.tensor([1, -1, 2, -1])
    expected = torch.nn.functional.cross_entropy(logits[[0, 2]], labels[[0, 2]])
    assert torch.equal(labelled_cross_entropy(logits, labels), expected)


@pytest.mark.parametrize("name", METHODS)
def test_a_method_is_described_and_learns(name):
    assert (METHODS[name].__doc__ or "").strip()
    _, parts = run(name, *needed(name), steps=24)
    assert sum(part["loss"] for part in parts[-4:]) < sum(part["loss"] for part in parts[:4])
    for part in parts:
        others = sum(value.item() for key, value in part.items() if is_part(key))
        assert part["loss"].item() == pytest.approx(others, abs=1e-5)


@pytest.mark.parametrize("name", METHODS)
def test_a_saved_method_goes_on_exactly(name):
    sources = needed(name)
    model, _ = run(name, *sources, steps=3)
    other = method(name, *sources, seed=9)
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    other.train(mode=True)
    served = feed(training(), sources=sources)
    for step in (3, 4):
        mine, its = model.step(served.batch(step)), other.step(served.batch(step))
        assert torch.equal(mine["loss"], its["loss"])
    for left, right in zip(model.export().parameters(), other.export().parameters(), strict=True):
        assert torch.equal(left, right)


@pytest.mark.parametrize("name", [name for name in METHODS if name not in ("scratch", "finetune")])
def test_training_leaves_the_sources_as_they_were(name):
    sources = needed(name)
    before = [{key: value.clone() for key, value in one.network.state_dict().items()} for one in sources]
    run(name, *sources)
    for one, old in zip(sources, before, strict=True):
        assert not one.network.training
        for key, value in one.network.state_dict().items():
            assert torch.equal(value, old[key]), key


@pytest.mark.parametrize("name", METHODS)
def test_the_exported_target_is_what_predicts(name):
    model, _ = run(name, *needed(name))
    model.train(mode=False)
    images = torch.randint(0, 256, (4, 1, 8, 8), dtype=torch.uint8)
    exported = model.export()
    assert torch.equal(exported(images).logits, model.predict(images))
    assert torch.equal(exported.network(exported.preprocess(images)), model.predict(images))
    assert not [key for key in exported.network.state_dict() if "head" in key]


def test_the_number_of_sources_is_checked():
    with pytest.raises(InputError, match=r"sources are \[\]; this method needs at least 1"):
        require_sources(facts())
    with pytest.raises(InputError, match=r"sources are \['a', 'bb'\]; this method needs exactly 1"):
        require_sources(facts(source("a"), source("bb")), least=1, most=1)
    with pytest.raises(InputError, match="not used by this method"):
        method("scratch", source())


def test_an_unknown_method_lists_the_known_ones():
    with pytest.raises(UnknownNameError, match="method 'sskd' is unknown; did you mean 'sskt'"):
        get_method("sskd")
