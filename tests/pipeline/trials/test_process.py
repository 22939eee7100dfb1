import pytest
import torch
from torch import nn

from cluster.resources import Resources
from pipeline.planning.settings import ResourceSettings
from pipeline.sweeps.sweep import make_demand
from pipeline.trials.process import Process, prepared, reset_process
from pipeline.trials.runners import Demand, process_of
from sskt.networks import TappedNetwork
from tests.sskt.learning import feed, method, training

CPU = Process(device=torch.device("cpu"), threads=1)


def test_what_an_earlier_trial_has_set_is_forgotten():
    before = torch.get_num_threads()
    try:
        torch.set_default_dtype(torch.float64)
        torch.manual_seed(7)
        reset_process(2)
        assert torch.get_default_dtype() == torch.float32
        assert torch.get_num_threads() == 2
        drawn = torch.rand(3)
        reset_process(2)
        assert torch.equal(drawn, torch.rand(3))
    finally:
        reset_process(before)


def test_a_module_is_tied_to_its_peers_after_it_is_laid_out():
    model, seen = method("scratch").student, []

    def tie(module: nn.Module) -> nn.Module:
        weight = next(part for part in module.modules() if isinstance(part, TappedNetwork)).network.stage2[0].weight
        seen.append(weight.is_contiguous(memory_format=torch.channels_last))
        return nn.Sequential(module)

    process = Process(device=CPU.device, threads=1, channels_last=True, prepare=tie)
    wrapped = prepared(model, process=process, feed=feed(training()), rows=4)
    assert seen == [True]
    assert wrapped[0] is model


def test_what_is_compiled_has_seen_images_of_the_set(monkeypatch):
    shown = []
    monkeypatch.setattr("sskt.compiling.compile_targets", lambda module, images, mode: shown.append((images, mode)))
    served = feed(training())
    process = Process(device=CPU.device, threads=1, compile="default")
    prepared(method("scratch").student, process=process, feed=served, rows=70)
    ((images, mode),) = shown
    assert mode == "default"
    assert torch.equal(images[60:], served.set.images[:10])


@pytest.mark.parametrize(
    ("gpus", "asked", "expected"), [(0, None, True), (1, None, False), (0, False, False), (1, True, True)]
)
def test_targets_lie_with_channels_last_on_a_cpu_unless_told_otherwise(gpus, asked, expected):
    demand = Demand(need=Resources(cpus=1, gpus=gpus), channels_last=asked)
    assert process_of(demand).channels_last is expected


def test_what_an_experiment_says_of_layout_and_buckets_reaches_its_trials():
    demand = make_demand(ResourceSettings(channels_last=False, bucket_mb=3), "plain")
    assert (demand.channels_last, demand.bucket_mb) == (False, 3)
