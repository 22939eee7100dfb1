import numpy as np
import pytest
import torch

from sskt.errors import InputError, UnknownNameError
from sskt.methods.embed import EmbedOptions
from sskt.networks import build_target
from sskt.settings import TargetSettings
from sskt.sources import Source
from tests.sskt.learning import IMAGE, feed, method, source, training
from tests.sskt.methods.test_base import run
from tests.sskt.methods.test_kd import slow_softmax
from tests.sskt.test_embedding_losses import slow_distance, slow_score


def wide(name="wiser", *, classes=7):
    """A source with an embedding of another width than that of the others."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        settings = TargetSettings(architecture="small_cnn", options={"width": 6})
        return Source(name, build_target(settings, classes=classes, image=IMAGE))


def slow_primary(model, batch):
    """Cross-entropy over the labelled rows, and the heads, in float64."""
    with torch.no_grad():
        logits, heads = model.student(batch.images)
    rows = [
        (row, label) for row, label in zip(logits.double().numpy(), batch.labels.tolist(), strict=True) if label >= 0
    ]
    primary = -np.mean([np.log(slow_softmax(row)[label]) for row, label in rows])
    return primary, {name: head.double().numpy() for name, head in heads.items()}


@pytest.mark.parametrize("distance", ["l2", "cosine", "mse"])
@pytest.mark.parametrize("score_loss", ["kl", "mse"])
def test_the_loss_is_the_equation(distance, score_loss):
    sources = [source(), wide()]
    options = {"distance": distance, "weight": 0.7, "score_weight": 0.4, "score_loss": score_loss}
    model = method("embed", *sources, score_temperature=0.5, learn_from="all", **options)
    batch = feed(training(), sources=sources, pool=True).batch(0)
    assert (batch.labels < 0).any()
    model.train(mode=True)
    expected, heads = slow_primary(model, batch)
    for name, projected in heads.items():
        wanted = batch.outputs[name]["embedding"].double().numpy()
        assert projected.shape == wanted.shape
        expected += 0.7 * slow_distance(distance, projected, wanted)
        expected += 0.4 * slow_score(score_loss, projected, wanted, 0.5)
    parts = model.step(batch)
    assert parts["loss"].item() == pytest.approx(expected, rel=1e-4)
    names = {f"{part}/{name}" for part in ("embedding", "score") for name in ("wise", "wiser")}
    assert set(parts) == {"loss", "primary"} | names


def test_weight_zero_is_scratch_bit_for_bit():
    plain, _ = run("scratch", steps=8)
    matched, parts = run("embed", source(), wide(), steps=8, weight=0.0, learn_from="all")
    assert parts[0]["embedding/wise"] == 0
    for name, value in plain.export().state_dict().items():
        assert torch.equal(value, matched.export().state_dict()[name]), name


@pytest.mark.parametrize("options", [{"weight": 1.0}, {"weight": 0.0, "score_weight": 1.0}])
def test_a_source_changes_what_is_learnt_and_the_pool_too(options):
    plain, _ = run("scratch")
    taught, _ = run("embed", source(), **options)
    more, _ = run("embed", source(), learn_from="all", **options)
    weights = [torch.cat([value.flatten() for value in one.export().parameters()]) for one in (plain, taught, more)]
    assert not torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2])


def test_the_projected_embedding_comes_nearer():
    _, parts = run("embed", source(), steps=24, distance="cosine")
    assert parts[-1]["embedding/wise"] < 0.5 * parts[0]["embedding/wise"]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"weight": -0.1}, "weight is -0.1; it has to be at least 0"),
        ({"weight": float("nan")}, "weight is nan; it has to be at least 0"),
        ({"score_weight": -1.0}, "score_weight is -1.0; it has to be at least 0"),
        ({"score_temperature": 0.0}, "score_temperature is 0.0; it has to be above 0"),
    ],
)
def test_options_out_of_range_are_refused(options, says):
    with pytest.raises(InputError, match=says):
        EmbedOptions(**options)


def test_unknown_names_and_missing_sources_are_refused():
    with pytest.raises(UnknownNameError, match="distance 'l1' is unknown; known: cosine, l2, mse"):
        EmbedOptions(distance="l1")
    with pytest.raises(UnknownNameError, match="score_loss 'ce' is unknown"):
        EmbedOptions(score_loss="ce")
    with pytest.raises(InputError, match=r"sources are \[\]; this method needs at least 1"):
        method("embed")
