from dataclasses import replace

from pipeline.canonical import plain
from pipeline.planning.experiment import load_experiment
from pipeline.planning.run_keys import said
from sskt.methods.sskt import SSKTOptions
from sskt.settings import TargetSettings

FIRST = {"architecture", "weights", "frozen", "options", "input"}
"""Settings of a target when run keys began."""


def test_a_setting_that_came_later_is_said_where_it_differs_alone(experiment_file):
    trial = load_experiment(str(experiment_file)).possible_trials()[0]
    assert set(plain(said(trial))["target"]) == FIRST
    halved = replace(trial, target=replace(trial.target, precision="bfloat16"))
    assert plain(said(halved))["target"] == plain(said(trial))["target"] | {"precision": "bfloat16"}


def test_every_setting_of_a_target_is_said_once_it_is_not_the_default():
    assert set(vars(TargetSettings(architecture="x"))) == FIRST | {"precision"}


def test_an_option_that_came_later_is_said_where_it_differs_alone(experiment_file):
    trial = next(one for one in load_experiment(str(experiment_file)).possible_trials() if one.method == "sskt")
    options = {**vars(trial.options), "heads": "transfer"}
    whole, some = (replace(trial, options=SSKTOptions(**options | {"taps": taps})) for taps in (None, (0, 1)))
    assert plain(said(whole))["options"] == plain({name: options[name] for name in options if name != "taps"})
    assert plain(said(some))["options"] == plain(said(whole))["options"] | {"taps": [0, 1]}


def test_where_a_trial_stands_in_its_file_is_not_said(experiment_file):
    trial = load_experiment(str(experiment_file)).possible_trials()[0]
    moved = replace(trial, label="other", entry=7, point={"training.lr": 1})
    assert said(moved) == said(trial)
    assert said(replace(trial, seed=trial.seed + 1)) != said(trial)
