"""What loggers hear of trials: settings, words, Ray's own callback, and a packed sweep with TensorBoard's files."""

import os
import struct
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import pytest
from ray.tune.logger import LoggerCallback
from tensorboardX.proto.event_pb2 import Event

from pipeline.__main__ import main
from pipeline.planning.experiment import load_experiment
from pipeline.planning.settings import LogSettings, MlflowSettings, TensorBoardSettings, WandbSettings
from pipeline.stages import Stages
from pipeline.sweeps.sweep import choose_runner
from pipeline.trials.loggers import PACKAGES, check_loggers, make_loggers, show, spelled, tell_in_words, where_told
from pipeline.trials.results import read_result
from sskt.errors import InputError


def events(folder: Path) -> list[Event]:
    """What stands in TensorBoard's files of a folder: records of length, checksum, event, checksum."""
    found = []
    for file in sorted(folder.iterdir()):
        data = file.read_bytes()
        while data:
            (length,) = struct.unpack("<Q", data[:8])
            found.append(Event.FromString(data[12 : 12 + length]))
            data = data[16 + length :]
    return found


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Points of every curve, in the order they were written."""
    points = defaultdict(list)
    for event in events(folder):
        for value in event.summary.value:
            if value.HasField("simple_value"):
                points[value.tag.removeprefix("ray/tune/")].append((event.step, value.simple_value))
    return points


def plan_of(file, *changes):
    return Stages(load_experiment(str(file), changes=changes), lambda line: None).pack()


@pytest.mark.parametrize(
    ("log_to", "says"),
    [
        ("{}", "log_to names nobody; it has to be such as {tensorboard: {}}, or left out"),
        ("{tensorbord: {}}", "'log_to.tensorbord' is unknown; did you mean 'log_to.tensorboard'?"),
        ("{tensorboard: {dir: x}}", "'log_to.tensorboard.dir' is unknown; did you mean 'log_to.tensorboard.folder'?"),
        ("{mlflow: {}}", "field log_to.mlflow.tracking_uri; it is missing and has no default"),
        ("{mlflow: {tracking_uri: 'http://me:secret@host'}}", "log_to.mlflow.tracking_uri holds an '@'"),
        ("{wandb: {}}", "field log_to.wandb.project; it is missing and has no default"),
        ("[tensorboard]", "field log_to is ['tensorboard']; it has to hold named fields"),
    ],
)
def test_what_nobody_can_hear_is_refused_in_a_line(experiment_file, log_to, says, capsys):
    assert main(["sweep", str(experiment_file), "--set", f"log_to={log_to}"]) == 2
    told = capsys.readouterr().err
    assert says in told
    assert "secret" not in told
    assert len(told.splitlines()) == 1


def test_nobody_hears_the_plain_runner(experiment_file, capsys):
    changes = ["--set", "log_to={tensorboard: {}}", "--set", "resources.runner=plain"]
    assert main(["sweep", str(experiment_file), *changes]) == 2
    assert "resources.runner is 'plain', by which Ray's loggers hear nothing" in capsys.readouterr().err
    resources = load_experiment(str(experiment_file)).resources
    assert choose_runner(resources, trials=1, local=True)[0] == "plain"
    assert choose_runner(resources, trials=1, local=True, logged=True)[0] == "packed"


def test_train_says_that_it_is_heard_by_nobody(experiment_file, capsys):
    arguments = ["train", str(experiment_file), "--trial", "0", "--in-process", "--set", "log_to={tensorboard: {}}"]
    assert main(arguments) == 0
    assert "log_to is heard of by `sweep` alone" in capsys.readouterr().out


@pytest.mark.parametrize(("name", "settings"), [("mlflow", "{tracking_uri: x}"), ("wandb", "{project: x}")])
def test_a_missing_package_is_a_line_before_anything_starts(experiment_file, name, settings, capsys, monkeypatch):
    monkeypatch.setitem(PACKAGES, name, ("no_such_module", "no-such-package"))
    assert main(["sweep", str(experiment_file), "--set", f"log_to={{{name}: {settings}}}"]) == 2
    told = capsys.readouterr()
    needs = f"error: log_to.{name} needs the package no_such_module, which is missing; pip install no-such-package\n"
    assert (told.out, told.err) == ("", needs)
    assert not list((experiment_file.parent / "store").glob("datasets/*"))


def test_a_folder_is_no_package(tmp_path, monkeypatch):
    (tmp_path / "no_such_module").mkdir()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(PACKAGES, "wandb", ("no_such_module", "wandb"))
    with pytest.raises(InputError, match="missing"):
        check_loggers(LogSettings(wandb=WandbSettings(project="p")))


def test_a_key_that_ray_would_show_is_refused_and_not_shown(monkeypatch):
    monkeypatch.setitem(PACKAGES, "wandb", ("tensorboardX", "wandb"))  # stands in for one that is installed
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    settings = LogSettings(wandb=WandbSettings(project="p"))
    check_loggers(settings)
    monkeypatch.setenv("WANDB_API_KEY", "very-secret")
    with pytest.raises(InputError, match="wandb login") as refused:
        check_loggers(settings)
    assert "very-secret" not in str(refused.value)


def test_where_it_is_told_is_said():
    settings = LogSettings(
        tensorboard=TensorBoardSettings(),
        mlflow=MlflowSettings(tracking_uri="http://h"),
        wandb=WandbSettings(project="p"),
    )
    assert where_told(settings) == [
        f"epochs are shown by: tensorboard --logdir {os.getcwd()}/runs/tensorboard",  # noqa: PTH109
        "epochs go to MLflow at http://h",
        "epochs go to the project 'p' of Weights & Biases",
    ]


def test_who_hears_is_no_part_of_what_is_trained(experiment_file):
    quiet = plan_of(experiment_file)
    told = plan_of(experiment_file, "log_to={tensorboard: {folder: x}, mlflow: {tracking_uri: 'http://h'}}")
    assert told.experiment.log_to.mlflow.tracking_uri == "http://h"
    assert [one.run_key for one in told.trials] == [one.run_key for one in quiet.trials]
    assert told.caches == quiet.caches


def test_a_trial_is_shown_under_its_label_seed_and_key_with_its_settings(experiment_file, tmp_path):
    planned = plan_of(experiment_file, "grid={training.lr: [0.1, 0.2]}").trials[-1]
    shown = show(planned, "7", experiment="a b/../c", folder=str(tmp_path / "board"))
    assert str(shown) == f"sskt wise, learn_from all, lr 0.2/seed 1/{planned.run_key}"
    shown.init_local_path()
    made = [path for path in (tmp_path / "board").rglob("*") if not list(path.iterdir())]
    assert made == [tmp_path / "board" / "a_b_.._c" / "sskt_wise_learn_from_all_lr_0.2" / "seed_1" / planned.run_key]
    settings = spelled(planned)
    assert {"method": "sskt", "seed": 1, "sources": '["wise"]', "training.lr": 0.2}.items() <= settings.items()
    assert settings["target.options.width"] == 4
    assert not {"label", "entry", "point"} & settings.keys()
    assert all(isinstance(value, (bool, int, float, str)) for value in settings.values())


class Heard(LoggerCallback):
    """Writes down what it hears."""

    def __init__(self, fails=""):
        self.heard, self.fails = [], fails

    def _hear(self, *what):
        self.heard.append(what)
        if what[0] == self.fails:
            raise ConnectionError("the server\nis gone")

    def setup(self, *_, **__):
        self._hear("setup")

    def log_trial_start(self, trial):
        self._hear("start", str(trial))

    def log_trial_result(self, iteration, trial, result):
        self._hear("result", iteration, result)

    def log_trial_end(self, trial, failed=False):
        self._hear("end", failed)


def told_of(planned, folder, fails="", state="done"):
    """What a logger hears of a trial of two epochs, and what is said."""
    logger, said = Heard(fails), []
    callback = tell_in_words(
        logger, "small", folder=str(folder), errors=(OSError,), name="mlflow", say=said.append
    )  # fmt: skip
    trial = SimpleNamespace(config={"planned": planned}, trial_id="7", last_result={"state": state})
    callback.setup()
    callback.on_trial_start(0, [], trial)
    for iteration, report in enumerate([{"epoch": 2, "loss": 0.5}, {}, {"epoch": 3, "loss": 0.25}]):
        callback.on_trial_result(iteration, [], trial, {"metrics": report, "pid": 3, "training_iteration": iteration})
    callback.on_trial_complete(3, [], trial)
    return logger.heard, said


def test_epochs_are_the_steps_and_only_figures_of_the_training_are_told(experiment_file, tmp_path):
    planned = plan_of(experiment_file).trials[0]
    heard, said = told_of(planned, tmp_path)
    assert heard == [
        ("setup",),
        ("start", f"scratch/seed 0/{planned.run_key}"),
        ("result", 2, {"training_iteration": 2, "loss": 0.5}),
        ("result", 3, {"training_iteration": 3, "loss": 0.25}),
        ("end", False),
    ]
    assert said == []
    assert told_of(planned, tmp_path, state="failed")[0][-1] == ("end", True)


@pytest.mark.parametrize(("fails", "hears"), [("setup", 1), ("start", 2), ("result", 3), ("end", 5)])
def test_a_logger_out_of_reach_is_left_alone_from_then_on(experiment_file, tmp_path, fails, hears):
    heard, said = told_of(plan_of(experiment_file).trials[0], tmp_path, fails=fails)
    assert len(heard) == hears
    assert said == ["sweep   log_to.mlflow hears no more: the server"]


def test_rays_own_callback_writes_a_point_an_epoch(experiment_file, tmp_path):
    planned = plan_of(experiment_file).trials[0]
    settings = LogSettings(tensorboard=TensorBoardSettings(folder=str(tmp_path / "board")))
    (callback,) = make_loggers(settings, "small", say=pytest.fail)
    trial = SimpleNamespace(config={"planned": planned}, trial_id="7", last_result={"state": "done"})
    callback.setup()
    callback.on_trial_start(0, [], trial)
    for epoch in (1, 2):
        metrics = {"epoch": epoch, "loss": 1 / epoch, "watch/x": 2.0}
        callback.on_trial_result(0, [], trial, {"metrics": metrics, "training_iteration": 7})
    callback.on_trial_complete(0, [], trial)
    folder = tmp_path / "board" / "small" / "scratch" / "seed_0" / planned.run_key
    assert curves(folder) == {"loss": [(1, 1.0), (2, 0.5)], "watch/x": [(1, 2.0), (2, 2.0)]}
    assert any(value.tag.startswith("_hparams_") for event in events(folder) for value in event.summary.value)


@pytest.mark.usefixtures("ray_session")
def test_a_packed_sweep_writes_tensorboards_files(experiment_file, tmp_path, capsys):
    board = tmp_path / "board"
    assert main(["sweep", str(experiment_file), "--set", f"log_to={{tensorboard: {{folder: {board}}}}}"]) == 0
    assert f"epochs are shown by: tensorboard --logdir {board}" in capsys.readouterr().out
    plan, storage = plan_of(experiment_file), Stages(load_experiment(str(experiment_file)), print).storage
    folders = {file.parent for file in board.rglob("events.*")}
    assert {folder.name for folder in folders} == {planned.run_key for planned in plan.trials}
    for folder in folders:
        history = read_result(storage, folder.name)["history"]
        for name, points in curves(folder).items():
            assert [step for step, _ in points] == [1, 2, 3]
            recorded = [metrics[name] for metrics in history]
            assert [value for _, value in points] == pytest.approx(recorded, rel=1e-5), name
        assert "validation_accuracy" in curves(folder)
