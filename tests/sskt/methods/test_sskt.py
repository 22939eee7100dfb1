import numpy as np
import pytest
import torch

from sskt.errors import InputError
from sskt.methods.sskt import SSKTOptions
from tests.sskt.learning import feed, method, source, training
from tests.sskt.methods.test_base import run
from tests.sskt.test_losses import slow_soft_loss


@pytest.mark.parametrize("heads", ["linear", "transfer"])
@pytest.mark.parametrize("learn_from", ["labelled", "all"])
def test_weight_zero_is_scratch_bit_for_bit(heads, learn_from):
    plain, _ = run("scratch", steps=8)
    with_heads, parts = run("sskt", source(), steps=8, alpha=0.0, heads=heads, learn_from=learn_from)
    assert "auxiliary/wise" in parts[0]
    for name, value in plain.export().state_dict().items():
        assert torch.equal(value, with_heads.export().state_dict()[name]), name


@pytest.mark.parametrize("loss", ["ce", "kl"])
def test_the_loss_is_the_papers_equation(loss):
    wise, wiser = source(), source("wiser", classes=7)
    model = method("sskt", wise, wiser, alpha=0.7, temperature=2.0, loss=loss, learn_from="all")
    batch = feed(training(), sources=[wise, wiser], pool=True).batch(0)
    model.train(mode=True)
    with torch.no_grad():
        logits, heads = model.student(batch.images)
    labelled = batch.labels >= 0
    log_q = torch.log_softmax(logits[labelled].double(), dim=1)
    expected = -np.mean([log_q[row, label] for row, label in enumerate(batch.labels[labelled])])
    for name in ("wise", "wiser"):
        source_logits = batch.outputs[name]["logits"].double().numpy()
        expected += 0.7 * slow_soft_loss(loss, heads[name].double().numpy(), source_logits, 2.0)
    assert model.step(batch)["loss"].item() == pytest.approx(expected, rel=1e-5)


def test_both_losses_train_alike():
    by_ce, _ = run("sskt", source(), loss="ce", temperature=2.0)
    by_kl, _ = run("sskt", source(), loss="kl", temperature=2.0)
    for left, right in zip(by_ce.export().parameters(), by_kl.export().parameters(), strict=True):
        assert torch.allclose(left, right, atol=1e-5)


def test_a_source_changes_what_is_learnt():
    plain, _ = run("scratch")
    taught, _ = run("sskt", source())
    pairs = zip(plain.export().parameters(), taught.export().parameters(), strict=True)
    assert any(not torch.equal(left, right) for left, right in pairs)


def test_a_head_a_source_with_its_own_classes():
    model = method("sskt", source(), source("wiser", classes=7))
    with torch.no_grad():
        _, heads = model.student(torch.zeros(2, 1, 8, 8, dtype=torch.uint8))
    assert {name: tuple(logits.shape) for name, logits in heads.items()} == {"wise": (2, 5), "wiser": (2, 7)}


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"alpha": -0.1}, "alpha is -0.1; it has to be at least 0"),
        ({"temperature": 0.0}, "temperature is 0.0; it has to be above 0"),
        ({"width": 1}, "width is 1; it has to be at least 2"),
        ({"preset": "release"}, "preset 'release' is unknown"),
        ({"taps": (0,)}, r"taps are \[0\] with heads 'linear'; only 'transfer' reads taps"),
        ({"taps": (), "heads": "transfer"}, r"taps are \[\]; name at least one, each once, in their order"),
        ({"taps": (1, 0), "heads": "transfer"}, r"taps are \[1, 0\]; name at least one"),
        ({"taps": (1, 1), "heads": "transfer"}, r"taps are \[1, 1\]; name at least one"),
    ],
)
def test_options_out_of_range_are_refused(options, says):
    with pytest.raises(InputError, match=says):
        SSKTOptions(**options)


def test_the_preset_of_the_release_is_weaker_by_the_number_of_classes():
    _, right = run("sskt", source(classes=5), loss="kl", alpha=0.1, temperature=3.0, steps=1)
    _, released = run("sskt", source(classes=5), loss="kl", preset="paper_as_released", steps=1)
    assert released[0]["auxiliary/wise"] * 5 == pytest.approx(right[0]["auxiliary/wise"])
    _, by_ce = run("sskt", source(classes=5), loss="ce", preset="paper_as_released", steps=1)
    _, as_written = run("sskt", source(classes=5), alpha=0.1, temperature=3.0, steps=1)
    assert by_ce[0]["auxiliary/wise"] == as_written[0]["auxiliary/wise"]


@pytest.mark.parametrize(("preset", "combine"), [("corrected", "sum"), ("paper_as_released", "mean")])
def test_an_option_comes_before_its_preset(preset, combine):
    model = method("sskt", source(), preset=preset, heads="transfer")
    assert model.heads["wise"].combine == combine
    other = method("sskt", source(), preset=preset, heads="transfer", combine="mean", alpha=0.7)
    assert other.heads["wise"].combine == "mean"
    assert other.options.weight_of("wise") == 0.7


def test_taps_of_the_transfer_module_are_chosen():
    model = method("sskt", source(), heads="transfer", taps=(0, 2))
    assert model.heads["wise"].read == (0, 2)
    every, _ = run("sskt", source(), heads="transfer")
    same, _ = run("sskt", source(), heads="transfer", taps=(0, 1, 2))
    for one, other in zip(every.export().parameters(), same.export().parameters(), strict=True):
        assert torch.equal(one, other)
    with pytest.raises(InputError, match=r"taps are \[3\]; this target has those from 0 to 2"):
        method("sskt", source(), heads="transfer", taps=(3,))


def test_a_weight_by_source():
    wise, wiser = source(), source("wiser", classes=7)
    _, same = run("sskt", wise, wiser, alpha=0.5)
    _, by_source = run("sskt", wise, wiser, alpha={"wise": 0.5, "wiser": 0.5})
    assert [part["loss"] for part in same] == [part["loss"] for part in by_source]
    _, one_off = run("sskt", wise, wiser, alpha={"wise": 0.5, "wiser": 0.0}, steps=1)
    assert one_off[0]["auxiliary/wiser"] == 0
    assert one_off[0]["auxiliary/wise"] == same[0]["auxiliary/wise"]
    with pytest.raises(InputError, match=r"alpha names \['wise'\]; it has to name the sources \['wise', 'wiser'\]"):
        method("sskt", wise, wiser, alpha={"wise": 1.0})
    with pytest.raises(InputError, match="it has to be at least 0"):
        SSKTOptions(alpha={"wise": -1.0})


def test_the_transfer_module_needs_taps():
    import dataclasses

    from sskt.methods import get_method
    from tests.sskt.learning import facts

    bare = dataclasses.replace(facts(source()), taps=())
    with pytest.raises(InputError, match="this target has none; use heads 'linear'"):
        get_method("sskt").check(SSKTOptions(heads="transfer"), bare)
