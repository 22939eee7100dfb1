import pytest

from pipeline.experiment import load_experiment
from pipeline.stages import Stages
from sskt.errors import DamagedError, InputError


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


def test_only_a_trained_network_can_be_exported(experiment_file, tmp_path):
    stages = Stages(load_experiment(str(experiment_file)), lambda line: None)
    plan = stages.pack()
    with pytest.raises(DamagedError, match="is missing"):
        stages.export(plan.trials[0], str(tmp_path / "x.safetensors"))


def test_a_storage_that_cannot_be_opened_is_bad_input(experiment_file):
    with pytest.raises(InputError, match="the scheme 'ftp' is unknown"):
        Stages(load_experiment(str(experiment_file), changes=["storage=ftp://x"]), lambda line: None)


def test_left_out_images_are_named(experiment_file, pictures, tmp_path):
    import shutil

    shutil.copytree(pictures, tmp_path / "pictures")
    (tmp_path / "pictures" / "dark" / "broken.png").write_bytes(b"no picture")
    changes = [f"dataset.path={tmp_path}/pictures", "dataset.max_unreadable=1"]
    said: list[str] = []
    Stages(load_experiment(str(experiment_file), changes=changes), said.append).pack()
    assert said[1] == "pack    left out: dark/broken.png"
