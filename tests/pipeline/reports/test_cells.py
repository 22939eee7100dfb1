"""Lines of the table: a row each or, where an axis is spread over columns, all that differ in nothing else."""

from dataclasses import replace

import pytest

from pipeline.planning.experiment import load_experiment
from pipeline.reports.cells import line_texts, table, wide_meaning
from pipeline.reports.costs import Cost
from pipeline.reports.report import Ending, Report, Row
from pipeline.statistics import Change, summarise
from sskt.errors import InputError

AXIS = "training.lr"
FILE = """
storage: runs/x
dataset: {kind: digits}
sources: {mnist: {weights: mnist.safetensors}}
target: {architecture: small_cnn}
training: {epochs: 1}
methods:
  - {method: scratch}
  - {method: sskt, label: mine, sources: [mnist], grid: {alpha: [0.5, 1.0]}}
  - {method: finetune, sources: [mnist]}
grid: {training.lr: [0.1, 0.2], target: [{architecture: small_cnn}, {architecture: resnet20}]}
across: training.lr
seeds: [0, 1, 2]
"""


def row(name="scratch", *, lr=None, scores=(), **more):
    point = {} if lr is None else {AXIS: lr}
    made = Row(f"{name} {lr}", "sskt", name=name, wanted=3, point=point, scores=dict(enumerate(scores)), **more)
    made.summary = summarise(list(scores)) if scores else None
    return made


def report(*rows):
    return Report("small", "accuracy", list(rows), [], (), Cost(), across=AXIS)


def ending(state):
    return Ending(
        run_key="x",
        label="x",
        method="x",
        sources=(),
        seed=0,
        state=state,
        epoch=0,
        epochs=1,
        validation=None,
        point={},
    )


def test_what_differs_in_one_axis_is_one_line_and_every_row_is_in_it():
    said = report(
        row(lr=0.1, scores=(80.0, 82.0, 84.0)),
        row("mine", lr=0.1, scores=(84.0, 85.0, 86.0), change=Change(3.0, 1.0, 5.0, 3)),
        row("none", scores=(50.0, 50.0, 50.0), change=Change(-32.0, -33.0, -31.0, 3)),
        row(lr=0.2, scores=(70.0,)),
        row("mine", lr=0.2, change=None, unfinished=[ending("failed")]),
        row("late", lr=0.2, scores=(71.0, 73.0), change=Change(2.0, -1.0, 5.0, 2)),
    )
    lines = [
        ("trial", "lr 0.1", "lr 0.2", "any"),
        ("scratch", "82.0 ± 2.0", "70.0 (1 of 3 seeds)", ""),
        ("mine", "85.0 ± 1.0 (+3.0 helps)", "- (1 failed)", ""),
        ("none", "", "", "50.0 ± 0.0 (-32.0 hurts)"),
        ("late", "", "72.0 ± 1.4 (2 of 3 seeds, +2.0)", ""),
    ]
    assert table(said) == lines
    texts = line_texts(said)
    assert list(texts) == ["scratch 0.1", "scratch 0.2", "mine 0.1", "mine 0.2", "none None", "late 0.2"]
    assert texts["mine 0.1"] == texts["mine 0.2"] == "| mine | 85.0 ± 1.0 (+3.0 helps) | - (1 failed) |  |"
    assert "over seeds (1 to 3)" in wide_meaning(said)
    assert "over seeds (3)" in wide_meaning(report(row(lr=0.1, scores=(1.0, 2.0, 3.0))))
    assert "over seeds (0)" in wide_meaning(report(row(lr=0.1)))


def test_without_an_axis_every_row_is_a_line():
    said = replace(report(row(lr=0.1, scores=(80.0, 82.0, 84.0))), across=None)
    assert table(said)[1] == ("scratch 0.1", "82.0 ± 2.0", "3", "", "")
    assert line_texts(said) == {"scratch 0.1": "| scratch 0.1 | 82.0 ± 2.0 | 3 |  |  |"}


def load(tmp_path, *changes):
    file = tmp_path / "mine.yaml"
    file.write_text(FILE)
    return load_experiment(str(file), changes=changes)


def test_a_trial_is_called_by_all_but_that_axis(tmp_path):
    experiment = load(tmp_path)
    names = [experiment.name_of(trial) for trial in experiment.trials()[::3]]
    one, two = (f"target {{architecture: {kind}}}" for kind in ("small_cnn", "resnet20"))
    mine = [f"mine, {target}, alpha {alpha}" for target in (one, two) for alpha in (0.5, 1.0)]
    alone, tuned = ([f"{name}, {one}", f"{name}, {two}"] for name in ("scratch", "finetune mnist"))
    assert names == alone * 2 + mine * 2 + tuned * 2
    by_target = load(tmp_path, "across=target")
    assert by_target.name_of(by_target.trials()[0]) == "scratch, lr 0.1"
    plain = load(tmp_path, "across=null")
    assert [plain.name_of(trial) for trial in plain.trials()] == [trial.label for trial in plain.trials()]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (["across=training.lrr"], "across: axis 'training.lrr' is unknown; did you mean 'training.lr'?"),
        (["across=target.architecture"], "across: axis 'target.architecture' is unknown"),
        (["across=3"], "field across is 3; it has to be text"),
        (["grid={}", "methods.mine=null"], "across: axis 'training.lr' is unknown; known: none"),
        (
            ["grid={}", "methods.mine=null", "search={by: random, trials: 2, axes: {training.lr: [0.1, 0.2]}}"],
            "across is 'training.lr' with a search, whose table has one row of each method; leave it out",
        ),
    ],
)
def test_an_axis_that_is_not_there_is_named(tmp_path, changes, says):
    with pytest.raises(InputError) as caught:
        load(tmp_path, *changes)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
