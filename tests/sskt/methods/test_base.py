import copy

import pytest
import torch

from sskt.errors import InputError, UnknownNameError
from sskt.feeds import Feed
from sskt.losses import labelled_cross_entropy
from sskt.methods import METHODS, get_method
from sskt.methods.base import require_sources
from sskt.networks import TappedNetwork
from tests.sskt.learning import facts, frozen_target, method, served, source, training


def run(name, *sources, steps=6, settings=None, **options):
    settings = settings or training()
    model = method(name, *sources, settings=settings, **options)
    batches = served(model, *sources, settings=settings)
    model.train(mode=True)
    return model, [model.step(batches.batch(step)) for step in range(steps)]


def is_part(key: str) -> bool:
    return key != "loss" and not key.startswith("watch/")


def needed(name: str) -> list:
    """The sources a method can be run with here."""
    return {
        "scratch": [],
        "maxl": [],
        "dml": [],
        "dogo": [],
        "alignahead": [],
        "ema": [],
        "kd": [source(classes=3)],
        "sskd": [source(classes=3)],
    }.get(name, [source()])


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
    batches = served(model, *sources)
    for step in (3, 4):
        mine, its = model.step(batches.batch(step)), other.step(batches.batch(step))
        assert torch.equal(mine["loss"], its["loss"])
    for left, right in zip(model.export().parameters(), other.export().parameters(), strict=True):
        assert torch.equal(left, right)


OTHER_RATES = {"maxl": {"label_lr": 0.5, "label_weight_decay": 0.3}, "ega": {"source_lr": 0.7}}
"""Options of methods with optimisers of their own settings."""


def hyperparameters(model) -> dict:
    """Of every optimiser and schedule, whatever it has beside what was learnt."""
    found = {}
    for name, part in model.optimizers().items():
        state = part.state_dict()
        found[name] = state["param_groups"] if "param_groups" in state else state | {"lr_lambdas": None}
    return found


@pytest.mark.parametrize("name", METHODS)
def test_a_state_of_other_hyperparameters_leaves_those_of_the_method(name):
    """As a method has them that was trained with the new ones from the start; momentum is that of the state."""
    sources = needed(name)
    changed = training(lr=0.011, weight_decay=0.02, momentum=0.5, nesterov=True)
    donor, _ = run(name, *sources, steps=3)
    mirror, _ = run(name, *sources, steps=3, settings=changed, **OTHER_RATES.get(name, {}))
    other = method(name, *sources, settings=changed, **OTHER_RATES.get(name, {}))
    other.load_state_dict(copy.deepcopy(donor.state_dict()))
    assert hyperparameters(other) == hyperparameters(mirror) != hyperparameters(donor)
    for part, its in zip(other.optimizers().values(), donor.optimizers().values(), strict=True):
        if isinstance(part, torch.optim.Optimizer):
            torch.testing.assert_close(part.state_dict()["state"], its.state_dict()["state"], rtol=0, atol=0)
    other.train(mode=True)
    batches = served(other, *sources, settings=changed)
    for model in (mirror, other):
        model.step(batches.batch(3))
    assert hyperparameters(other) == hyperparameters(mirror)


@pytest.mark.parametrize("name", METHODS)
def test_mixed_images_are_learnt_from_or_refused_or_not_asked_for(name):
    kind, sources = METHODS[name], needed(name)
    options = {"learn_from": "all"} if "learn_from" in kind.Options.__dataclass_fields__ else {}
    needs, mixed = kind.needs(kind.Options(**options)), training(mix="cutmix")
    if needs.pool and not kind.mixable:
        with pytest.raises(InputError, match=r"training\.mix is 'cutmix'; it has to be 'none'"):
            method(name, *sources, settings=mixed, **options)
        return
    assert not (kind.mixable and (needs.pair or needs.turned or needs.graph or needs.near))
    with_mix, without = (run(name, *sources, settings=one, **options)[1][-1] for one in (mixed, training()))
    assert all(part.isfinite() for part in with_mix.values())
    assert torch.equal(with_mix["loss"], without["loss"]) == (not needs.pool)


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


@pytest.mark.parametrize("name", METHODS)
def test_frozen_parts_stay_as_loaded_to_the_bit(name, tmp_path):
    """In all networks of a method that are built like the target, and whatever weight decay would do to them."""
    target = frozen_target(tmp_path)
    model, _ = run(name, *needed(name), steps=4, settings=training(weight_decay=0.1), target=target)
    start = source().network.network.state_dict()
    parts = [part for module in model.modules().values() for part in module.modules()]
    networks = [part for part in parts if isinstance(part, TappedNetwork)]
    assert model.export() in networks
    for network in networks:
        for key, value in network.network.state_dict().items():
            if not key.startswith("fc."):
                stays = key.startswith(("stage1.", "stage2.1.")) or name == "probe"
                assert torch.equal(value, start[key]) == stays, key


def test_the_number_of_sources_is_checked():
    with pytest.raises(InputError, match=r"sources are \[\]; this method needs at least 1"):
        require_sources(facts())
    with pytest.raises(InputError, match=r"sources are \['a', 'bb'\]; this method needs exactly 1"):
        require_sources(facts(source("a"), source("bb")), least=1, most=1)
    with pytest.raises(InputError, match="not used by this method"):
        method("scratch", source())


def test_an_unknown_method_lists_the_known_ones():
    with pytest.raises(UnknownNameError, match="method 'sskt2' is unknown; did you mean 'sskt'"):
        get_method("sskt2")


@pytest.mark.parametrize("name", METHODS)
def test_a_method_that_asks_about_the_whole_pool_says_so(name, monkeypatch):
    """A feed whose images are not all in memory refuses those."""
    asked, ask = [], Feed.ask

    def noted(self, *arguments, **named):
        asked.append(arguments)
        return ask(self, *arguments, **named)

    monkeypatch.setattr(Feed, "ask", noted)
    model, _ = run(name, *needed(name), steps=2)
    assert bool(asked) == model.needs(model.options).asks


@pytest.mark.parametrize(
    ("name", "options", "read"),
    (("scratch", {}, False), ("sskt", {}, False), ("sskt", {"heads": "transfer"}, True), ("at", {}, True)),
)
def test_taps_are_copied_where_heads_read_them_and_nowhere_else(name, options, read):
    model = method(name, *([] if name == "scratch" else [source()]), **options)
    assert model.student.with_taps is read
