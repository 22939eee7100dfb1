"""Taps on classifiers of any kind."""

import copy
import re
import weakref
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from sskt.errors import InputError
from sskt.networks.preprocess import Preprocess, Preprocessing
from sskt.networks.tapped import TappedNetwork, imitates_bfloat16, last_linear

PREPROCESS = Preprocess(Preprocessing(channels=1, size=None, mean=(0.5,), std=(0.5,)))


def make_network(*, bias: bool = True) -> nn.Sequential:
    """A convolution, batch normalisation whose output an in-place ReLU overwrites, and a head behind dropout."""
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(16, 5, bias=bias),
    )


def make_tapped(**choices) -> TappedNetwork:
    return TappedNetwork(make_network(**choices), taps=("1", "2"), head="6", preprocess=PREPROCESS)


def images(count: int = 3) -> Tensor:
    return torch.randint(0, 256, (count, 1, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def step_by_step(network: nn.Sequential, seen: Tensor) -> dict[str, Tensor]:
    values = {}
    for name, module in network.named_children():
        seen = module(seen.clone())
        values[name] = seen.clone()
    return values


def test_features_are_what_the_parts_give_though_the_next_one_works_in_place():
    tapped = make_tapped().eval()
    expected = step_by_step(tapped.network, PREPROCESS(images()))
    features = tapped(images())
    assert (features.taps[0] < 0).any()
    assert torch.equal(features.taps[0], expected["1"])
    assert torch.equal(features.taps[1], expected["2"])
    assert torch.equal(features.embedding, expected["5"])
    assert torch.equal(features.logits, expected["6"])
    assert (tapped.embedding_dim, tapped.classes) == (16, 5)


def test_without_taps_the_rest_is_the_same():
    tapped = make_tapped().eval()
    all_of_it, rest = tapped(images()), tapped(images(), with_taps=False)
    assert rest.taps == ()
    assert torch.equal(rest.embedding, all_of_it.embedding)
    assert torch.equal(rest.logits, all_of_it.logits)


def test_what_is_computed_in_half_the_bits_is_given_in_all_of_them():
    whole, half = make_tapped(), make_tapped()
    half.load_state_dict(whole.state_dict())
    half.computes_in = torch.bfloat16
    exact, rounded = whole.eval()(images()), half.eval()(images())
    for one, other in zip((*exact.taps, *exact[1:]), (*rounded.taps, *rounded[1:]), strict=True):
        assert other.dtype == torch.float32
        assert 0 < (one - other).abs().max() < 0.05
    rounded.logits.sum().backward()
    assert all(weight.grad is None or weight.grad.dtype == torch.float32 for weight in half.parameters())


@pytest.mark.parametrize(
    ("has", "imitates"),
    [
        ({"architecture": "x86_64", "avx2": True}, True),
        ({"avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, True),
        ({"avx512_bf16": True, "amx_bf16": False}, False),
        ({"avx512_bf16": False, "amx_bf16": True}, False),
        ({"architecture": "aarch64", "bf16": True}, False),
        ({"architecture": "aarch64", "bf16": False}, True),
    ],
)
def test_a_processor_without_instructions_for_bfloat16_imitates_it(has, imitates, monkeypatch):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: has)
    assert imitates_bfloat16() == imitates


def test_torch_says_of_this_processor_what_the_system_says():
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.is_file():
        pytest.skip("this system has no such file")
    flags = set(re.findall(r"\w+", cpuinfo.read_text()))
    assert imitates_bfloat16() == flags.isdisjoint({"avx512_bf16", "amx_bf16", "bf16"})


def test_gradients_flow_back_through_taps():
    tapped = make_tapped()
    tapped(images()).taps[0].square().sum().backward()
    assert tapped.network[0].weight.grad.abs().sum() > 0
    assert tapped.network[6].weight.grad is None


def test_a_copy_fills_its_own_features():
    tapped = make_tapped().eval()
    before = tapped(images())
    other = copy.deepcopy(tapped)
    with torch.no_grad():
        for parameter in other.network.parameters():
            parameter.mul_(3)
    expected = step_by_step(other.network, PREPROCESS(images()))
    assert torch.equal(other(images()).taps[0], expected["1"])
    assert torch.equal(other(images()).embedding, expected["5"])
    assert not torch.equal(expected["1"], before.taps[0])
    assert torch.equal(tapped(images()).taps[0], before.taps[0])


def test_nothing_is_kept_after_forward():
    tapped = make_tapped().eval()
    features = tapped(images())
    watched = [weakref.ref(tensor) for tensor in (*features.taps, features.embedding, features.logits)]
    del features
    assert [watch() for watch in watched] == [None] * 4
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in tapped.modules())


def test_no_hooks_are_left_by_a_forward_that_fails():
    tapped = make_tapped()
    with pytest.raises(RuntimeError):
        tapped(torch.zeros(1, 1, 0, 0, dtype=torch.uint8))
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in tapped.modules())


def test_unknown_names_are_listed():
    network = nn.Sequential()
    network.add_module("stage1", nn.Conv2d(1, 4, 3))
    network.add_module("fc", nn.Linear(4, 2))
    with pytest.raises(InputError, match="tap 'stage_1' is unknown; did you mean 'stage1'\\? known: fc, stage1"):
        TappedNetwork(network, taps=("stage_1",), head="fc", preprocess=PREPROCESS)
    with pytest.raises(InputError, match="head 'fcc' is unknown; did you mean 'fc'\\? known: fc"):
        TappedNetwork(network, taps=(), head="fcc", preprocess=PREPROCESS)
    with pytest.raises(InputError, match="head 'stage1' is unknown; known: fc"):
        TappedNetwork(network, taps=(), head="stage1", preprocess=PREPROCESS)


def test_a_part_that_takes_no_part_is_named():
    network = make_network()
    network[6].spare = nn.Linear(3, 3)
    with pytest.raises(InputError, match=r"'6\.spare' of Sequential took no part"):
        TappedNetwork(network, taps=("6.spare",), head="6", preprocess=PREPROCESS)(images())


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(36, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.fc(x.flatten(1)), x


def test_logits_have_to_be_one_tensor():
    with pytest.raises(InputError, match="the network returned a tuple"):
        TappedNetwork(Pair(), taps=(), head="fc", preprocess=PREPROCESS)(images())


class AlwaysRandom(nn.AdaptiveAvgPool2d):
    """Draws in eval mode too, as sampling layers do."""

    def __init__(self) -> None:
        super().__init__(2)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x + torch.rand(()))


def test_tap_shapes_leave_no_trace():
    tapped = make_tapped()
    tapped.network[3] = AlwaysRandom()
    tapped.network[5].eval()
    modes = [module.training for module in tapped.modules()]
    state = copy.deepcopy(tapped.state_dict())
    random = torch.get_rng_state()
    assert [shape.channels for shape in tapped.tap_shapes(8, 3)] == [4, 4]
    assert [module.training for module in tapped.modules()] == modes
    assert torch.equal(torch.get_rng_state(), random)
    for name, tensor in tapped.state_dict().items():
        assert torch.equal(tensor, state[name]), name


def test_taps_have_to_be_one_tensor():
    network = nn.Sequential(Pair(), nn.Identity())
    with pytest.raises(InputError, match="tap '0' gives a tuple; it has to give one tensor"):
        TappedNetwork(network, taps=("0",), head="0.fc", preprocess=PREPROCESS)(images())


def test_tap_shapes_need_maps():
    tapped = TappedNetwork(make_network(), taps=("1", "4"), head="6", preprocess=PREPROCESS)
    with pytest.raises(InputError, match="tap '4' gives the shape \\[1, 16\\]"):
        tapped.tap_shapes(8, 1)


@pytest.mark.parametrize("bias", [True, False])
def test_replace_head_changes_the_head_alone(bias):
    tapped = make_tapped(bias=bias).eval()
    state = copy.deepcopy(tapped.state_dict())
    tapped.replace_head(9)
    assert tapped.classes == 9
    assert tapped(images()).logits.shape == (3, 9)
    assert (tapped.network[6].bias is not None) == bias
    for name, tensor in tapped.network.state_dict().items():
        assert name.startswith("6.") or torch.equal(tensor, state[f"network.{name}"]), name


def test_the_last_linear_layer_is_the_head_unless_there_is_none():
    assert last_linear(nn.Sequential(nn.Linear(2, 3), nn.Sequential(nn.ReLU(), nn.Linear(3, 4)), nn.Tanh())) == "1.1"
    with pytest.raises(InputError, match="Sequential has no linear layer"):
        last_linear(nn.Sequential(nn.Conv2d(1, 1, 1)))


def test_gradients_are_the_same_inside_distributed_data_parallel(tmp_path):
    tapped = TappedNetwork(make_network(), taps=("1",), head="6", preprocess=PREPROCESS)
    tapped.network[5].p = 0.0
    plain = copy.deepcopy(tapped)
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/group", rank=0, world_size=1)
    try:
        for network in (plain, DistributedDataParallel(tapped)):
            features = network(images())
            (features.logits.square().sum() + features.taps[0].sum()).backward()
    finally:
        dist.destroy_process_group()
    for ours, theirs in zip(plain.parameters(), tapped.parameters(), strict=True):
        assert torch.allclose(ours.grad, theirs.grad)


def deep() -> TappedNetwork:
    """Blocks named 1 and 10, for a name is no mere beginning of another; the head inside a part of its own."""
    network = nn.Sequential()
    for name in ("block1", "block10"):
        network.add_module(name, nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1), nn.Dropout(0.5)))
    network.add_module("classifier", nn.Sequential(nn.Flatten(), nn.Dropout(0.5), nn.Linear(36, 2)))
    return TappedNetwork(network, taps=(), head="classifier.2", preprocess=PREPROCESS)


def training_parts(tapped: TappedNetwork) -> set[str]:
    return {name for name, part in tapped.network.named_modules() if part.training}


def test_a_frozen_part_neither_learns_nor_leaves_eval_mode():
    tapped = deep()
    everything = {name for name, _ in tapped.network.named_modules()}
    tapped.freeze(("block1", "block10.1"))
    below = {"block1", "block1.0", "block1.1", "block1.2", "block10.1"}
    for network in (tapped, copy.deepcopy(tapped)):
        assert training_parts(network) == everything - below
        assert training_parts(network.eval()) == set()
        assert network.train() is network
        assert training_parts(network) == everything - below
        # As part of another module too, which is how it is trained.
        assert training_parts(nn.ModuleList([network]).eval().train()[0]) == everything - below
        learns = {name for name, parameter in network.network.named_parameters() if parameter.requires_grad}
        assert learns == {"block10.0.weight", "block10.0.bias", "classifier.2.weight", "classifier.2.bias"}


def test_freezing_does_not_leave_eval_mode():
    tapped = deep().eval()
    tapped.freeze(("block1",))
    assert training_parts(tapped) == set()


@pytest.mark.parametrize("part", ["classifier.2", "classifier"])
def test_the_head_cannot_be_frozen(part):
    with pytest.raises(InputError, match=rf"^frozen part '{part}' holds the head 'classifier\.2', which is new"):
        deep().freeze(("block1", part))


def test_unknown_parts_are_listed():
    with pytest.raises(InputError, match=r"^frozen part 'blok10' is unknown; did you mean 'block10'\? known: block1, "):
        deep().freeze(("blok10",))
