"""Which experiments stream their images, and what that changes."""

import re

import pytest

from pipeline.packing import pack as packing
from pipeline.planning import feeding
from pipeline.planning.experiment import load_experiment
from pipeline.planning.feeding import resident_bytes
from pipeline.stages import Stages, found_plan
from sskt.errors import InputError


@pytest.fixture
def small_parts(monkeypatch):
    """Ten images a part."""
    monkeypatch.setattr(packing, "_PART_BYTES", 12 * 12 * 10)


def planned(file, *changes):
    lines = []
    stages = Stages(load_experiment(str(file), changes=changes), lines.append)
    return stages.pack(), lines


def test_by_default_a_small_set_is_resident_and_its_keys_say_nothing_of_it(experiment_file):
    auto, lines = planned(experiment_file)
    resident, _ = planned(experiment_file, "resources.feed=resident")
    assert not auto.streamed
    assert [one.run_key for one in auto.trials] == [one.run_key for one in resident.trials]
    assert all("feed" not in one.spec for one in auto.trials)
    assert not any("streamed" in line for line in lines)


def test_a_streamed_set_has_keys_of_its_own_which_name_what_the_order_depends_on(experiment_file, small_parts):
    resident, _ = planned(experiment_file)
    streamed, lines = planned(experiment_file, "resources.feed=streamed")
    assert streamed.streamed
    assert not {one.run_key for one in streamed.trials} & {one.run_key for one in resident.trials}
    assert {str(one.spec["feed"]) for one in streamed.trials} == {"{'kind': 'streamed', 'window': 16, 'part_rows': 10}"}
    rest = [{name: part for name, part in one.spec.items() if name != "feed"} for one in streamed.trials]
    assert rest == [one.spec for one in resident.trials]
    assert "pack    images are streamed, as resources.feed says; shuffled within 16 parts, 0.023 MB" in lines


def test_auto_goes_by_bytes_alone_so_that_keys_are_the_same_on_every_machine(experiment_file, monkeypatch):
    """180 images of 144 bytes; 108 of the pool, whose 3 views have 4 logits of 2 bytes."""
    plan, _ = planned(experiment_file)
    size = resident_bytes(plan.experiment, plan.packed, plan.caches)
    assert size == 180 * 144 + plan.packed.pool * 3 * 8
    for bound, streamed in ((size, False), (size - 1, True)):
        monkeypatch.setattr(feeding, "RESIDENT_GB", bound / 1e9)
        plan, lines = planned(experiment_file)
        assert plan.streamed == streamed
        assert any("for they and their labels take 2.85e-05 GB" in line for line in lines) == streamed
        assert planned(experiment_file, "resources.feed=resident")[0].streamed is False
        stages = Stages(load_experiment(str(experiment_file)), lambda line: None)
        assert found_plan(stages.experiment, stages.storage).streamed == streamed, "whoever reads the file next"


@pytest.mark.parametrize(
    ("entry", "change", "reason"),
    [
        ("method: lsp, sources: [wise], neighbours: 3", "training.pool_batch_size=16", "the 3 nearest neighbours"),
        ("method: kd, sources: [wise], learn_from: all", "training.mix=mixup", "training.mix is 'mixup'"),
        ("method: crd, sources: [wise]", "sources.wise.live=true", r"live sources \(wise\)"),
    ],
)
def test_what_cannot_stream_is_refused_before_anything_runs(experiment_file, source_file, entry, change, reason):
    from tests.pipeline.trials.test_trials import three_classes, with_methods

    three = three_classes(experiment_file.parent / "three.safetensors")
    experiment_file.write_text(re.sub(r"wise: .*", f"wise: {{weights: {three}}}", experiment_file.read_text()))
    file = with_methods(experiment_file, entry)
    assert planned(file, change)[0].trials
    with pytest.raises(
        InputError, match=rf"methods: .*images are streamed.*{reason}.*set resources.feed to 'resident'"
    ):
        planned(file, change, "resources.feed=streamed")
