import pytest
import torch

from sskt.errors import InputError, UnknownNameError
from sskt.methods.lsp import LSPOptions
from tests.sskt.learning import method, served, source, training
from tests.sskt.methods.test_base import run
from tests.sskt.methods.test_embed import slow_primary, wide
from tests.sskt.methods.test_seed import weights
from tests.sskt.test_neighbour_losses import slow_structure


@pytest.mark.parametrize("kernel", ["rbf", "cosine"])
@pytest.mark.parametrize(("neighbours", "pool_rows"), [(7, 8), (3, 12), (2, 3)])
def test_the_loss_is_the_equation(kernel, neighbours, pool_rows):
    settings = training(pool_batch_size=pool_rows)
    options = {"kernel": kernel, "neighbours": neighbours, "weight": 0.7, "temperature": 0.3}
    model = method("lsp", wide(), settings=settings, **options)
    feed = served(model, wide(), settings=settings)
    batch = feed.batch(0)
    model.train(mode=True)
    primary, _ = slow_primary(model, batch)
    with torch.no_grad():
        target = model.target(batch.images).embedding.double().numpy()
    own = batch.outputs["wiser"]["embedding"].double().numpy()
    graph = feed.pool().graphs["wiser"].ids
    groups = [list(range(8 + start, 8 + start + 1 + neighbours)) for start in range(0, pool_rows, 1 + neighbours)]
    for group in groups:  # an image, then those nearest to it
        assert batch.ids[group[1:]].tolist() == graph[batch.ids[group[0]], :neighbours].tolist()
    structure = slow_structure(kernel, target[groups], own[groups], 0.3)
    parts = model.step(batch)
    assert parts["primary"].item() == pytest.approx(primary, rel=1e-4)
    assert parts["structure"].item() == pytest.approx(0.7 * structure, rel=1e-3, abs=1e-6)
    assert set(parts) == {"loss", "primary", "structure"}


def test_weight_zero_is_scratch_bit_for_bit():
    plain, expected = run("scratch", steps=8)
    model, parts = run("lsp", source(), steps=8, weight=0.0)
    assert [part["loss"] for part in parts] == [part["loss"] for part in expected]
    for name, value in plain.export().state_dict().items():
        assert torch.equal(value, model.export().state_dict()[name]), name


@pytest.mark.parametrize("kernel", ["rbf", "cosine"])
def test_the_structure_is_learnt_beside_the_labels(kernel):
    settings = training(epochs=10, pool_batch_size=32)
    alone, learnt = (
        run("lsp", source(), steps=50, settings=settings, kernel=kernel, weight=weight)[1] for weight in (1e-6, 1.0)
    )
    assert sum(part["primary"] for part in learnt[-5:]) < sum(part["primary"] for part in learnt[:5])
    left = sum(part["structure"].item() for part in alone[-5:]) / 1e-6
    assert sum(part["structure"].item() for part in learnt[-5:]) < left


def test_the_source_changes_what_is_learnt():
    seen = [weights(run("lsp", one)[0]) for one in (source(), wide())]
    assert not torch.equal(*seen)


def test_the_pool_and_its_graph_are_asked_for_only_where_they_count():
    model = method("lsp", source())
    needs = model.needs(LSPOptions(neighbours=5))
    assert (needs.outputs, needs.pool, needs.graph, needs.near) == (("embedding",), True, 5, 5)
    idle = model.needs(LSPOptions(weight=0.0))
    assert (idle.pool, idle.graph, idle.near) == (False, 0, 0)
    assert not list(model.heads.parameters())


def test_a_batch_that_is_no_whole_number_of_groups_is_refused():
    with pytest.raises(InputError, match=r"pool_batch_size gives each process 10 images; .* multiple of 8"):
        method("lsp", source(), settings=training(pool_batch_size=10))
    method("lsp", source(), settings=training(pool_batch_size=10), weight=0.0)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"weight": -0.1}, r"weight is -0\.1; it has to be at least 0"),
        ({"weight": float("nan")}, "weight is nan; it has to be at least 0"),
        ({"neighbours": 1}, "neighbours is 1; it has to be at least 2, for a distribution"),
        ({"temperature": 0.0}, r"temperature is 0\.0; it has to be above 0"),
    ],
)
def test_options_out_of_range_are_refused(options, says):
    with pytest.raises(InputError, match=says):
        LSPOptions(**options)


def test_unknown_kernels_and_other_than_one_source_are_refused():
    with pytest.raises(UnknownNameError, match="kernel 'rbg' is unknown; did you mean 'rbf'"):
        LSPOptions(kernel="rbg")
    for sources in ((), (source(), wide())):
        with pytest.raises(InputError, match="this method needs exactly 1"):
            method("lsp", *sources)
