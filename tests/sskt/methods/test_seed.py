import io

import pytest
import torch

from sskt.errors import InputError, UnknownNameError
from sskt.methods.seed import SEEDOptions
from tests.sskt.learning import POOL, method, served, source
from tests.sskt.methods.test_base import run
from tests.sskt.methods.test_embed import slow_primary, wide
from tests.sskt.test_bank_losses import slow_bank_kl


def weights(model) -> torch.Tensor:
    return torch.cat([value.flatten() for value in model.export().parameters()])


@pytest.mark.parametrize("learn_from", ["labelled", "all"])
@pytest.mark.parametrize("options", [{"projection": "linear"}, {"bank": 7, "source_temperature": 0.3}])
def test_the_loss_is_the_equation(learn_from, options):
    sources = [source(), wide()]
    model = method("seed", *sources, weight=0.7, temperature=0.5, learn_from=learn_from, **options)
    feed = served(model, *sources)
    batch = feed.batch(0)
    assert (batch.labels < 0).any() == (learn_from == "all")
    model.train(mode=True)
    primary, heads = slow_primary(model, batch)
    expected = {"primary": primary}
    ids = model.bank.ids
    assert len(ids) == options.get("bank", POOL)
    for one in sources:
        bank = feed.pool().ask(one.name, ids)["embedding"].double().numpy()
        own = batch.outputs[one.name]["embedding"].double().numpy()
        distance = slow_bank_kl(heads[one.name], own, bank, 0.5, options.get("source_temperature", 0.01))
        expected[f"bank/{one.name}"] = 0.7 * distance
    parts = model.step(batch)
    assert parts.pop("loss").item() == pytest.approx(sum(expected.values()), rel=1e-4)
    assert {name: part.item() for name, part in parts.items()} == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("projection", ["linear", "mlp"])
def test_weight_zero_is_scratch_bit_for_bit(projection):
    plain, _ = run("scratch", steps=8)
    compared, parts = run("seed", source(), wide(), steps=8, weight=0.0, projection=projection)
    assert parts[0]["bank/wise"] == 0
    for name, value in plain.export().state_dict().items():
        assert torch.equal(value, compared.export().state_dict()[name]), name


def test_a_source_changes_what_is_learnt_and_so_do_pool_and_bank():
    plain, _ = run("scratch")
    taught, more, fewer = (
        run("seed", source(), **options)[0]
        for options in ({"learn_from": "labelled"}, {}, {"learn_from": "labelled", "bank": 5})
    )
    seen = [weights(model) for model in (plain, taught, more, fewer)]
    assert not any(torch.equal(a, b) for number, a in enumerate(seen) for b in seen[:number])


def test_the_target_learns_the_sources_similarities():
    _, parts = run("seed", source(), wide(), steps=40)
    for name in ("bank/wise", "bank/wiser"):
        assert sum(part[name] for part in parts[-4:]) < 0.9 * sum(part[name] for part in parts[:4])


def test_the_bank_is_made_again_and_not_saved():
    options = {"bank": 9, "seed": 4}
    model, other = (method("seed", source(), **options) for _ in range(2))
    assert torch.equal(model.bank.ids, other.bank.ids)
    assert torch.equal(model.bank.rows["wise"], other.bank.rows["wise"])
    # Target, projection, optimiser and schedule alone.
    assert set(model.state_dict()) == {"target", "heads", "optimizer", "schedule"}
    assert not list(model.heads.buffers())
    assert not model.bank.rows["wise"].requires_grad


def test_a_checkpoint_goes_on_exactly_with_a_part_of_the_pool_as_bank():
    options = {"bank": 9, "seed": 4}
    whole, half, resumed = (method("seed", source(), **options) for _ in range(3))
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


def test_the_pool_is_asked_for_only_where_it_counts():
    model = method("seed", source())
    assert model.needs(SEEDOptions()).outputs == ("embedding",)
    assert model.needs(SEEDOptions()).pool
    assert not model.needs(SEEDOptions(learn_from="labelled")).pool
    assert not model.needs(SEEDOptions(weight=0.0)).pool


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"weight": -0.1}, r"weight is -0\.1; it has to be at least 0"),
        ({"weight": float("nan")}, "weight is nan; it has to be at least 0"),
        ({"bank": 0}, "bank is 0; it has to be at least 1 image"),
        ({"temperature": 0.0}, r"temperature is 0\.0; it has to be above 0"),
        ({"source_temperature": -1.0}, r"source_temperature is -1\.0; it has to be above 0"),
    ],
)
def test_options_out_of_range_are_refused(options, says):
    with pytest.raises(InputError, match=says):
        SEEDOptions(**options)


def test_unknown_names_and_missing_sources_are_refused():
    with pytest.raises(UnknownNameError, match="projection 'mpl' is unknown; did you mean 'mlp'"):
        SEEDOptions(projection="mpl")
    with pytest.raises(InputError, match=r"sources are \[\]; this method needs at least 1"):
        method("seed")
