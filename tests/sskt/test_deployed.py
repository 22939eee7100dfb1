"""Programs say what the network says, in a process that cannot see this project."""

import io
import subprocess
import sys

import pytest
import torch

from sskt.deployed import largest_difference, onnx_bytes, program_bytes, sample_images, to_program
from sskt.networks import ImageFormat, build_target
from sskt.settings import InputSettings, TargetSettings

GREY = ImageFormat(channels=1, size=12, mean=(0.4,), std=(0.2,))
COLOUR = ImageFormat(channels=3, size=16, mean=(0.5, 0.4, 0.3), std=(0.2, 0.25, 0.5))
RESIZED = InputSettings(size=20, mean=(0.1,), std=(0.7,))
NETWORKS = {
    "plain": (GREY, TargetSettings(architecture="small_cnn", options={"width": 6})),
    "resized, other channels": (COLOUR, TargetSettings(architecture="resnet20", input=RESIZED)),
    "torchvision": (COLOUR, TargetSettings(architecture="shufflenet_v2_x0_5", input=InputSettings(scale=2.0))),
}  # fmt: skip
STRANGER = """
import sys
for name in ("sskt", "pipeline", "cluster"):
    sys.modules[name] = None
import numpy, onnxruntime, torch
images = numpy.load("images.npy")
program = torch.export.load("model.pt2").module()
session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
with torch.no_grad():
    numpy.save("pt2.npy", program(torch.from_numpy(images)).numpy())
numpy.save("onnx.npy", session.run(["logits"], {"images": images})[0])
"""


def network_of(name):
    image, settings = NETWORKS[name]
    with torch.random.fork_rng():
        torch.manual_seed(1)
        network = build_target(settings, classes=5, image=image)
        network(sample_images(16, channels=image.channels, size=image.size))  # statistics of its own
    return network.eval(), image


@pytest.mark.parametrize("name", NETWORKS)
def test_programs_give_the_networks_logits_for_any_number_of_images(name):
    network, image = network_of(name)
    program = to_program(network, channels=image.channels, size=image.size)
    loaded = torch.export.load(io.BytesIO(program_bytes(program))).module()
    for count in (1, 2, 7):
        images = sample_images(count, channels=image.channels, size=image.size)
        with torch.no_grad():
            assert largest_difference(loaded(images), network(images).logits) <= 1e-6


def test_a_stranger_needs_torch_or_an_onnx_runtime_alone(tmp_path):
    import numpy as np

    network, image = network_of("resized, other channels")
    program = to_program(network, channels=image.channels, size=image.size)
    (tmp_path / "model.pt2").write_bytes(program_bytes(program))
    (tmp_path / "model.onnx").write_bytes(onnx_bytes(program))
    images = sample_images(5, channels=3, size=16)
    np.save(tmp_path / "images.npy", images.numpy())
    done = subprocess.run([sys.executable, "-c", STRANGER], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    with torch.no_grad():
        wanted = network(images).logits
    for name in ("pt2.npy", "onnx.npy"):
        assert (torch.from_numpy(np.load(tmp_path / name)) - wanted).abs().max() <= 1e-4


def test_nothing_is_said_while_exporting(capfd):
    network, image = network_of("plain")
    onnx_bytes(to_program(network, channels=image.channels, size=image.size))
    assert capfd.readouterr() == ("", "")


def test_differences_are_parts_of_what_is_large():
    assert largest_difference(torch.tensor([[100.0, 1.0]]), torch.tensor([[101.0, 1.0]])) == pytest.approx(1 / 101)
    assert largest_difference(torch.tensor([[0.5]]), torch.tensor([[0.25]])) == 0.25
    assert largest_difference(torch.tensor([[float("nan")]]), torch.tensor([[1.0]])) != 0
