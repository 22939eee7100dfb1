"""A source only answers."""

import copy
import json

import numpy as np
import pytest
import torch

from sskt.errors import InputError
from sskt.export import export_bytes
from sskt.networks import ImageFormat, TappedNetwork, build_target
from sskt.networks.preprocess import Preprocess, Preprocessing
from sskt.settings import InputSettings, SourceSettings, TargetSettings
from sskt.sources import Source, load_source

SETTINGS = TargetSettings(architecture="small_cnn", options={"width": 4})
IMAGE = ImageFormat(channels=1, size=8, mean=(0.3,), std=(0.4,))


def make_network(seed: int = 0) -> TappedNetwork:
    torch.manual_seed(seed)
    network = build_target(SETTINGS, classes=5, image=IMAGE)
    # Statistics of its own, so that eval and train mode disagree.
    network(torch.randint(0, 256, (16, 1, 8, 8), dtype=torch.uint8))
    return network


def images(count: int = 3) -> torch.Tensor:
    return torch.randint(0, 256, (count, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))


def test_outputs_are_those_of_the_network_in_eval_mode():
    network = make_network()
    with torch.no_grad():
        expected = copy.deepcopy(network).eval()(images())
        trained = copy.deepcopy(network).train()(images())
    source = Source("digits", network)
    outputs = source.outputs(images(), ("logits", "embedding"))
    assert list(outputs) == ["logits", "embedding"]
    assert torch.equal(outputs["logits"], expected.logits)
    assert torch.equal(outputs["embedding"], expected.embedding)
    assert not torch.allclose(outputs["logits"], trained.logits)
    assert {values.dtype for values in outputs.values()} == {torch.float32}
    assert (source.classes, source.embedding_dim) == (5, 32)


def test_outputs_serve_as_targets_in_a_graph():
    outputs = Source("digits", make_network()).outputs(images(), ("logits",))
    student = torch.nn.Linear(5, 5)
    # Saving the target for the backward pass is what inference tensors refuse.
    loss = (student(torch.ones(3, 5)) * outputs["logits"]).sum() + student(outputs["logits"]).sum()
    loss.backward()
    assert torch.allclose(student.bias.grad, outputs["logits"].sum(dim=0) + 3)
    assert not outputs["logits"].requires_grad


def test_a_source_never_changes():
    source = Source("digits", make_network())
    state = copy.deepcopy(source.network.state_dict())
    assert source.train() is source
    assert source.train(mode=True) is source
    assert not any(module.training for module in source.network.modules())
    source.outputs(images(), ("logits",))
    for name, tensor in source.network.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    assert not any(parameter.requires_grad for parameter in source.network.parameters())


def test_an_answer_does_not_depend_on_the_other_images():
    source = Source("digits", make_network())
    together = source.outputs(images(6), ("logits",))["logits"]
    alone = source.outputs(images(6)[:2], ("logits",))["logits"]
    assert torch.allclose(together[:2], alone, atol=1e-6)


def test_passes_count_images():
    source = Source("digits", make_network())
    assert source.passes == 0
    source.outputs(images(3), ("logits",))
    source.outputs(images(2), ("logits", "embedding"))
    assert source.passes == 5


def test_unknown_outputs_are_listed_before_anything_runs():
    source = Source("digits", make_network())
    with pytest.raises(
        InputError,
        match="output 'logit' is unknown; did you mean 'logits'\\? known: attention, embedding, features, logits",
    ):
        source.outputs(images(), ("logit",))
    assert source.passes == 0


def test_identity_is_plain_and_knows_what_outputs_depend_on():
    identity = Source("digits", make_network()).identity()
    assert json.loads(json.dumps(identity)) == identity
    assert (identity["architecture"], identity["options"]) == ("small_cnn", {"width": 4})
    assert identity["classes"] == 5
    assert identity["preprocessing"] == {"channels": 1, "size": None, "mean": [0.3], "std": [0.4]}
    assert Source("another name", make_network()).identity() == identity
    assert Source("digits", make_network(seed=1)).identity() != identity


def test_identity_changes_with_the_preprocessing():
    settings = TargetSettings(architecture="small_cnn", options={"width": 4}, input=InputSettings(size=16))
    resized = build_target(settings, classes=5, image=IMAGE)
    network = make_network()
    resized.network.load_state_dict(network.network.state_dict())
    ours, theirs = Source("a", network).identity(), Source("a", resized).identity()
    assert ours["weights"] == theirs["weights"]
    assert ours["preprocessing"] != theirs["preprocessing"]


def test_load_source_reads_an_exported_file_under_any_name(tmp_path):
    network = make_network()
    data = export_bytes(network, settings=SETTINGS, classes=5)
    sources = []
    for name in ("one", "two"):
        (tmp_path / f"{name}.safetensors").write_bytes(data)
        sources.append(load_source(name, SourceSettings(weights=str(tmp_path / f"{name}.safetensors"))))
    assert [source.name for source in sources] == ["one", "two"]
    assert sources[0].identity() == sources[1].identity() == Source("digits", network).identity()


def test_load_source_says_which_source_is_wrong():
    with pytest.raises(InputError, match=r"^sources\.digits\.weights 'missing\.pt' are not there"):
        load_source("digits", SourceSettings(architecture="resnet20", weights="missing.pt"))


def test_a_loaded_source_can_become_a_network_to_train(tmp_path):
    (tmp_path / "one.safetensors").write_bytes(export_bytes(make_network(), settings=SETTINGS, classes=5))
    network = load_source("one", SourceSettings(weights=str(tmp_path / "one.safetensors"))).network
    network.replace_head(3)
    network.requires_grad_(True).train()(images()).logits.sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def statistical_network() -> TappedNetwork:
    """Four pixels, normalised, behind dropout that has to stay off."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(
        torch.nn.Flatten(), torch.nn.BatchNorm1d(4, eps=0.01), torch.nn.Dropout(0.5), torch.nn.Linear(4, 3)
    )
    torch.nn.init.normal_(network[1].weight)
    torch.nn.init.normal_(network[1].bias)
    return TappedNetwork(network, taps=(), head="3", preprocess=Preprocess(Preprocessing(1, None, (0.3,), (0.4,))))


@pytest.mark.parametrize("count", [2, 7])
def test_batch_norm_by_batches_is_the_formula(count):
    pixels = np.random.default_rng(count).integers(0, 256, size=(count, 1, 2, 2), dtype=np.uint8)
    network = statistical_network()
    weight, bias, matrix, shift = (tensor.detach().double().numpy() for tensor in network.network.parameters())
    x = (pixels.reshape(count, 4) / 255.0 - 0.3) / 0.4
    expected = np.zeros((count, 4))
    for column in range(4):
        mean = sum(x[:, column]) / count
        variance = sum((value - mean) ** 2 for value in x[:, column]) / count
        expected[:, column] = (x[:, column] - mean) / (variance + 0.01) ** 0.5 * weight[column] + bias[column]
    outputs = Source("s", network, batch_norm="batch").outputs(torch.from_numpy(pixels), ("embedding", "logits"))
    np.testing.assert_allclose(outputs["embedding"].numpy(), expected, atol=1e-5)
    np.testing.assert_allclose(outputs["logits"].numpy(), expected @ matrix.T + shift, atol=1e-5)


def test_a_source_that_goes_by_batches_never_changes():
    source = Source("digits", make_network(), batch_norm="batch")
    state, identity = copy.deepcopy(source.network.state_dict()), source.identity()
    alone = source.outputs(images(6)[:2], ("logits",))["logits"]
    for _ in range(3):
        together = source.outputs(images(6), ("logits",))["logits"]
    assert not torch.allclose(together[:2], alone, atol=1e-3)
    with torch.no_grad():
        assert torch.equal(together, copy.deepcopy(source.network).train()(images(6)).logits)
    for name, tensor in source.network.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    assert not any(module.training for module in source.network.modules())
    assert source.identity() == identity


def test_a_source_that_goes_by_batches_is_itself_again_after_an_error():
    source = Source("digits", make_network(), batch_norm="batch")
    with pytest.raises(InputError, match="images have 2 channels"):
        source.outputs(torch.zeros(3, 2, 8, 8, dtype=torch.uint8), ("logits",))
    norms = [module for module in source.network.modules() if isinstance(module, torch.nn.BatchNorm2d)]
    assert len(norms) == 3
    assert all(norm.track_running_stats and not norm.training for norm in norms)


def test_identity_tells_of_batches_only_where_they_count():
    usual, other = Source("a", make_network()).identity(), Source("a", make_network(), batch_norm="batch").identity()
    assert other == usual | {"batch_norm": "batch"}
    assert "batch_norm" not in usual


def test_what_has_no_batch_norm_cannot_go_by_batches():
    network = TappedNetwork(
        torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(4, 3)),
        taps=(),
        head="1",
        preprocess=Preprocess(Preprocessing(1, None, (0.3,), (0.4,))),
    )
    with pytest.raises(InputError, match=r"^sources\.plain\.batch_norm is 'batch', but Sequential has no batch norm"):
        Source("plain", network, batch_norm="batch")


def test_load_source_passes_the_kind_of_batch_norm_on(tmp_path):
    path = tmp_path / "one.safetensors"
    path.write_bytes(export_bytes(make_network(), settings=SETTINGS, classes=5))
    for kind in ("eval", "batch"):
        assert load_source("one", SourceSettings(weights=str(path), live=True, batch_norm=kind)).batch_norm == kind


def test_a_source_that_is_placed_lies_with_channels_last_and_says_the_same():
    wise = Source("wise", make_network())
    images = torch.randint(0, 256, (5, 1, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    before, identity = wise.outputs(images, ("logits",))["logits"], wise.identity()
    assert wise.place("cpu") is wise
    convolutions = [weight for weight in wise.network.parameters() if weight.ndim == 4 and min(weight.shape[:2]) > 1]
    assert convolutions
    assert all(weight.is_contiguous(memory_format=torch.channels_last) for weight in convolutions)
    torch.testing.assert_close(wise.outputs(images, ("logits",))["logits"], before)
    assert wise.identity() == identity
