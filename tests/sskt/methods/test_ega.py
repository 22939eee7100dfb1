import copy

import pytest
import torch

from sskt.errors import InputError
from sskt.methods.ega import EGAOptions
from tests.sskt.learning import POOL, feed, method, source, training
from tests.sskt.methods.test_base import run
from tests.sskt.methods.test_embed import slow_primary, wide
from tests.sskt.methods.test_kd import slow_softmax
from tests.sskt.methods.test_smooth import first_views
from tests.sskt.test_embedding_losses import slow_graph
from tests.sskt.test_whitening import slow_whitening


def one_of(sources, name):
    return next(one for one in sources if one.name == name)


def slow_over_pool(centre, one, embedding):
    """Free of what all first views of the pool have in common."""
    pool = first_views(one)
    if centre == "whiten":
        return slow_whitening(pool, embedding)
    return embedding - pool.mean(axis=0) if centre == "pool" else embedding


def slow_linear(layer, rows):
    return rows @ layer.weight.detach().double().numpy().T + layer.bias.detach().double().numpy()


@pytest.mark.parametrize("reduction", ["frobenius", "mean_square"])
@pytest.mark.parametrize("centre", ["none", "batch", "pool", "whiten"])
@pytest.mark.parametrize("source_projection", [True, False])
def test_the_loss_is_the_equation(reduction, centre, source_projection):
    sources = [source(), wide()]
    options = {"reduction": reduction, "centre": centre, "source_projection": source_projection, "width": 11}
    model = method("ega", *sources, node_weight=0.7, edge_weight=0.3, learn_from="all", **options)
    batch = feed(training(), sources=sources, pool=True).batch(0)
    assert (batch.labels < 0).any()
    model.train(mode=True)
    expected, heads = slow_primary(model, batch)
    for name, projected in heads.items():
        wanted = slow_over_pool(centre, one_of(sources, name), batch.outputs[name]["embedding"].double().numpy())
        if source_projection:
            wanted = slow_linear(model.source_side.heads.projections[name], wanted)
            logits = slow_linear(model.source_side.heads.classifiers[name], wanted)
            labelled = [(row, label) for row, label in zip(logits, batch.labels.tolist(), strict=True) if label >= 0]
            expected -= sum(torch.tensor(slow_softmax(row))[label].log().item() for row, label in labelled) / len(
                labelled
            )
        assert projected.shape == wanted.shape
        if centre == "batch":
            projected, wanted = projected - projected.mean(axis=0), wanted - wanted.mean(axis=0)
        expected += 0.7 * slow_graph("node", reduction, projected, wanted)
        expected += 0.3 * slow_graph("edge", reduction, projected, wanted)
    parts = model.step(batch)
    assert parts["loss"].item() == pytest.approx(expected, rel=1e-4)
    kinds = ("node", "edge", "source") if source_projection else ("node", "edge")
    assert set(parts) == {"loss", "primary"} | {f"{kind}/{name}" for kind in kinds for name in ("wise", "wiser")}


@pytest.mark.parametrize("options", [{}, {"source_projection": False}, {"centre": "batch"}, {"centre": "whiten"}])
def test_weight_zero_is_scratch_bit_for_bit(options):
    plain, _ = run("scratch", steps=8)
    aligned, parts = run(
        "ega", source(), wide(), steps=8, node_weight=0.0, edge_weight=0.0, learn_from="all", **options
    )
    assert parts[0]["node/wise"] == parts[0]["edge/wise"] == 0
    for name, value in plain.export().state_dict().items():
        assert torch.equal(value, aligned.export().state_dict()[name]), name


@pytest.mark.parametrize("options", [{"node_weight": 0.0}, {"edge_weight": 0.0}])
def test_a_source_changes_what_is_learnt_and_the_pool_too(options):
    plain, _ = run("scratch")
    taught, _ = run("ega", source(), **options)
    more, _ = run("ega", source(), learn_from="all", **options)
    weights = [torch.cat([value.flatten() for value in one.export().parameters()]) for one in (plain, taught, more)]
    assert not torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2])


def test_the_source_head_learns_the_labels_and_nothing_from_the_alignment():
    weak, _ = run("ega", source(), node_weight=0.0, edge_weight=0.0)
    strong, parts = run("ega", source(), node_weight=5.0, edge_weight=5.0, steps=24, source_lr=0.1)
    assert parts[-1]["source/wise"] < parts[0]["source/wise"]
    strong, _ = run("ega", source(), node_weight=5.0, edge_weight=5.0)
    for left, right in zip(weak.source_side.heads.parameters(), strong.source_side.heads.parameters(), strict=True):
        assert torch.equal(left, right)


def test_the_source_heads_start_from_the_trials_seed():
    starts = [method("ega", source(), seed=seed).source_side.heads.projections["wise"].weight for seed in (0, 0, 1)]
    assert torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[1], starts[2])


def test_the_source_heads_rate_is_theirs_and_never_decays():
    model, _ = run("ega", source(), steps=8, source_lr=0.02)
    assert model.optimizer.param_groups[0]["lr"] < training().lr
    assert model.source_side.optimizer.param_groups[0]["lr"] == 0.02
    assert model.source_side.optimizer.param_groups[0]["momentum"] == training().momentum


def test_scale_and_shift_of_the_source_change_nothing_without_a_source_head():
    model = method("ega", source(), source_projection=False)
    batch = feed(training(), sources=[source()]).batch(0)
    moved = copy.deepcopy(batch)
    moved.outputs["wise"]["embedding"].mul_(3.0).add_(0.5)
    model.train(mode=True)
    logits, heads = model.student(batch.images)
    mine, its = (model.losses(one, logits, heads) for one in (batch, moved))
    for part, value in mine.items():
        assert value.item() == pytest.approx(its[part].item(), rel=1e-4), part


def test_a_perfect_copy_has_no_edge_loss():
    model = method("ega", source(), source_projection=False)
    batch = feed(training(), sources=[source()]).batch(0)
    logits, heads = model.student(batch.images)
    copied = model.losses(batch, logits, {"wise": batch.outputs["wise"]["embedding"]})
    assert copied["edge/wise"].item() == pytest.approx(0, abs=1e-5)
    assert copied["edge/wise"] <= model.losses(batch, logits, heads)["edge/wise"]


@pytest.mark.parametrize("centre", ["none", "batch", "pool", "whiten"])
def test_the_pool_is_asked_about_once_and_only_where_its_statistics_are_wanted(centre):
    one = source()
    model = method("ega", one, centre=centre)
    asked = POOL if centre in ("pool", "whiten") else 0
    assert one.passes == asked
    batch = feed(training(), sources=[one]).batch(0)
    model.step(batch)
    assert one.passes == asked + len(batch.ids)


def test_node_matching_knows_a_copy_of_the_source_once_it_is_whitened():
    """A rectified embedding is anisotropic: as cached, a copy of it looks worse than random networks."""
    batch = feed(training(), sources=[source()]).batch(0)
    embedding = batch.outputs["wise"]["embedding"]
    strangers = torch.randn(64, *embedding.shape, generator=torch.Generator().manual_seed(0))

    def nodes(centre):
        model = method("ega", source(), centre=centre, source_projection=False, node_weight=1.0)
        copied = model.over_pool.get("wise", lambda rows: rows)(embedding)
        first, *others = (
            model.losses(batch, torch.zeros(8, 3), {"wise": rows})["node/wise"].item() for rows in (copied, *strangers)
        )
        return first, sum(others) / len(others)

    for centre in ("none", "pool"):  # here one axis is nearly all there is, and centring leaves it
        copied, random = nodes(centre)
        assert copied > 1.3 * random
    copied, random = nodes("whiten")
    assert copied < 0.6 * random


@pytest.mark.parametrize(
    "options", [{"source_projection": True}, {"source_projection": False}, {"centre": "pool"}, {"centre": "whiten"}]
)
def test_a_saved_training_goes_on_exactly(options):
    sources, options = [source(), wide()], options | {"learn_from": "all"}
    model, _ = run("ega", *sources, steps=3, **options)
    other = method("ega", *sources, seed=9, **options)
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    other.train(mode=True)
    served = feed(training(), sources=sources, pool=True)
    for step in (3, 4, 5):
        mine, its = model.step(served.batch(step)), other.step(served.batch(step))
        assert mine == its


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"node_weight": -0.1}, "node_weight is -0.1; it has to be at least 0"),
        ({"edge_weight": float("nan")}, "edge_weight is nan; it has to be at least 0"),
        ({"source_lr": 0.0}, "source_lr is 0.0; it has to be above 0"),
        ({"width": 1}, "width is 1; it has to be at least 2"),
        ({"reduction": "mean"}, "reduction 'mean' is unknown; known: frobenius, mean_square"),
        ({"centre": "dataset"}, "centre 'dataset' is unknown; known: batch, none, pool, whiten"),
    ],
)
def test_options_out_of_range_are_refused(options, says):
    with pytest.raises(InputError, match=says):
        EGAOptions(**options)


def test_missing_sources_are_refused():
    with pytest.raises(InputError, match=r"sources are \[\]; this method needs at least 1"):
        method("ega")
