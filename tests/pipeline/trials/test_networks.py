from types import SimpleNamespace

import torch

from pipeline.trials.networks import export_trained, network_key
from sskt.export import import_bytes
from tests.sskt.learning import CLASSES, TARGET, method


def test_a_trained_target_is_a_file_by_its_run_key():
    assert network_key("0123") == "networks/0123.safetensors"
    trained = method("scratch")
    planned = SimpleNamespace(trial=SimpleNamespace(target=TARGET), facts=SimpleNamespace(classes=CLASSES))
    again = import_bytes(export_trained(planned, trained))
    for name, value in trained.export().network.state_dict().items():
        assert torch.equal(value, again.network.state_dict()[name])
