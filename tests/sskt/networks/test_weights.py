"""Weights in files of all ages."""

import io
import pickletools
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from sskt.errors import InputError
from sskt.networks.weights import fingerprint, load_into, load_state_dict


def make_network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(8, 3))


def same(ours, theirs) -> bool:
    return list(ours) == list(theirs) and all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.parametrize("suffix", [".pt", ".pth", ".pth.tar", ".bin", ".PTH"])
@pytest.mark.parametrize("key", [None, "state_dict", "model"])
def test_reads_what_torch_saved(tmp_path, suffix, key):
    state = make_network().state_dict()
    content = state if key is None else {"epoch": 3, "arch": "mine", key: state}
    path = tmp_path / f"weights{suffix}"
    torch.save(content, path)
    assert same(load_state_dict(str(path)), state)


def test_reads_safetensors(tmp_path):
    state = make_network().state_dict()
    safetensors.torch.save_file(state, tmp_path / "weights.safetensors")
    loaded = load_state_dict(str(tmp_path / "weights.safetensors"))
    assert same({name: loaded[name] for name in state}, state)


def test_strips_what_data_parallel_puts_before_names(tmp_path):
    network = make_network()
    torch.save({"state_dict": nn.DataParallel(network).state_dict()}, tmp_path / "weights.pth.tar")
    assert same(load_state_dict(str(tmp_path / "weights.pth.tar")), network.state_dict())


def as_python_2_wrote(data: bytes) -> bytes:
    """Turn the text strings of a legacy torch file into byte strings, which is what text was in Python 2."""
    stream, result = io.BytesIO(data), b""
    for _ in range(5):  # a legacy file starts with five pickles; raw numbers follow
        start = stream.tell()
        positions = [(opcode.name, argument, position) for opcode, argument, position in pickletools.genops(stream)]
        for (name, argument, position), (_, _, end) in zip(
            positions, [*positions[1:], (None, None, stream.tell())], strict=True
        ):
            old = data[position:end]
            text = argument.encode("latin1") if name == "BINUNICODE" else b""
            result += b"U" + bytes([len(text)]) + text if name == "BINUNICODE" else old
        assert stream.tell() > start
    return result + stream.read()


def test_reads_files_that_python_2_wrote(tmp_path):
    state = dict(make_network().state_dict())
    buffer = io.BytesIO()
    content = {"arch": "r\xe9seau", "epoch": 90, "state_dict": {f"module.{name}": state[name] for name in state}}
    torch.save(content, buffer, _use_new_zipfile_serialization=False, pickle_protocol=2)
    path = tmp_path / "resnet50_places365.pth.tar"
    path.write_bytes(as_python_2_wrote(buffer.getvalue()))
    with pytest.raises(UnicodeDecodeError):
        torch.load(path, weights_only=True)
    assert same(load_state_dict(str(path)), state)


def mischief(path: str) -> None:
    Path(path).write_text("it ran")


class Mischief:
    """Unpickling it writes a file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return mischief, (str(self.path),)


def test_code_in_a_file_does_not_run(tmp_path):
    mark = tmp_path / "mark"
    path = tmp_path / "weights.pt"
    torch.save({"state_dict": {"a": torch.zeros(1)}, "extra": Mischief(mark)}, path)
    with pytest.raises(
        InputError,
        match=r"weights '.*weights\.pt' hold \S+\.mischief beside tensors, and reading that would run code .*",
    ):
        load_state_dict(str(path))
    assert not mark.exists()
    torch.load(path, weights_only=False)
    assert mark.read_text() == "it ran"


def test_code_in_a_file_of_python_2_does_not_run_either(tmp_path):
    mark = tmp_path / "mark"
    buffer = io.BytesIO()
    content = {"arch": "r\xe9seau", "state_dict": {"a": torch.zeros(1)}, "extra": Mischief(mark)}
    torch.save(content, buffer, _use_new_zipfile_serialization=False, pickle_protocol=2)
    (tmp_path / "old.pth").write_bytes(as_python_2_wrote(buffer.getvalue()))
    with pytest.raises(InputError, match=r"old\.pth' hold \S+\.mischief beside tensors"):
        load_state_dict(str(tmp_path / "old.pth"))
    assert not mark.exists()
    torch.load(tmp_path / "old.pth", weights_only=False, encoding="latin1")
    assert mark.read_text() == "it ran"


def test_a_whole_module_is_refused(tmp_path):
    torch.save(make_network(), tmp_path / "whole.pth")
    with pytest.raises(InputError, match=r"whole\.pth' hold torch\.nn\.modules\.container\.Sequential beside tensors"):
        load_state_dict(str(tmp_path / "whole.pth"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.pth", b"not weights", "are not a file that torch.save wrote, or a damaged one; get the file again"),
        ("b.pth", b"", "are not a file that torch.save wrote, or a damaged one"),
        ("c.safetensors", b"not weights", "are not a safetensors file"),
        ("d.safetensors", b"", "are not a safetensors file"),
        ("e.txt", b"text", r"end in '\.txt'; they have to be a file in \.safetensors, \.pt, \.pth, \.tar, \.bin"),
    ],
)
def test_other_files_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=f"weights '.*{name}' ({message})"):
        load_state_dict(str(tmp_path / name))


def test_half_a_file_is_named(tmp_path):
    torch.save(make_network().state_dict(), tmp_path / "whole.pt")
    data = (tmp_path / "whole.pt").read_bytes()
    (tmp_path / "half.pt").write_bytes(data[: len(data) // 2])
    with pytest.raises(InputError, match=r"half\.pt' are not a file that torch.save wrote, or a damaged one"):
        load_state_dict(str(tmp_path / "half.pt"))


@pytest.mark.parametrize("content", [{"epoch": 3}, [torch.zeros(1)], {}, torch.zeros(2), {"a": {"b": torch.zeros(1)}}])
def test_what_is_no_state_dict_is_named(tmp_path, content):
    torch.save(content, tmp_path / "weights.pt")
    with pytest.raises(InputError, match="hold something else; they have to be a state dict"):
        load_state_dict(str(tmp_path / "weights.pt"))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"weights '.*missing\.pt' are not there"):
        load_state_dict(str(tmp_path / "missing.pt"))


def test_load_into_takes_all_or_nothing():
    network, other = make_network(), make_network()
    load_into(network, other.state_dict(), label="weights")
    assert fingerprint(network) == fingerprint(other)
    before = fingerprint(network)
    state = dict(make_network().state_dict())
    lacking = {name: tensor for name, tensor in state.items() if name not in ("0.bias", "3.weight")}
    with pytest.raises(InputError, match=r"weights 'x' do not fit the architecture: they lack '0.bias', '3.weight'$"):
        load_into(network, lacking, label="weights 'x'")
    with pytest.raises(InputError, match=r"they hold unknown 'a0', 'a1', 'a2' and 2 more$"):
        load_into(network, state | {f"a{i}": torch.zeros(1) for i in range(5)}, label="weights")
    with pytest.raises(InputError, match=r"'3.bias' has the shape \[4\] in them and \[3\] in the network"):
        load_into(network, state | {"3.bias": torch.zeros(4)}, label="weights")
    assert fingerprint(network) == before


def test_load_into_keeps_the_part_it_is_told_to():
    network, other = make_network(), make_network()
    head = network[3].weight.detach().clone()
    state = dict(other.state_dict()) | {"3.weight": torch.zeros(100, 8), "3.bias": torch.zeros(100)}
    load_into(network, state, label="weights", keep="3")
    assert torch.equal(network[3].weight, head)
    assert torch.equal(network[0].weight, other[0].weight)


def test_files_from_before_the_counter_of_batches_load():
    network, other = make_network(), make_network()
    old = {name: tensor for name, tensor in other.state_dict().items() if "num_batches" not in name}
    load_into(network, old, label="weights")
    assert fingerprint(network) == fingerprint(other)


def test_equal_weights_have_equal_fingerprints(tmp_path):
    network = make_network()
    first, second = tmp_path / "first.pt", tmp_path / "second.pt"
    torch.save(network.state_dict(), first)
    first.rename(second)
    other = make_network()
    load_into(other, load_state_dict(str(second)), label="weights")
    assert fingerprint(other) == fingerprint(network)
    assert len(fingerprint(network)) == 64


def change_a_weight(network: nn.Sequential) -> None:
    network[3].weight.data[1, 2] = torch.nextafter(network[3].weight.data[1, 2], torch.tensor(10.0))


def change_a_buffer(network: nn.Sequential) -> None:
    network[1].running_var[0] = 2.0


def change_a_type(network: nn.Sequential) -> None:
    network[3].bias.data = network[3].bias.data.double()


def change_a_shape(network: nn.Sequential) -> None:
    network[3].weight.data = network[3].weight.data.reshape(8, 3)


def change_a_name(network: nn.Sequential) -> None:
    network.add_module("4", network[3])
    network[3] = nn.Identity()


@pytest.mark.parametrize("change", [change_a_weight, change_a_buffer, change_a_type, change_a_shape, change_a_name])
def test_any_change_changes_the_fingerprint(change):
    network = make_network()
    before = fingerprint(network)
    change(network)
    assert fingerprint(network) != before
