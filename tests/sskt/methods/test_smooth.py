import numpy as np
import pytest
import torch

from sskt.errors import InputError
from sskt.feeds import Pool
from sskt.graphs import nearest_neighbours
from sskt.methods.smooth import Smooth, SmoothOptions, SplitRows
from tests.sskt.learning import POOL, RECIPE, feed, graph, image_set, method, source, training
from tests.sskt.methods.test_base import run
from tests.sskt.methods.test_embed import slow_primary, wide
from tests.sskt.test_propagation import slow_smooth


def first_views(one) -> np.ndarray:
    """The embedding of the first view of every image of the pool."""
    ids = torch.arange(POOL)
    views = RECIPE.apply(image_set().images[:POOL], ids=ids, views=torch.zeros_like(ids))
    return one.outputs(views, ("embedding",))["embedding"].double().numpy()


def slow_scaled(rows: np.ndarray, over: np.ndarray) -> np.ndarray:
    mean = over.mean(axis=0)
    return (rows - mean) / np.mean([value**2 for value in (over - mean).flat]) ** 0.5


def slow_split(one, batch, neighbours) -> dict[str, np.ndarray]:
    """Both parts of a source's embedding of the batch."""
    pool, own = first_views(one), batch.outputs[one.name]["embedding"].double().numpy()
    near = slow_smooth(graph(one, neighbours), pool)
    ids = batch.ids.numpy()
    return {"low": slow_scaled(near[ids], near), "high": slow_scaled(own - near[ids], pool - near)}


def pool_of(rows: torch.Tensor, neighbours: int = 3) -> Pool:
    """A pool about which a source says these rows."""

    def ask(source, ids, *, view=0, quarters=0):
        return {"embedding": rows[ids]}

    return Pool(torch.zeros(len(rows)).long(), ask, {"wise": nearest_neighbours(rows, neighbours)})


@pytest.mark.parametrize("learn_from", ["labelled", "all"])
@pytest.mark.parametrize("neighbours", [1, 6])
def test_the_loss_is_the_equation(learn_from, neighbours):
    sources = [source(), wide()]
    options = {"low_weight": 0.7, "high_weight": 0.4, "neighbours": neighbours, "learn_from": learn_from}
    model = method("smooth", *sources, **options)
    batch = feed(training(), sources=sources, pool=learn_from == "all").batch(1)
    assert batch.views.any()
    model.train(mode=True)
    expected, heads = slow_primary(model, batch)
    for one in sources:
        for part, wanted in slow_split(one, batch, neighbours).items():
            projected = heads[f"{part}/{one.name}"]
            assert projected.shape == wanted.shape
            expected += {"low": 0.7, "high": 0.4}[part] * float(((projected - wanted) ** 2).mean())
    parts = model.step(batch)
    assert parts["loss"].item() == pytest.approx(expected, rel=1e-4)
    assert set(parts) == {"loss", "primary", "low/wise", "high/wise", "low/wiser", "high/wiser"}


def test_the_gradient_is_that_of_the_formula():
    model = method("smooth", source(), low_weight=2.0, high_weight=0.5)
    batch = feed(training(), sources=[source()]).batch(0)
    wanted = slow_split(source(), batch, model.options.neighbours)
    heads = {f"{part}/wise": torch.randn(rows.shape, requires_grad=True) for part, rows in wanted.items()}
    parts = model.losses(batch, torch.zeros(8, 3), heads)
    for part, weight in (("low", 2.0), ("high", 0.5)):
        (gradient,) = torch.autograd.grad(parts[f"{part}/wise"], heads[f"{part}/wise"])
        expected = 2 * weight * (heads[f"{part}/wise"].detach().double().numpy() - wanted[part]) / wanted[part].size
        assert np.allclose(gradient.numpy(), expected, atol=1e-5)


def test_weight_zero_is_scratch_bit_for_bit():
    plain, _ = run("scratch", steps=8)
    matched, parts = run("smooth", source(), wide(), steps=8, low_weight=0.0, high_weight=0.0, learn_from="all")
    assert parts[0]["low/wise"] == parts[0]["high/wise"] == 0
    for name, value in plain.export().state_dict().items():
        assert torch.equal(value, matched.export().state_dict()[name]), name


@pytest.mark.parametrize("options", [{"low_weight": 0.0}, {"high_weight": 0.0}])
def test_either_part_changes_what_is_learnt_and_the_pool_too(options):
    plain, _ = run("scratch")
    taught, _ = run("smooth", source(), **options)
    more, _ = run("smooth", source(), learn_from="all", **options)
    weights = [torch.cat([value.flatten() for value in one.export().parameters()]) for one in (plain, taught, more)]
    assert not torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[1], weights[2])


def test_both_parts_have_one_scale_and_make_up_the_embedding():
    torch.manual_seed(0)
    rows = torch.randn(30, 5) @ torch.randn(5, 5) + 4
    split = SplitRows(pool_of(rows), "wise")
    low, high = split(rows, torch.arange(30))
    for part in (low, high):
        assert part.mean(dim=0).abs().max() < 1e-5
        assert part.var(dim=0, correction=0).mean().item() == pytest.approx(1, rel=1e-4)
    assert (rows - split.smooth).var() < 0.9 * rows.var()
    shifted_low, shifted_high = split(rows + 1, torch.arange(30))
    assert torch.equal(low, shifted_low)
    assert not torch.allclose(high, shifted_high)


def test_parts_follow_a_scale_and_a_shift_of_the_source_in_nothing():
    torch.manual_seed(0)
    rows = torch.randn(30, 5)
    known = pool_of(rows)
    mine = SplitRows(known, "wise")(rows, torch.arange(30))
    moved = Pool(known.labels, pool_of(7 * rows + 3).ask, known.graphs)
    for left, right in zip(mine, SplitRows(moved, "wise")(7 * rows + 3, torch.arange(30)), strict=True):
        assert torch.allclose(left, right, atol=1e-4)


@pytest.mark.parametrize(
    "rows",
    [
        torch.full((9, 4), 0.1),
        torch.zeros(9, 4),
        torch.randn(1, 4).repeat(9, 1),
        torch.randn(9, 4) * 1e15,
        torch.randn(9, 4) * 1e-15,
    ],
)
def test_degenerate_embeddings_give_finite_parts(rows):
    low, high = SplitRows(pool_of(rows), "wise")(rows, torch.arange(9))
    assert low.isfinite().all()
    assert high.isfinite().all()
    if len(rows.unique(dim=0)) == 1:
        assert not low.any()
        assert not high.any()


def test_the_source_is_asked_about_the_pool_once():
    one = source()
    model = method("smooth", one)
    before, batch = one.passes, feed(training(), sources=[one]).batch(0)
    assert before == 2 * POOL  # one for the graph, one for the smooth parts
    model.step(batch)
    assert one.passes == before + len(batch.ids)


def test_the_order_of_the_batch_does_not_matter():
    split = SplitRows(pool_of(torch.randn(30, 5)), "wise")
    ids, order = torch.tensor([4, 17, 2, 28]), torch.tensor([2, 0, 3, 1])
    rows = torch.randn(4, 5)
    for mine, its in zip(split(rows, ids), split(rows[order], ids[order]), strict=True):
        assert torch.equal(mine[order], its)


def test_what_is_needed():
    needs = Smooth.needs(SmoothOptions(neighbours=4, learn_from="all"))
    assert (needs.outputs, needs.graph, needs.pool) == (("embedding",), 4, True)
    assert not Smooth.needs(SmoothOptions()).pool
    assert not Smooth.needs(SmoothOptions(low_weight=0.0, high_weight=0.0, learn_from="all")).pool


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"low_weight": -0.1}, "low_weight is -0.1; it has to be at least 0"),
        ({"high_weight": float("nan")}, "high_weight is nan; it has to be at least 0"),
        ({"neighbours": 0}, "neighbours is 0; it has to be at least 1"),
    ],
)
def test_options_out_of_range_are_refused(options, says):
    with pytest.raises(InputError, match=says):
        SmoothOptions(**options)


def test_missing_sources_are_refused():
    with pytest.raises(InputError, match=r"sources are \[\]; this method needs at least 1"):
        method("smooth")
