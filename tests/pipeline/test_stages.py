import shutil

import pytest

from cluster import s3_client
from cluster.resources import ResourceError
from pipeline.planning.experiment import load_experiment
from pipeline.stages import Stages, found_plan
from sskt.errors import DamagedError, InputError
from tests.object_store import proxy_of, times, use


def test_every_stage_says_in_a_line_what_it_did_and_what_it_found(experiment_file):
    said: list[str] = []
    stages = Stages(load_experiment(str(experiment_file)), said.append)
    plan = stages.pack()
    assert stages.train(plan.trials[0], plan, in_process=True) > 0
    assert stages.train(plan.trials[0], plan, in_process=True) == 0
    assert said[0].startswith("pack    pictures")
    assert "180 images (108 to train on, 36 validation, 36 test)" in said[0]
    assert said[1].startswith("train   scratch, seed 0: test accuracy ")
    assert said[2].startswith(said[1].partition(" (")[0])
    assert "(found)" in said[2]


def test_a_profile_is_kept_with_the_result_and_told_again(experiment_file):
    said: list[str] = []
    stages = Stages(load_experiment(str(experiment_file)), said.append)
    plan = stages.pack()
    for _ in range(2):
        stages.train(plan.trials[0], plan, in_process=True, profiled=True)
    assert "part of a step" in said[2] and "bare step" in said[2]
    assert said[2] == said[4]
    stages.train(plan.trials[1], plan, in_process=True)
    stages.train(plan.trials[1], plan, in_process=True, profiled=True)
    assert said[-1] == "profile no profile was taken when this was trained"


def test_a_precision_that_slows_this_processor_down_is_said_before_training(experiment_file, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    for number, (precision, imitated) in enumerate([("bfloat16", True), ("bfloat16", False), ("float32", True)]):
        monkeypatch.setattr("pipeline.sweeps.sweep.imitates_bfloat16", lambda imitated=imitated: imitated)
        said: list[str] = []
        changes = [f"target.precision={precision}", f"seeds=[{number}]"]
        stages = Stages(load_experiment(str(experiment_file), changes=changes), said.append)
        plan = stages.pack()
        stages.train(plan.trials[0], plan, in_process=True)
        assert ("--set target.precision=float32" in said[1]) == (number == 0)


def test_only_a_trained_network_can_be_exported(experiment_file, tmp_path):
    stages = Stages(load_experiment(str(experiment_file)), lambda line: None)
    plan = stages.pack()
    with pytest.raises(DamagedError, match="is missing"):
        stages.export(plan.trials[0], str(tmp_path / "x.safetensors"))


def test_a_storage_that_cannot_be_opened_is_bad_input(experiment_file):
    with pytest.raises(InputError, match="the scheme 'ftp' is unknown"):
        Stages(load_experiment(str(experiment_file), changes=["storage=ftp://x"]), lambda line: None)


def test_what_ran_elsewhere_is_reported_on_machines_it_does_not_fit(experiment_file, monkeypatch):
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    experiment = load_experiment(str(experiment_file), changes=["resources.trial_node_labels={kind: large}"])
    with pytest.raises(ResourceError, match="kind"):
        Stages(experiment, lambda line: None, writes="claims")
    assert Stages(experiment, lambda line: None, writes=None).pack().trials


def test_left_out_images_are_named(experiment_file, pictures, tmp_path):
    shutil.copytree(pictures, tmp_path / "pictures")
    (tmp_path / "pictures" / "dark" / "broken.png").write_bytes(b"no picture")
    changes = [f"dataset.path={tmp_path}/pictures", "dataset.max_unreadable=1"]
    said: list[str] = []
    Stages(load_experiment(str(experiment_file), changes=changes), said.append).pack()
    assert said[1] == "pack    left out: dark/broken.png"


def test_packing_says_how_a_dataset_grew_or_why_it_did_not(experiment_file, pictures, tmp_path):
    root = shutil.copytree(pictures, tmp_path / "pictures")
    said: list[str] = []
    stages = Stages(load_experiment(str(experiment_file), changes=[f"dataset.path={root}"]), said.append)
    stages.pack()
    for number in range(10):
        shutil.copy(root / "light" / f"{number}.png", root / "dark" / f"more{number}.png")
    for _ in range(2):
        stages.pack()
    (root / "dark" / "0.png").unlink()
    stages.pack()
    grown = "190 images (114 to train on, 38 validation, 38 test), grown from 108 to 114 training images ["
    assert grown in said[1]
    assert said[1] == said[2]
    assert "grown" not in said[0] + said[3]
    assert said[4].startswith("pack    not grown from ")
    assert said[4].endswith(": image 'dark/0.png' is gone")


@pytest.mark.parametrize("encoding", ["fp16", "auto"])
def test_what_is_packed_and_chosen_is_found_and_nothing_is_made(experiment_file, encoding):
    experiment = load_experiment(str(experiment_file), changes=[f"cache.encoding={encoding}"])
    stages = Stages(experiment, lambda line: None)
    with pytest.raises(InputError, match=r"small: its dataset, as it is now, is not packed on .*; run `pack`"):
        found_plan(experiment, stages.storage)
    assert list(stages.storage.keys("")) == []
    made = stages.pack()
    before = {key: stages.storage.read(key) for key in stages.storage.keys("")}
    found = found_plan(experiment, stages.storage)
    assert found.caches == made.caches
    assert [planned.run_key for planned in found.trials] == [planned.run_key for planned in made.trials]
    assert {key: stages.storage.read(key) for key in stages.storage.keys("")} == before
    for key in list(stages.storage.keys("pilots")):
        stages.storage.delete(key)
        with pytest.raises(InputError, match=r"cache.encoding is 'auto', and none is chosen for 'wise'; run `pack`"):
            found_plan(experiment, stages.storage)


def test_a_dataset_that_changed_since_it_was_packed_is_not_found(experiment_file, pictures, tmp_path):
    root = shutil.copytree(pictures, tmp_path / "pictures")
    experiment = load_experiment(str(experiment_file), changes=[f"dataset.path={root}"])
    stages = Stages(experiment, lambda line: None)
    stages.pack()
    (root / "dark" / "0.png").unlink()
    with pytest.raises(InputError, match="as it is now, is not packed"):
        found_plan(experiment, stages.storage)


@pytest.mark.timeout(60)
def test_a_stage_whose_storage_had_to_be_asked_again_says_so(experiment_file, object_store, bucket_uri, monkeypatch):
    monkeypatch.setattr(s3_client.random, "random", lambda: 0.0)  # no pauses
    said: list[str] = []
    with proxy_of(object_store.port) as proxy:
        use(proxy.endpoint, monkeypatch)
        stages = Stages(load_experiment(str(experiment_file), changes=[f"storage={bucket_uri}"]), said.append)
        before = len(proxy.requests)
        proxy.rule = times(3, "503", method="PUT", part="datasets/")
        plan = stages.pack()
        packing = len(proxy.requests) - before
        stages.train(plan.trials[0], plan, in_process=True)
    assert [line for line in said if "storage" in line] == [f"pack    storage: {packing} requests, 3 retried"]
    assert said[1].startswith("pack    storage")


def test_stages_are_logged_from_their_beginning_to_their_end(experiment_file, monkeypatch, log_lines):
    stages = Stages(load_experiment(str(experiment_file)), lambda line: None)
    stages.pack()
    monkeypatch.setattr("pipeline.stages.load_sources", lambda experiment: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        stages.pack()
    monkeypatch.setattr("pipeline.stages.load_sources", _refuses)
    with pytest.raises(InputError):
        stages.pack()
    told = log_lines()
    assert {(line["experiment"], line["stage"]) for line in told} == {("small", "pack")}
    begins = [line["event"] for line in told]
    assert begins == ["stage_begin", "stage_end", "stage_begin", "stage_begin", "stage_end"]
    assert (told[1]["requests"], told[1]["retried"], told[1]["level"]) == (0, 0, "info")
    assert (told[4]["reason"], told[4]["level"]) == ("no such source", "error")


def _refuses(experiment):
    raise InputError("no such source")
