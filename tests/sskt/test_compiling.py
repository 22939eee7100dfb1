import copy
import warnings

import pytest
import torch

from sskt.compiling import arrange, compile_targets
from tests.sskt.learning import feed, method, source, training


def images():
    return feed(training()).batch(0).images


def learn_alike(compiled, plain, served):
    """Both take steps and predict in between, and say the same."""
    held_out = next(served.evaluation("validation"))[0]
    for step in range(3):
        told, expected = (one.step(served.batch(step)) for one in (compiled, plain))
        assert told.keys() == expected.keys()
        for name, part in expected.items():
            assert torch.allclose(told[name], part, atol=1e-5), name
        for one in (compiled, plain):
            one.train(mode=False)
        assert torch.allclose(compiled.predict(held_out), plain.predict(held_out), atol=1e-4)
        for one in (compiled, plain):
            one.train(mode=True)


def test_a_compiled_target_learns_what_it_learns_by_itself():
    """By torch's own parts, without a compiler: what is traced is the same, batch after batch."""
    wise, settings = source(), training()
    plain, compiled = (method("sskt", wise, settings=settings) for _ in range(2))
    served = feed(settings, sources=[wise])
    assert compile_targets(compiled.student, served.batch(0).images, mode=None, backend="aot_eager") is None
    learn_alike(compiled, plain, served)


def test_one_whose_heads_read_feature_maps_is_not_compiled():
    model = method("sskt", source(), heads="transfer")
    assert "feature maps" in compile_targets(model.student, images(), mode=None, backend="aot_eager")
    assert model.export().compiled is None


def test_a_copy_of_a_compiled_target_is_one_of_its_own():
    model = method("scratch")
    assert compile_targets(model.student, images(), mode=None, backend="aot_eager") is None
    copied = copy.deepcopy(model.export())
    with torch.no_grad():
        copied.network.fc.bias += 1
    for with_taps in (False, True, False):
        one, other = (network.eval()(images(), with_taps=with_taps) for network in (copied, model.export()))
        assert torch.allclose(one.logits - other.logits, torch.ones_like(one.logits), atol=1e-5)
        assert len(one.taps) == (3 if with_taps else 0)


def test_what_cannot_be_compiled_stays_as_it_is_and_says_why_in_a_line():
    def broken(graph, inputs):
        raise ValueError("no compiler\nhere")

    model, untouched = method("scratch"), method("scratch")
    reason = compile_targets(model.student, images(), mode=None, backend=broken)
    assert "no compiler" in reason and "\n" not in reason
    assert torch.equal(model.predict(images()), untouched.predict(images()))
    batch = feed(training()).batch(0)
    assert torch.equal(model.step(batch)["loss"], untouched.step(batch)["loss"])


def test_what_is_not_asked_for_is_not_done():
    model = method("scratch")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        arrange(model.student, images, mode="none", channels_last=False)
    weight = next(model.export().parameters())
    assert weight.is_contiguous()
    assert model.export().compiled is None


def test_channels_last_changes_where_weights_lie_and_not_what_they_say():
    model, plain = method("scratch"), method("scratch")
    arrange(model.student, images, mode="none", channels_last=True)
    assert model.export().network.stage2[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.allclose(model.predict(images()), plain.predict(images()), atol=1e-5)
    state = model.state_dict()
    plain.load_state_dict(state)
    assert torch.allclose(plain.predict(images()), model.predict(images()), atol=1e-5)


def test_weights_of_other_dimensions_stay_where_they_are():
    module = torch.nn.Sequential(torch.nn.Conv3d(1, 2, 3), torch.nn.Linear(2, 2))
    arrange(module, images, mode="none", channels_last=True)
    assert all(weight.is_contiguous() for weight in module.parameters())


def test_a_warning_names_the_field(monkeypatch):
    monkeypatch.setattr("sskt.compiling.compile_targets", lambda *_, **__: "no compiler")
    with pytest.warns(UserWarning, match="resources.compile is 'default', but this target is not compiled: no comp"):
        arrange(method("scratch").student, images, mode="default", channels_last=False)
