import copy

import numpy as np
import pytest
import torch

from sskt.errors import InputError
from sskt.map_losses import layer_norm
from sskt.maps import split_attention, split_features
from sskt.methods.dreamteacher import DreamTeacherOptions
from sskt.networks.tapped import Features
from tests.sskt.learning import IMAGE, feed, method, served, source, training
from tests.sskt.methods.test_at import features_of, tapped
from tests.sskt.methods.test_base import run
from tests.sskt.methods.test_embed import wide
from tests.sskt.test_map_losses import slow_attention, slow_features
from tests.sskt.test_regressors import slow_regressor

ATTENTION_ONLY = {"features": False}
FEATURES_ONLY = {"attention_weight": 0.0}


@pytest.mark.parametrize("options", [{}, ATTENTION_ONLY, FEATURES_ONLY, {"attention_weight": 2.5, "learn_from": "all"}])
def test_the_loss_is_the_equation(options):
    """Over three sources: like the target, wider, and with a single tap, larger than the target's last."""
    sources = [source(), wide(), tapped("stage1")]
    model = method("dreamteacher", *sources, weight=0.7, width=8, **options)
    needs = model.needs(model.options)
    batch = feed(training(), sources=sources, pool=needs.pool).batch(0)
    model.train(mode=True)
    primary, taps = features_of(model, batch)
    expected = {"primary": primary}
    for one in sources:
        outputs = {name: values.double() for name, values in batch.outputs[one.name].items()}
        shapes = one.map_shapes(IMAGE)
        levels = slow_regressor(model.heads[one.name], taps[-len(shapes) :], shapes)
        looks, sees = split_attention(outputs["attention"], shapes), split_features(outputs["features"], shapes)
        features = [slow_features(level, its.numpy()) for level, its in zip(levels, sees, strict=True)]
        attention = [slow_attention("distance", level, its.numpy()) for level, its in zip(levels, looks, strict=True)]
        if options.get("features", True):
            expected[f"features/{one.name}"] = 0.7 * np.mean(features)
        if options.get("attention_weight", 10) > 0:
            expected[f"attention/{one.name}"] = 0.7 * options.get("attention_weight", 10) * np.mean(attention)
    parts = model.step(batch)
    assert parts.pop("loss").item() == pytest.approx(sum(expected.values()), rel=1e-3)
    assert {name: part.item() for name, part in parts.items()} == pytest.approx(expected, rel=1e-3)


def test_only_what_is_matched_is_asked_for():
    """The attention-only form does without the large cache."""
    for options, outputs in (
        ({}, {"features", "attention"}),
        (ATTENTION_ONLY, {"attention"}),
        (FEATURES_ONLY, {"features"}),
    ):
        model = method("dreamteacher", source(), **options)
        assert set(model.needs(model.options).outputs) == outputs
        batch = feed(training(), sources=[source()]).batch(0)
        for unasked in {"features", "attention", "logits", "embedding"} - outputs:
            del batch.outputs["wise"][unasked]
        assert model.step(batch)["loss"].isfinite()
    needs = model.needs
    assert not needs(DreamTeacherOptions()).pool
    assert needs(DreamTeacherOptions(learn_from="all")).pool
    assert not needs(DreamTeacherOptions(learn_from="all", weight=0.0)).pool


@pytest.mark.parametrize("options", [{}, ATTENTION_ONLY])
def test_weight_zero_is_scratch_bit_for_bit(options):
    plain, _ = run("scratch", steps=8)
    taught, parts = run("dreamteacher", source(), wide(), steps=8, weight=0.0, learn_from="all", **options)
    assert parts[0]["attention/wise"] == 0
    for name, value in plain.export().state_dict().items():
        assert torch.equal(value, taught.export().state_dict()[name]), name


@pytest.mark.parametrize("options", [{}, ATTENTION_ONLY, FEATURES_ONLY])
def test_a_source_changes_what_is_learnt_and_the_pool_too(options):
    models = [
        run("scratch"),
        run("dreamteacher", source(), **options),
        run("dreamteacher", source(), learn_from="all", **options),
    ]
    weights = [torch.cat([value.flatten() for value in one.export().parameters()]) for one, _ in models]
    assert not torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2])


@pytest.mark.parametrize("options", [{}, ATTENTION_ONLY, FEATURES_ONLY])
def test_the_maps_come_nearer(options):
    settings = training(epochs=10)
    model, parts = run("dreamteacher", source(), steps=50, settings=settings, **options)
    _, alone = run("dreamteacher", source(), steps=50, settings=settings, weight=1e-9, **options)
    for name in model.options.weights:
        learnt, left = (sum(part[f"{name}/wise"].item() for part in some[-5:]) for some in (parts, alone))
        assert learnt < 0.85 * left / 1e-9, name


def test_a_perfect_copy_has_no_attention_loss_and_normalised_features_none_either():
    one = source()
    model = method("dreamteacher", one)
    batch = feed(training(), sources=[one]).batch(0)
    with torch.no_grad():
        logits, taps = model.student(batch.images)[0], one.network(batch.images).taps
    assert model.losses(batch, logits, {"wise": taps})["attention/wise"].item() == pytest.approx(0, abs=1e-5)
    assert model.losses(batch, logits, {"wise": taps})["features/wise"].item() > 0.1
    normalised = tuple(layer_norm(one) for one in split_features(batch.outputs["wise"]["features"], model_maps(model)))
    assert model.losses(batch, logits, {"wise": normalised})["features/wise"].item() == pytest.approx(0, abs=1e-6)


def model_maps(model):
    return model.task.facts.sources["wise"].maps


def test_a_scale_of_the_sources_maps_changes_nothing():
    model = method("dreamteacher", source())
    batch = feed(training(), sources=[source()]).batch(0)
    scaled = copy.deepcopy(batch)
    scaled.outputs["wise"]["attention"].mul_(0.37)
    scaled.outputs["wise"]["features"].mul_(53.0)
    logits, heads = model.student(batch.images)
    mine, its = (model.losses(each, logits, heads) for each in (batch, scaled))
    for part, value in mine.items():
        assert value.item() == pytest.approx(its[part].item(), rel=1e-4), part


def test_the_exported_target_has_no_pyramid():
    model = method("dreamteacher", source())
    plain = method("scratch")
    assert set(model.export().state_dict()) == set(plain.export().state_dict())
    assert set(model.modules()) == {"target", "heads"}
    assert sum(parameter.numel() for parameter in model.modules()["heads"].parameters()) > 0


@pytest.mark.parametrize("options", [{}, ATTENTION_ONLY])
def test_a_saved_training_goes_on_exactly(options):
    sources, options = [source(), wide()], options | {"learn_from": "all", "width": 8}
    model, _ = run("dreamteacher", *sources, steps=3, **options)
    other = method("dreamteacher", *sources, seed=9, **options)
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    other.train(mode=True)
    batches = served(model, *sources)
    for step in (3, 4, 5):
        assert model.step(batches.batch(step)) == other.step(batches.batch(step))


def test_the_pyramid_reads_the_targets_taps_and_starts_from_the_trials_seed():
    models = [method("dreamteacher", source(), seed=seed, width=8) for seed in (0, 0, 1)]
    taps = tuple(torch.randn(2, *tap) for tap in models[0].task.facts.taps)
    found = [model.heads["wise"](Features(taps, taps[0], taps[0])) for model in models]
    assert [one.shape[1:] for one in found[0]] == [torch.Size(shape) for shape in model_maps(models[0])]
    assert torch.equal(found[0][0], found[1][0])
    assert not torch.equal(found[1][0], found[2][0])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"weight": -0.1}, "weight is -0.1; it has to be at least 0"),
        ({"weight": float("nan")}, "weight is nan; it has to be at least 0"),
        ({"attention_weight": -1.0}, "attention_weight is -1.0; it has to be at least 0"),
        ({"width": 7}, "width is 7; it has to be at least 8"),
        (
            {"features": False, "attention_weight": 0.0},
            "attention_weight is 0.0; with features: false it has to be above 0, or nothing is matched",
        ),
    ],
)
def test_options_out_of_range_are_refused(options, says):
    with pytest.raises(InputError, match=says):
        DreamTeacherOptions(**options)


def test_the_default_weights():
    options = DreamTeacherOptions()
    assert options.weights == {"features": 1.0, "attention": 10.0}
    assert DreamTeacherOptions(weight=3.0, attention_weight=2.0).weights == {"features": 3.0, "attention": 6.0}
