import time
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.planning.experiment import LAPTOP, load_experiment
from pipeline.planning.space import draw
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
    files = sorted(Path("experiments").rglob("*.yaml"))
    assert files
    for file in files:
        assert load_experiment(str(file)).possible_trials()
        assert len(file.read_text().splitlines()) <= 48


def test_a_grid_multiplies_and_an_axis_of_options_concerns_those_who_have_it(tmp_path):
    grid = "grid: {training.lr: [0.1, 0.2], options.alpha: [0.5, 1.0, 2.0], target.options.width: [8]}"
    trials = load(tmp_path, GOOD + grid).trials()
    scratch = [trial for trial in trials if trial.method == "scratch"]
    sskt = [trial for trial in trials if trial.method == "sskt"]
    assert (len(scratch), len(sskt)) == (2 * 2, 2 * 3 * 2)
    assert {(t.training.lr, t.options.alpha) for t in sskt} == {(lr, a) for lr in (0.1, 0.2) for a in (0.5, 1.0, 2.0)}
    assert {trial.target.options["width"] for trial in trials} == {8}
    assert scratch[0].label == "scratch, lr 0.1, width 8"


SEARCH = (
    GOOD
    + """
search:
  by: random
  trials: 5
  axes:
    training.lr: {low: 0.001, high: 0.1, log: true}
    options.alpha: {low: 0.5, high: 2.0, when: {options.heads: transfer}}
    options.heads: [linear, transfer]
"""
)


def test_an_entry_has_axes_of_its_own_and_conditions_leave_no_trial_twice(tmp_path):
    own = "heads: [linear, transfer], width: {values: [8, 16], when: {heads: transfer}}"
    own = f"{{method: sskt, sources: [mnist], grid: {{{own}}}}}"
    schedule = (
        "{training.schedule: [cosine, steps], training.milestones: {values: [[1]], when: {training.schedule: steps}}}"
    )
    text = GOOD.replace("{method: sskt, sources: [mnist, lite0], learn_from: all}", own) + f"grid: {schedule}"
    labels = [trial.label for trial in load(tmp_path, text).trials()[::2]]
    starts = [
        "scratch",
        *(f"sskt mnist, heads {rest}" for rest in ("linear", "transfer, width 8", "transfer, width 16")),
    ]
    ends = ("schedule cosine", "schedule steps, milestones [1]")
    assert sorted(labels) == sorted(
        [f"scratch, {end}" for end in ends]
        + [f"sskt mnist, {end}, {start.partition(', ')[2]}" for start in starts[1:] for end in ends]
    )


def test_whole_targets_and_lists_of_sources_are_axes(tmp_path):
    text = GOOD.replace("sskt, sources: [mnist, lite0],", "sskt,")
    grid = "grid: {target: [{architecture: small_cnn}, {architecture: resnet20}], sources: [[mnist], [mnist, lite0]]}"
    trials = load(tmp_path, text + grid).trials()
    assert len(trials) == 2 * (2 + 4)
    assert trials[0].target.options == {}  # whole: nothing is left of the file's own
    assert {trial.sources for trial in trials if trial.method == "sskt"} == {("mnist",), ("mnist", "lite0")}
    assert trials[-1].label == "sskt mnist+lite0, learn_from all, target {architecture: resnet20}"


def test_points_differ_in_their_seeds_only_and_know_where_they_stand(tmp_path):
    trials = load(tmp_path, GOOD + "grid: {options.alpha: [0.5, 1.0]}").trials()
    assert [(trial.entry, trial.point, trial.seed) for trial in trials] == [
        (0, {}, 0), (0, {}, 1),
        (1, {"options.alpha": 0.5}, 0), (1, {"options.alpha": 0.5}, 1),
        (1, {"options.alpha": 1.0}, 0), (1, {"options.alpha": 1.0}, 1),
    ]  # fmt: skip
    assert trials[2].options is trials[3].options


def test_a_search_has_no_trials_of_its_own_but_possible_ones_at_the_corners(tmp_path):
    experiment = load(tmp_path, SEARCH)
    assert experiment.trials() == []
    assert [axis.path for axis in experiment.axes_of(0)] == ["training.lr"]
    possible = experiment.possible_trials()
    scratch = [trial for trial in possible if trial.entry == 0]
    assert [trial.training.lr for trial in scratch[:2]] == [0.001, 0.1]
    drawn = [draw(experiment.axes_of(0), number=number, seed=0)["training.lr"] for number in range(5)]
    assert [trial.training.lr for trial in scratch[2:]] == drawn
    corners = [trial for trial in possible if trial.entry == 1][:-5]
    assert {(t.training.lr, t.options.heads, t.options.alpha) for t in corners} == {
        (lr, *rest) for lr in (0.001, 0.1) for rest in (("linear", None), ("transfer", 0.5), ("transfer", 2.0))
    }
    assert len(corners) == 6
    assert {trial.seed for trial in possible} == {0}
    assert experiment.at(1, corners[0].point, seed=7) == replace(corners[0], seed=7)


def test_what_a_search_may_draw_is_checked_when_the_file_is_read(tmp_path):
    text = SEARCH.replace(
        "training.lr: {low: 0.001, high: 0.1, log: true}", "training.batch_size: {low: 8, high: 64, whole: true}"
    )
    assert load(tmp_path, text).possible_trials()
    with pytest.raises(InputError, match=r"training.batch_size is \d+, resources.workers 8"):  # the ends divide evenly
        load(tmp_path, text, "resources.workers=8")


def test_five_thousand_trials_take_no_time(tmp_path):
    rates = ", ".join(str(0.001 * at) for at in range(1, 101))
    text = GOOD.replace("  - {method: scratch}\n", "").replace("seeds: [0, 1]", "seeds: [0, 1, 2, 3, 4]")
    began = time.process_time()
    experiment = load(tmp_path, text + f"grid: {{training.lr: [{rates}], options.alpha: {list(range(1, 11))}}}")
    trials = experiment.trials()
    assert time.process_time() - began < 3
    assert len(trials) == 5000
    assert len({id(trial.target) for trial in trials}) == 1
    assert len({id(trial.training) for trial in trials}) == 100


def test_the_example_of_the_document_is_right(tmp_path):
    text = Path("docs/sweeps.md").read_text().partition("```yaml\n")[2].partition("```")[0]
    sources = "sources: {imagenet: {weights: a.pt}, places: {weights: b.pt}}\n"
    trials = load(tmp_path, "storage: x\ndataset: {kind: digits}\n" + sources + text).trials()
    points, targets, seeds = 2 * (1 + 2), 2, 3
    assert len(trials) == points * targets * seeds * (1 + 2 * 2 + 2 * 3)
    names = {trial.label for trial in trials}
    assert len(names) == len(trials) // seeds
    assert any(name.startswith("kd places, lr 0.05") and name.endswith("temperature 4.0") for name in names)


def test_changes_are_checked_like_the_file(tmp_path):
    experiment = load(tmp_path, GOOD, "training.lr=1e-3", "seeds=[7]", "methods.1.alpha=2.5", "cache.encoding=fp32")
    assert (experiment.training.lr, experiment.seeds, experiment.cache.encoding) == (0.001, (7,), "fp32")
    assert experiment.trials()[1].options.alpha == 2.5


def test_an_entry_is_changed_or_left_out_by_what_it_is_called(tmp_path):
    both = (
        "methods=[{method: scratch}, {method: sskt, sources: [mnist]}, {method: sskt, label: mine, sources: [mnist]}]"
    )
    by_name = load(tmp_path, GOOD, both, "methods.mine.alpha=2.5", "methods.sskt=null")
    assert [(trial.label, trial.method) for trial in by_name.trials()[::2]] == [
        ("scratch", "scratch"),
        ("mine", "sskt"),
    ]
    assert by_name.trials()[2].options.alpha == 2.5
    assert load(tmp_path, GOOD, both, "methods.2.alpha=2.5", "methods.1=null") == by_name
    replaced = load(tmp_path, GOOD, both, "methods.mine={method: ema}", "methods.sskt=null")
    assert [trial.method for trial in replaced.trials()[::2]] == ["scratch", "ema"]


SMALLER = GOOD + "laptop: {training.epochs: 1, views.count: 2, seeds: [3], sources.lite0.input: {size: 32}}\n"


def test_a_file_holds_smaller_settings_that_are_taken_when_asked_for(tmp_path):
    whole, smaller = load(tmp_path, SMALLER), load(tmp_path, SMALLER, LAPTOP)
    assert whole == load(tmp_path)
    assert smaller.name == "mine-laptop"
    assert (smaller.training.epochs, smaller.views.count, smaller.seeds) == (1, 2, (3,))
    assert smaller.sources["lite0"].input.size == 32
    assert (smaller.training.lr, smaller.methods) == (whole.training.lr, whole.methods)


def test_what_a_person_changes_comes_after_what_a_laptop_takes(tmp_path):
    changed = load(tmp_path, SMALLER, "training.epochs=5", LAPTOP)
    assert (changed.training.epochs, changed.seeds) == (5, (3,))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (GOOD, "laptop is {}; it has to hold smaller settings, such as `training.epochs: 2`"),
        (GOOD + "laptop: 3", "laptop is 3; it has to hold smaller settings"),
        (GOOD + "laptop: {training.epoch: 2}", "field 'training.epoch' is unknown; did you mean 'training.epochs'?"),
        (GOOD + "laptop: {trainin.epochs: 2}", "field 'trainin' is unknown; did you mean 'training'?"),
        (GOOD + "laptop: {methods.9.alpha: 2}", "laptop.methods.9.alpha: there is no field 'methods.9.alpha'"),
    ],
)
def test_wrong_smaller_settings_are_refused_in_one_line(tmp_path, text, says):
    with pytest.raises(InputError) as caught:
        load(tmp_path, text, LAPTOP)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


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
        ("seeds: [0, 1]", "grid: {lr: [1]}", "grid: axis 'lr' is unknown; did you mean 'training.lr'?"),
        ("seeds: [0, 1]", "grid: {training.lr: []}", "grid.training.lr: it has no values; give a list of at least one"),
        ("seeds: [0, 1]", "grid: {training.lrr: [1]}", "axis 'training.lrr' is unknown; did you mean 'training.lr'?"),
        ("seeds: [0, 1]", "resources: {workers: 3}", "training.batch_size is 64, resources.workers 3"),
        ("seeds: [0, 1]", "resources: {workers: 4}\ngrid: {training.batch_size: [6]}", "batch_size is 6, resources"),
        ("seeds: [0, 1]", "resources: {workers: 2, gpus_per_trial: 0.5}", "several workers need whole GPUs"),
        ("seeds: [0, 1]", "resources: {bucket_mb: 0}", "resources.bucket_mb is 0"),
        ("seeds: [0, 1]", "resources: {hung_after: 0.5}", "resources.hung_after is 0.5; it has to be at least 1"),
        ("seeds: [0, 1]", "resources: {memory_gb_per_trial: -1}", "memory_gb_per_trial is -1.0; it has to be"),
        ("seeds: [0, 1]", "resources: {node_cache_gb: -1}", "resources.node_cache_gb is -1.0; it has to be"),
        ("seeds: [0, 1]", "resources: {trial_node_labels: {zone: 1}}", "node_labels.zone is 1; it has to be text"),
        ("seeds: [0, 1]", "resources: {source_node_labels: {zone: 'in(a, b)'}}", "holds 'zone': 'in(a, b)'; names"),
        ("seeds: [0, 1]", "resources: {trial_node_labels: {zone: '!a'}}", "trial_node_labels holds 'zone': '!a'"),
        ("seeds: [0, 1]", "resources: {trial_node_labels: {'a b': c}}", "trial_node_labels holds 'a b': 'c'"),
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
        ("methods.9=null", "there is no field 'methods.9'"),
        ("methods.dml=null", "there is no field 'methods.dml'"),
        ("training.lr.x=1", "there is no field 'training.lr.x'"),
        ("nothing=1", "field 'nothing' is unknown"),
    ],
)
def test_a_wrong_change_is_named(tmp_path, change, says):
    with pytest.raises(InputError) as caught:
        load(tmp_path, GOOD, change)
    assert says in str(caught.value)


def test_a_name_that_several_entries_have_is_refused_with_their_numbers(tmp_path):
    several = "methods=[{method: scratch}, {method: sskt, sources: [mnist]}, {method: sskt, sources: [lite0]}]"
    with pytest.raises(InputError, match=r"several that are called 'sskt'; they are number 1, 2"):
        load(tmp_path, GOOD, several, "methods.sskt.alpha=2.5")


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (["grid={training.lr: [1]}"], "grid and search are both there; a search has its axes in search.axes"),
        (["search.trials=0"], "search.trials is 0; it has to be at least 1"),
        (["search.trials=null"], "search.trials is None with by 'random'; it has to be left out for 'grid'"),
        (["search.by=grid"], "search.trials is 5 with by 'grid'"),
        (["search.by=rand"], "field search.by is 'rand'; it has to be 'grid', 'random' or 'optuna'"),
        (["search.by=grid", "search.trials=null"], "methods[0]: axis 'training.lr' is a range; a grid needs a list"),
        (["search.axes={training.lr: [fast]}"], "field training.lr is 'fast'; it has to be a number"),
        (["search.axes={training.epochs: {low: 1, high: 3}}"], "training.epochs is 1.0; it has to be a whole number"),
        (["search.axes={options.alpha: {low: -1, high: 3}}"], "methods[1]: alpha is -1.0; it has to be at least 0"),
        (["search.axes={training.lr: {low: 1, high: .inf}}"], "field search.axes.training.lr.high is inf; it has to"),
        (["training.lr=.nan"], "field training.lr is nan; it has to be finite"),
        (["methods.1.grid={alpha: [1.0]}"], "methods[1].grid: the file has a `search`"),
        (["methods=[{method: scratch}, {method: scratch}]", "search.axes={}"], "two entries are called 'scratch'"),
        (["scheduler={kind: asha, grace: 2}"], "scheduler.grace is 2; it has to be below training.epochs, which is 2"),
        (["scheduler={kind: asha, every: 2}"], "scheduler.every goes with kind 'pbt'; kind is 'asha'"),
        (["scheduler={grace: 2}"], "scheduler.grace goes with kind 'asha'; kind is 'fifo'"),
        (["scheduler={kind: asha, factor: 1}"], "scheduler.factor is 1; it has to be at least 2"),
        (["scheduler={kind: pbt, quantile: 0.6}"], "scheduler.quantile is 0.6; it has to be above 0 and at most 0.5"),
        (["scheduler={kind: pbt, resample: 2}"], "scheduler.resample is 2.0; it has to be within 0 and 1"),
        (["scheduler.kind=pbt"], "methods[1]: axis 'options.heads' cannot change in mid-training"),
        (["search=null", "scheduler.kind=asha"], "scheduler.kind is 'asha' without a `search`; it has to be 'fifo'"),
        (
            ["search.by=optuna", "methods.1.method=lsp", "methods.1.sources=[mnist]", "search.axes={}",
             "methods.1.search={neighbours: {low: 2, high: 5, whole: true}}"],
            "methods[1]: axis 'options.neighbours' is a range, each of whose numbers of neighbours needs a graph",
        ),
    ],
)  # fmt: skip
def test_a_search_that_makes_no_sense_is_refused_in_one_line(tmp_path, changes, says):
    text = SEARCH.replace("learn_from: all", "") if "lsp" in str(changes) else SEARCH
    with pytest.raises(InputError) as caught:
        load(tmp_path, text, *changes)
    assert str(caught.value).startswith(f"{tmp_path}/mine.yaml: ")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.yaml: the experiment file cannot be read"):
        load_experiment(str(tmp_path / "nowhere.yaml"))


@pytest.mark.parametrize(
    ("changes", "expected"),
    [([], 32), (["resources.gpus_per_source_worker=1"], 256), (["cache.batch_size=7"], 7)],
)
def test_a_source_sees_as_many_views_at_once_as_its_device_likes(experiment_file, changes, expected):
    assert load_experiment(str(experiment_file), changes=changes).source_batch == expected
