from pathlib import Path

import pytest

from pipeline.experiment import load_experiment
from sskt.errors import InputError
from sskt.methods.sskt import SSKTOptions

GOOD = """
storage: runs/x
dataset: {kind: digits, image_size: 16}
views: {ops: [pad_crop: 2], count: 4}
sources:
  mnist: {weights: mnist.safetensors}
  lite0: {architecture: efficientnet_lite0, weights: package, input: {size: 64}}
target: {architecture: small_cnn, options: {width: 16}}
training: {epochs: 2, batch_size: 64, lr: 5e-2}
methods:
  - {method: scratch}
  - {method: sskt, sources: [mnist, lite0], learn_from: all}
seeds: [0, 1]
"""


def load(tmp_path: Path, text: str = GOOD, *changes: str):
    file = tmp_path / "mine.yaml"
    file.write_text(text)
    return load_experiment(str(file), changes=changes)


def test_a_file_becomes_trials_in_its_order(tmp_path):
    experiment = load(tmp_path)
    assert experiment.name == "mine"
    assert experiment.training.lr == 0.05
    trials = experiment.trials()
    assert [(trial.label, trial.seed) for trial in trials] == [
        ("scratch", 0), ("scratch", 1),
        ("sskt mnist+lite0, learn_from all", 0), ("sskt mnist+lite0, learn_from all", 1),
    ]  # fmt: skip
    assert trials[2].options == SSKTOptions(learn_from="all")
    assert trials[2].sources == ("mnist", "lite0")


def test_the_shipped_experiments_are_right_and_short():
    files = sorted(Path("experiments").glob("*.yaml"))
    assert files
    for file in files:
        assert load_experiment(str(file)).trials()
        assert len(file.read_text().splitlines()) <= 40


def test_a_grid_multiplies_and_an_axis_of_options_concerns_those_who_have_it(tmp_path):
    grid = "grid: {training.lr: [0.1, 0.2], options.alpha: [0.5, 1.0, 2.0], target.options.width: [8]}"
    trials = load(tmp_path, GOOD + grid).trials()
    scratch = [trial for trial in trials if trial.method == "scratch"]
    sskt = [trial for trial in trials if trial.method == "sskt"]
    assert (len(scratch), len(sskt)) == (2 * 2, 2 * 3 * 2)
    assert {(t.training.lr, t.options.alpha) for t in sskt} == {(lr, a) for lr in (0.1, 0.2) for a in (0.5, 1.0, 2.0)}
    assert {trial.target.options["width"] for trial in trials} == {8}
    assert scratch[0].label == "scratch, lr 0.1, width 8"


def test_changes_are_checked_like_the_file(tmp_path):
    experiment = load(tmp_path, GOOD, "training.lr=1e-3", "seeds=[7]", "methods.1.alpha=2.5", "cache.encoding=fp32")
    assert (experiment.training.lr, experiment.seeds, experiment.cache.encoding) == (0.001, (7,), "fp32")
    assert experiment.trials()[1].options.alpha == 2.5


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("lr: 5e-2", "lr: fast", "field training.lr is 'fast'; it has to be a number"),
        ("lr: 5e-2", "lr: -1", "training.lr is -1.0; it has to be above 0"),
        ("lr: 5e-2", "lrr: 1", "field 'training.lrr' is unknown; did you mean 'training.lr'?"),
        ("epochs: 2, ", "", "field training.epochs; it is missing and has no default"),
        ("method: sskt", "method: sskt2", "method 'sskt2' is unknown; did you mean 'sskt'?"),
        ("{method: scratch}", "{name: scratch}", "methods[0].method is None; it has to be the name of a method"),
        ("[mnist, lite0]", "[mnist, lite1]", "methods[1].sources: source 'lite1' is unknown; did you mean 'lite0'?"),
        ("[mnist, lite0]", "[mnist, mnist]", "each named once"),
        ("learn_from: all", "learn_from: x", "field methods[1].learn_from is 'x'; it has to be 'labelled' or 'all'"),
        ("learn_from: all", "alpa: 1", "field 'methods[1].alpa' is unknown; did you mean 'methods[1].alpha'?"),
        ("learn_from: all", "alpha: fast", "field methods[1].alpha is 'fast'; it has to be a number"),
        ("learn_from: all", "alpha: -1", "methods[1]: alpha is -1.0; it has to be at least 0"),
        ("{method: scratch}", "{method: scratch, alpha: 1}", "field 'methods[0].alpha' is unknown; known: none"),
        ("seeds: [0, 1]", "seeds: [0, 0]", "seeds are [0, 0]; name at least one, each once"),
        ("seeds: [0, 1]", "seeds: []", "name at least one"),
        ("kind: digits", "kind: digit", "field dataset.kind is 'digit'; it has to be"),
        ("count: 4", "count: 0", "views.count is 0; it has to be at least 1"),
        ("  - {method: scratch}", "  - {method: scratch}\n  - {method: scratch}", "two entries are called 'scratch'"),
        ("seeds: [0, 1]", "grid: {lr: [1]}", "axis 'lr' is unknown; an axis starts with training, target, options"),
        ("seeds: [0, 1]", "grid: {training.lr: []}", "axis 'training.lr' has no values"),
        ("seeds: [0, 1]", "grid: {training.lrr: [1]}", "field 'training.lrr' is unknown"),
        ("seeds: [0, 1]", "resources: {workers: 3}", "training.batch_size is 64, resources.workers 3"),
        ("seeds: [0, 1]", "resources: {workers: 4}\ngrid: {training.batch_size: [6]}", "batch_size is 6, resources"),
        ("seeds: [0, 1]", "resources: {workers: 2, gpus_per_trial: 0.5}", "several workers need whole GPUs"),
        ("seeds: [0, 1]", "cache: {encoding: fp8}", "encoding 'fp8' is unknown"),
        ("seeds: [0, 1]", "sweeds: [0]", "field 'sweeds' is unknown; did you mean 'seeds'?"),
        ("storage: runs/x", "", "field storage; it is missing and has no default"),
        ("seeds: [0, 1]", "seeds: [0\n", "this is not YAML"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line_that_names_the_file(tmp_path, old, new, says):
    assert old in GOOD
    with pytest.raises(InputError) as caught:
        load(tmp_path, GOOD.replace(old, new))
    message = str(caught.value)
    assert message.startswith(f"{tmp_path}/mine.yaml: ")
    assert says in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("training.lr", "write it as path=value"),
        ("training.lrr=1", "field 'training.lrr' is unknown"),
        ("methods.9.alpha=1", "there is no field 'methods.9.alpha'"),
        ("training.lr.x=1", "there is no field 'training.lr.x'"),
        ("nothing=1", "field 'nothing' is unknown"),
    ],
)
def test_a_wrong_change_is_named(tmp_path, change, says):
    with pytest.raises(InputError) as caught:
        load(tmp_path, GOOD, change)
    assert says in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.yaml: the experiment file cannot be read"):
        load_experiment(str(tmp_path / "nowhere.yaml"))
