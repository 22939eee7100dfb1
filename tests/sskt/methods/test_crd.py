import io

import numpy as np
import pytest
import torch

from sskt.errors import InputError, UnknownNameError
from sskt.methods.crd import CRDOptions
from tests.sskt.learning import POOL, image_set, method, served, source, training
from tests.sskt.methods.test_base import run
from tests.sskt.methods.test_ega import slow_linear
from tests.sskt.methods.test_embed import slow_primary, wide
from tests.sskt.methods.test_seed import weights
from tests.sskt.test_bank_losses import slow_contrast


def unit(rows):
    return rows / np.sqrt((rows**2).sum(axis=1, keepdims=True))


def slow_usable(ids, others):
    """Another image, and not one whose class is known to be the same; every fourth label is hidden."""
    labels = image_set().labels.tolist()
    return np.array([[i != j and not (labels[i] == labels[j] and labels[i] >= 0) for j in others] for i in ids])


@pytest.mark.parametrize("loss", ["infonce", "nce"])
@pytest.mark.parametrize("learn_from", ["labelled", "all"])
def test_the_loss_is_the_equation_at_every_step(loss, learn_from):
    sources = [source(), wide()]
    chosen = {"loss": loss, "learn_from": learn_from, "negatives": 13, "width": 5, "temperature": 0.3}
    model = method("crd", *sources, weight=0.7, **chosen)
    feed = served(model, *sources)
    model.train(mode=True)
    for step in range(2):
        batch = feed.batch(step)
        assert (batch.labels < 0).any() == (learn_from == "all")
        primary, heads = slow_primary(model, batch)
        others = model.bank.ids[model.drawn()]
        usable = slow_usable(batch.ids.tolist(), others.tolist())
        assert usable.any(axis=1).all()
        assert not usable.all()
        expected = {"primary": primary}
        for one in sources:
            layer = model.projections.layers[one.name]
            own = batch.outputs[one.name]["embedding"].double().numpy()
            bank = feed.pool().ask(one.name, others)["embedding"].double().numpy()
            own, negatives = (slow_linear(layer, unit(rows)) for rows in (own, bank))
            distance = slow_contrast(loss, heads[one.name], own, negatives, usable, 0.3)
            expected[f"contrast/{one.name}"] = 0.7 * distance
        parts = model.step(batch)
        assert parts.pop("loss").item() == pytest.approx(sum(expected.values()), rel=1e-4)
        assert {name: part.item() for name, part in parts.items()} == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("loss", ["infonce", "nce"])
def test_weight_zero_is_scratch_bit_for_bit(loss):
    plain, _ = run("scratch", steps=8)
    contrasted, parts = run("crd", source(), wide(), steps=8, weight=0.0, loss=loss, learn_from="all")
    assert parts[0]["contrast/wise"] == 0
    for name, value in plain.export().state_dict().items():
        assert torch.equal(value, contrasted.export().state_dict()[name]), name


def test_a_source_changes_what_is_learnt_and_so_do_loss_and_pool():
    plain, _ = run("scratch")
    others = [run("crd", source(), **options)[0] for options in ({}, {"loss": "nce"}, {"learn_from": "all"})]
    seen = [weights(model) for model in (plain, *others)]
    assert not any(torch.equal(a, b) for number, a in enumerate(seen) for b in seen[:number])


@pytest.mark.parametrize("loss", ["infonce", "nce"])
def test_images_learn_to_find_their_own_source_rows(loss):
    settings = training(epochs=20)
    model, parts = run("crd", source(), wide(), steps=80, settings=settings, loss=loss, negatives=64)
    for name in ("contrast/wise", "contrast/wiser"):
        assert sum(part[name] for part in parts[-4:]) < 0.8 * sum(part[name] for part in parts[:4])
    start = method("crd", source(), wide()).projections
    for left, right in zip(start.parameters(), model.projections.parameters(), strict=True):
        assert not torch.equal(left, right)


def test_the_negatives_are_a_function_of_the_step():
    model, other = (method("crd", source(), negatives=50) for _ in range(2))
    first = model.drawn()
    assert torch.equal(first, other.drawn())
    assert 0 <= first.min() <= first.max() < POOL
    model.train(mode=True)
    model.step(served(model, source()).batch(0))
    assert not torch.equal(first, model.drawn())
    other.load_state_dict(model.state_dict())
    assert torch.equal(model.drawn(), other.drawn())


def test_a_checkpoint_goes_on_exactly_with_a_part_of_the_pool_as_bank():
    options = {"bank": 9, "negatives": 20, "seed": 4}
    whole, half, resumed = (method("crd", source(), **options) for _ in range(3))
    feed = served(whole, source())
    for model, steps in ((whole, range(5)), (half, range(3))):
        model.train(mode=True)
        for step in steps:
            model.step(feed.batch(step))
    file = io.BytesIO()
    torch.save(half.state_dict(), file)
    file.seek(0)
    resumed.load_state_dict(torch.load(file, weights_only=True))
    resumed.train(mode=True)
    for step in (3, 4):
        resumed.step(feed.batch(step))
    assert torch.equal(weights(whole), weights(resumed))
    for left, right in zip(whole.projections.parameters(), resumed.projections.parameters(), strict=True):
        assert torch.equal(left, right)


def test_the_bank_is_not_saved():
    model = method("crd", source())
    assert set(model.state_dict()) == {"target", "heads", "source_projections", "optimizer", "schedule"}


def test_the_pool_is_asked_for_only_where_it_counts():
    model = method("crd", source())
    assert model.needs(CRDOptions()).outputs == ("embedding",)
    assert not model.needs(CRDOptions()).pool
    assert model.needs(CRDOptions(learn_from="all")).pool
    assert not model.needs(CRDOptions(learn_from="all", weight=0.0)).pool


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"weight": -0.1}, r"weight is -0\.1; it has to be at least 0"),
        ({"weight": float("nan")}, "weight is nan; it has to be at least 0"),
        ({"temperature": 0.0}, r"temperature is 0\.0; it has to be above 0"),
        ({"negatives": 0}, "negatives is 0; it has to be at least 1"),
        ({"bank": 0}, "bank is 0; it has to be at least 1"),
        ({"width": 0}, "width is 0; it has to be at least 1"),
    ],
)
def test_options_out_of_range_are_refused(options, says):
    with pytest.raises(InputError, match=says):
        CRDOptions(**options)


def test_unknown_names_and_missing_sources_are_refused():
    with pytest.raises(UnknownNameError, match="loss 'nse' is unknown; did you mean 'nce'"):
        CRDOptions(loss="nse")
    with pytest.raises(InputError, match=r"sources are \[\]; this method needs at least 1"):
        method("crd")
