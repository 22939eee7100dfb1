import copy
from dataclasses import replace

import numpy as np
import pytest
import torch

from sskt.errors import InputError
from sskt.methods import Needs, sskd
from sskt.methods.sskd import SSKD, SSKDOptions
from sskt.networks import build_target
from sskt.settings import TargetSettings
from sskt.sources import Source
from sskt.sskd_losses import parent_cross_entropy, similarities
from tests.sskt.learning import IMAGE, POOL, VIEWS, feed, method, served, source, training
from tests.sskt.methods.test_base import run
from tests.sskt.test_losses import slow_soft_loss, slow_softmax
from tests.sskt.test_sskd_losses import slow_kept, slow_kept_kl, slow_levels, slow_similarities

ALONE = {"primary": 1.0, "soft": 0.0, "turned": 0.0, "similarity": 0.0}
SPARSE = {"keep_turned": 0.5, "keep_similarity": 0.25, "head_epochs": 2}


def teacher() -> Source:
    """Of the target's classes, with a wider embedding."""
    settings = TargetSettings(architecture="small_cnn", options={"width": 6})
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return Source("wise", build_target(settings, classes=3, image=IMAGE))


def ready(**options):
    """A method in training, with its feed."""
    model = method("sskd", teacher(), **({"head_epochs": 2} | options))
    model.train(mode=True)
    return model, served(model, teacher())


def numbers(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def only(batch) -> dict[str, torch.Tensor]:
    return batch.outputs["wise"]


def weights_of(module: torch.nn.Module) -> torch.Tensor:
    return torch.cat([value.flatten().clone() for value in module.parameters()])


def slow_head(head: torch.nn.Module, embedding: np.ndarray) -> np.ndarray:
    """Two layers with a rectifier between them."""
    first, _, second = (layer for layer in head.modules() if not isinstance(layer, torch.nn.Sequential))
    hidden = np.maximum(embedding @ numbers(first.weight).T + numbers(first.bias), 0)
    return hidden @ numbers(second.weight).T + numbers(second.bias)


@pytest.mark.parametrize("learn_from", ["labelled", "all"])
@pytest.mark.parametrize("options", [{}, SPARSE, {"temperature": 2.0, "similarity_temperature": 0.1, **SPARSE}])
def test_the_loss_is_the_formula(learn_from, options):
    """The heads are recomputed by hand; the target runs once, on upright and turned images together."""
    model, batches = ready(learn_from=learn_from, **options)
    model.step(batches.batch(0))  # which trains the source's head
    batch, chosen = batches.batch(1), model.options
    rows = len(batch.ids)
    assert rows == (8 if learn_from == "labelled" else 16)
    with torch.no_grad():
        features = copy.deepcopy(model.target)(torch.cat([batch.images, batch.turned.images]))
    logits = numbers(features.logits)
    labels = batch.labels.tolist()
    said, of_turned = ({name: numbers(value) for name, value in only(one).items()} for one in (batch, batch.turned))
    hard = [-np.log(slow_softmax(logits[row])[label]) for row, label in enumerate(labels) if label >= 0]
    kept = slow_kept(slow_levels(of_turned["logits"], labels * 3), chosen.keep_turned)
    ours = slow_head(model.heads["similarity"][1], numbers(features.embedding))
    theirs = [slow_head(model.source_head, one["embedding"]) for one in (of_turned, said)]
    wanted = slow_similarities(*theirs)
    found = slow_kept(slow_levels(wanted, list(range(rows)) * 3), chosen.keep_similarity)
    assert not options or not (all(kept) or all(found))
    tau = chosen.similarity_temperature
    expected = {
        "primary": 0.1 * np.mean(hard),
        "soft": 0.9 * slow_soft_loss("kl", logits[:rows], said["logits"], chosen.temperature),
        "turned": 2.7 * slow_kept_kl(logits[rows:], of_turned["logits"], kept, chosen.temperature),
        "similarity": 10 * slow_kept_kl(slow_similarities(ours[rows:], ours[:rows]), wanted, found, tau),
    }
    parts = model.step(batch)
    assert parts.pop("loss").item() == pytest.approx(sum(expected.values()), rel=1e-3)
    assert {name: part.item() for name, part in parts.items()} == pytest.approx(expected, rel=2e-3, abs=1e-6)


@pytest.mark.parametrize("learn_from", ["labelled", "all"])
def test_with_the_labels_alone_it_is_scratch_bit_for_bit(learn_from):
    plain, losses = run("scratch", steps=8)
    distilled, its = run("sskd", source(classes=3), steps=8, learn_from=learn_from, **ALONE)
    assert [part["loss"] for part in losses] == [part["loss"] for part in its]
    for name, value in plain.export().state_dict().items():
        assert torch.equal(value, distilled.export().state_dict()[name]), name


def test_with_labels_and_soft_labels_it_is_kd():
    distilled, losses = run("kd", source(classes=3), steps=8)
    same, its = run("sskd", source(classes=3), steps=8, turned=0.0, similarity=0.0)
    assert [part["loss"].item() for part in losses] == pytest.approx([part["loss"].item() for part in its], rel=1e-4)
    assert torch.allclose(weights_of(distilled.export()), weights_of(same.export()), atol=1e-5)


@pytest.mark.parametrize("part", ["soft", "turned", "similarity"])
def test_every_divergence_is_learnt(part):
    # Without the labels, which a teacher of random weights contradicts.
    chosen = ALONE | {"primary": 0.0, part: 1.0}
    _, parts = run("sskd", teacher(), steps=40, settings=training(epochs=10), head_epochs=2, **chosen)
    assert set(parts[0]) == {"loss", "primary", part}
    assert sum(one[part] for one in parts[-5:]) < 0.9 * sum(one[part] for one in parts[:5])


def test_a_perfect_copy_has_no_divergence():
    model, batches = ready()
    model.step(batches.batch(0))
    batch = batches.batch(1)
    both = {name: torch.cat([value, only(batch.turned)[name]]) for name, value in only(batch).items()}
    projected = model.source_head(both["embedding"])
    copied = model.losses(batch, both["logits"], {"similarity": projected})
    other = model.losses(batch, both["logits"].flip(0), {"similarity": projected.flip(0)})
    for part in ("soft", "turned", "similarity"):
        assert copied[part].item() == pytest.approx(0, abs=1e-5), part
        assert other[part] > 1e-4, part


def permuted(batch, order):
    """The same batch with its rows in another order."""
    outputs = {"wise": {name: value[order] for name, value in only(batch).items()}}
    return replace(batch, images=batch.images[order], labels=batch.labels[order], ids=batch.ids[order], outputs=outputs)


@pytest.mark.parametrize("options", [{"keep_similarity": 1.0}, {"keep_similarity": 0.0, "keep_turned": 0.0}])
def test_the_order_of_a_batch_changes_nothing(options):
    model, batches = ready(learn_from="all", **options)
    model.step(batches.batch(0))
    batch = batches.batch(1)
    order = torch.randperm(len(batch.ids), generator=torch.Generator().manual_seed(0))
    turned = permuted(batch.turned, torch.cat([order + quarter * len(order) for quarter in range(3)]))
    twin = copy.deepcopy(model)
    mine, its = model.step(batch), twin.step(replace(permuted(batch, order), turned=turned))
    for part, value in mine.items():
        assert value.item() == pytest.approx(its[part].item(), rel=1e-4), part
    assert torch.allclose(weights_of(model.target), weights_of(twin.target), atol=1e-5)


def test_hidden_labels_are_never_wrong():
    """With no wrong row kept, what the teacher says of an image of hidden label counts, and all of them do."""
    model, batches = ready(learn_from="all", keep_turned=0.0)
    batch = batches.batch(0)
    hidden = batch.labels < 0
    assert hidden.any()
    answers = only(batch.turned)["logits"].argmax(dim=1)
    assert (answers != batch.labels.repeat(3)).any()
    kept = hidden.repeat(3) | (answers == batch.labels.repeat(3))
    logits = torch.randn(len(kept), 3, requires_grad=True)
    model._turned(logits, only(batch.turned)["logits"], batch.labels).backward()
    assert torch.equal(logits.grad.abs().sum(dim=1) > 0, kept)


def held_out_loss(head: torch.nn.Module, one: Source) -> float:
    """How well a head finds the parents, on a view of the whole pool."""
    ask = feed(training(), sources=[one]).pool().ask
    views = [ask("wise", torch.arange(POOL), quarters=quarters)["embedding"] for quarters in range(4)]
    with torch.no_grad():
        return parent_cross_entropy(similarities(head(torch.cat(views[1:])), head(views[0]))).item()


def test_the_first_step_trains_the_sources_head_once(monkeypatch):
    calls = []
    train = sskd.train_source_head

    def counted(head, **rest):
        calls.append(head)
        train(head, **rest)

    monkeypatch.setattr(sskd, "train_source_head", counted)
    eager = {"head_epochs": 40, "head_lr": 1.0}  # embeddings of random weights are hard to tell apart
    model, batches = ready(**eager)
    before = held_out_loss(model.source_head, teacher())
    model.step(batches.batch(0))
    trained = weights_of(model.source_head)
    assert held_out_loss(model.source_head, teacher()) < before - 0.2
    for step in (1, 2, 3):
        model.step(batches.batch(step))
    assert torch.equal(trained, weights_of(model.source_head))
    resumed, _ = ready(**eager)
    resumed.load_state_dict(copy.deepcopy(model.state_dict()))
    resumed.step(batches.batch(4))
    assert torch.equal(trained, weights_of(resumed.source_head))
    assert calls == [model.source_head]


def test_a_state_saved_before_the_first_step_trains_the_head_after_it():
    (model, batches), (other, _) = ready(), ready()
    other.load_state_dict(copy.deepcopy(model.state_dict()))
    assert model.step(batches.batch(0)) == other.step(batches.batch(0))
    assert torch.equal(weights_of(model.source_head), weights_of(other.source_head))


def test_the_sources_head_goes_by_the_seed_alone_and_leaves_the_others_random_numbers():
    starts, heads = [], []
    for seed, disturbed in ((0, 1), (0, 2), (3, 1)):
        model = method("sskd", teacher(), seed=seed, head_epochs=2)
        starts.append(weights_of(model.source_head))
        torch.manual_seed(disturbed)
        before = torch.get_rng_state()
        model.step(served(model, teacher()).batch(0))
        assert torch.equal(before, torch.get_rng_state())
        heads.append(weights_of(model.source_head))
    for one in (starts, heads):
        assert torch.equal(one[0], one[1])
        assert not torch.equal(one[1], one[2])


def test_a_pass_of_the_head_shows_one_view_of_the_whole_pool_and_its_turned_ones(monkeypatch):
    model, _ = ready(head_epochs=6)
    asked, ask = [], model.task.pool.ask

    def noted(one, ids, *, view=0, quarters=0):
        asked.append((quarters, view, ids))
        return ask(one, ids, view=view, quarters=quarters)

    task = replace(model.task, pool=replace(model.task.pool, ask=noted))
    sskd.train_source_head(model.source_head, task=task, options=model.options)
    assert [quarters for quarters, _, _ in asked] == [0, 1, 2, 3] * (len(asked) // 4)
    for epoch in range(6):
        of_pass = asked[epoch * len(asked) // 6 : (epoch + 1) * len(asked) // 6]
        assert {view for _, view, _ in of_pass} == {epoch % VIEWS}
        for quarter in range(4):
            assert sorted(torch.cat([ids for _, _, ids in of_pass[quarter::4]]).tolist()) == list(range(POOL))


@pytest.mark.parametrize("rates", [[0.05], [0.05, 0.005], [0.05, 0.05, 0.005, 5e-4]])
def test_the_heads_rate_falls_after_half_and_three_quarters(rates, monkeypatch):
    seen, make = [], sskd.make_optimizer

    def noted(*args, **rest):
        optimizer, schedule = make(*args, **rest)
        optimizer.register_step_pre_hook(lambda optimizer, *_: seen.append(optimizer.param_groups[0]["lr"]))
        return optimizer, schedule

    model, _ = ready(head_epochs=len(rates))
    monkeypatch.setattr(sskd, "make_optimizer", noted)
    sskd.train_source_head(model.source_head, task=model.task, options=model.options)
    assert seen == pytest.approx([rate for rate in rates for _ in range(-(-POOL // 8))])


def test_only_what_a_loss_with_weight_reads_is_asked_for():
    for options, expected in (
        (
            {"learn_from": "all"},
            Needs(outputs=("logits", "embedding"), turned=True, pool=True, asks=True, tempered=True),
        ),
        ({"similarity": 0.0}, Needs(outputs=("logits",), turned=True, tempered=True)),
        ({"similarity": 0.0, "temperature": 1.0}, Needs(outputs=("logits",), turned=True)),
        ({"soft": 0.0, "turned": 0.0}, Needs(outputs=("embedding",), turned=True, asks=True)),
        ({"turned": 0.0, "similarity": 0.0}, Needs(outputs=("logits",), tempered=True)),
        (ALONE | {"learn_from": "all"}, Needs()),
    ):
        assert SSKD.needs(SSKDOptions(**options)) == expected


@pytest.mark.parametrize("blank", [torch.zeros_like, torch.ones_like])
def test_embeddings_without_direction_or_difference_stay_finite(blank):
    model, batches = ready()
    model.step(batches.batch(0))
    batch = batches.batch(1)
    for one in (batch, batch.turned):
        only(one)["embedding"] = blank(only(one)["embedding"])
    parts = model.step(batch)
    assert all(part.isfinite() for part in parts.values())
    assert weights_of(model.target).isfinite().all()


@pytest.mark.parametrize(
    ("right", "values"),
    [
        ("at least 0", {"primary": -0.1, "soft": float("nan"), "turned": -1.0, "similarity": -1.0}),
        ("above 0", {"temperature": 0.0, "similarity_temperature": -2.0, "head_lr": 0.0}),
        ("between 0 and 1", {"keep_turned": 1.5, "keep_similarity": float("nan")}),
        ("at least 1", {"head_epochs": 0}),
    ],
)
def test_options_out_of_range_are_refused(right, values):
    for name, value in values.items():
        with pytest.raises(InputError, match=f"^{name} is {value}; it has to be {right}$"):
            SSKDOptions(**{name: value})


def test_sources_and_batches_that_cannot_be_are_refused():
    with pytest.raises(InputError, match=r"sources are \[\]; this method needs exactly 1"):
        method("sskd")
    with pytest.raises(InputError, match="this method needs exactly 1"):
        method("sskd", source("a", classes=3), source("b", classes=3))
    for options in ({"soft": 0.0}, {"turned": 0.0}):
        with pytest.raises(InputError, match=r"source 'wise' has 5 classes and the target 3; sskd needs the same ones"):
            method("sskd", source(), **options)
    method("sskd", source(), soft=0.0, turned=0.0)
    with pytest.raises(InputError, match="batch_size gives each process 1 image at a time; similarity compares"):
        method("sskd", teacher(), settings=training(batch_size=1))
    method("sskd", teacher(), settings=training(batch_size=1), learn_from="all")
