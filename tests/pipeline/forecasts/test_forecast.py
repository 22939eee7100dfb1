import pytest

from cluster.storage import open_storage
from pipeline.__main__ import main
from pipeline.caches.labels import record_key
from pipeline.caches.segments import segments_of
from pipeline.forecasts.forecast import SHOWN, forecast, spoken, steps_of, time_line, trial_lines
from pipeline.planning.experiment import load_experiment
from pipeline.stages import Stages
from pipeline.sweeps.search import search_id
from pipeline.trials.checkpoints import Checkpoints
from pipeline.trials.results import Stopped, write_result, write_stopped
from pipeline.trials.trials import gather_materials, make_feed
from tests.pipeline.trials.test_trials import CPU, prepared, with_methods

POOL, VIEWS, LOGITS = 108, 3, 8  # of the small experiment: images, views, bytes of four fp16 logits
STEPS = 12  # of one of its trainings: 3 epochs of 4


def packed(file, *changes):
    experiment = load_experiment(str(file), changes=changes)
    return Stages(experiment, lambda line: None).pack(), open_storage(experiment.storage)


def lines_of(plan, storage):
    return list(forecast(plan.experiment, storage))


def starting(lines, start):
    return [line for line in lines if line.startswith(start)]


def record(storage, planned, *, seconds, **more):
    write_result(storage, planned.run_key, {"spec": planned.spec, "seconds": seconds} | more)


def test_before_the_data_are_packed_it_names_the_trials_and_makes_nothing(experiment_file, capsys, tmp_path):
    assert main(["sweep", str(experiment_file), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert "trials  4 (2 scratch, 2 sskt)\n        scratch, seed 0\n" in said
    assert "packed  nothing yet" in said
    assert "run `pack`" in said
    assert not (tmp_path / "store").exists()


def test_it_starts_no_ray(experiment_file, monkeypatch, capsys):
    packed(experiment_file)
    monkeypatch.setattr("cluster.session.start_session", None)
    monkeypatch.setattr("ray.init", None)
    assert main(["sweep", str(experiment_file), "--dry-run"]) == 0
    assert "runner  packed" in capsys.readouterr().out


def test_it_says_of_every_trial_how_far_it_is_and_makes_nothing(experiment_file):
    plan, storage = packed(experiment_file)
    record(storage, plan.trials[0], seconds=1.0)
    for epoch in (1, 2):
        Checkpoints(storage, plan.trials[1].run_key).save({"epoch": epoch})
    before = list(storage.objects(""))
    lines = lines_of(plan, storage)
    assert list(storage.objects("")) == before
    keys = [planned.run_key[:12] for planned in plan.trials]
    assert lines[:6] == [
        "trials  4 (2 scratch, 2 sskt)",
        f"        {keys[0]}  scratch, seed 0: done",
        f"        {keys[1]}  scratch, seed 1: at epoch 2 of 3",
        f"        {keys[2]}  sskt wise, learn_from all, seed 0: to do",
        f"        {keys[3]}  sskt wise, learn_from all, seed 1: to do",
        "        1 done, 1 begun, 2 to do",
    ]
    assert lines[-1] == "runner  packed, each in one process that is used again"


def test_the_caches_are_counted_shard_by_shard(experiment_file):
    plan, storage = prepared(experiment_file)
    held = f"cache   wise logits: {POOL} images x {VIEWS} views x {LOGITS} bytes = 0.00 MB"
    (segment,) = segments_of(storage, plan.caches["wise"]["logits"])
    count, whole = segment.shards, POOL * VIEWS
    assert starting(lines_of(plan, storage), "cache") == [
        f"{held}; {count} of {count} shards there", "cache   wise: 0 source passes to make",
    ]  # fmt: skip
    storage.delete(record_key(segment, 1))
    lost = len(segment.id_range(1)) * VIEWS
    assert 0 < lost < whole
    assert starting(lines_of(plan, storage), "cache") == [
        f"{held}; {count - 1} of {count} shards there", f"cache   wise: {lost} source passes to make",
    ]  # fmt: skip


def test_outputs_of_the_same_views_come_from_one_pass_and_turned_ones_from_others(experiment_file):
    plan, storage = packed(with_methods(experiment_file, *METHODS))
    lines = starting(lines_of(plan, storage), "cache")
    assert lines[-1] == f"cache   wise: {POOL * VIEWS * (1 + 3)} source passes to make"
    assert [f"{POOL} images x {3 * VIEWS} views" in line for line in lines[:-1]] == [False, False, True]


METHODS = [f"method: {said}, sources: [wise]" for said in ("sskt", "embed", "sskd, soft: 0, turned: 0")]


@pytest.mark.parametrize("changes", [[], ["training.steps_per_epoch=null"], ["training.labels_per_class=null"]])
def test_steps_are_those_of_the_feed(experiment_file, changes):
    changes = [*changes, "training.steps_per_epoch=null", "training.batch_size=10"]
    plan, storage = packed(experiment_file, *changes)
    planned = plan.trials[0]
    feed = make_feed(planned, gather_materials(plan, storage, [planned]), CPU)
    assert steps_of(planned.spec["trial"]["training"], plan.packed) == feed.steps_per_epoch * 3


def test_time_goes_by_results_of_the_same_data_and_method(experiment_file):
    plan, storage = packed(experiment_file, "resources.cpus_per_trial=0.5")
    assert starting(lines_of(plan, storage), "time") == ["time    unknown: nothing like it has been measured yet"]
    other, _ = packed(experiment_file, "dataset.seed=5")
    record(storage, other.trials[0], seconds=9999)
    assert "unknown" in starting(lines_of(plan, storage), "time")[0]
    longer, _ = packed(experiment_file, "training.epochs=6")
    record(storage, longer.trials[0], seconds=120)  # scratch: 60 for half as many steps
    record(storage, longer.trials[2], seconds=1200)
    Checkpoints(storage, plan.trials[1].run_key).save({"epoch": 1})
    whole = 60 + 60 * 2 / 3 + 2 * 600
    (line,) = starting(lines_of(plan, storage), "time")
    assert f": {spoken(whole)} of training, going by 2 results, " in line
    for planned in plan.trials:
        record(storage, planned, seconds=1)
    lines = lines_of(plan, storage)
    assert starting(lines, "time") == ["time    nothing is left to train"]
    assert starting(lines, "runner") == []


def test_what_time_costs_on_a_cluster_that_is_not_asked():
    left, paces = {"a": 10, "b": 4}, {"a": [1.0, 3.0], "c": [8.0]}
    seconds = 10 * 2 + 4 * 4  # b goes by the mean of all three
    assert time_line(left, paces, at_once=None) == (
        f"time    {seconds} s of training, going by 3 results; divided by as many as fit the cluster side by side"
    )
    assert time_line(left, paces, at_once=4).startswith("time    about 9 s: 36 s of training")


@pytest.mark.parametrize(
    ("seconds", "said"), [(0.2, "0 s"), (119, "119 s"), (150, "2.5 min"), (9000, "2.5 h"), (259200, "3.0 days")]
)
def test_durations_are_said_in_the_unit_that_fits(seconds, said):
    assert spoken(seconds) == said


def test_a_long_list_is_shortened(experiment_file):
    trials = load_experiment(str(experiment_file), changes=[f"seeds={list(range(30))}"]).trials()
    lines = list(trial_lines(trials, [f"number {at}" for at in range(60)]))
    assert lines[0] == "trials  60 (30 scratch, 30 sskt)"
    assert lines[1:] == [*(f"        number {at}" for at in range(SHOWN)), "        and 40 more"]


SEARCH = (
    "search={by: random, trials: 3, axes: {training.lr: {low: 0.01, high: 0.1, log: true}, "
    "options.alpha: {values: [0.5, 1.0], when: {options.heads: linear}}, options.heads: [linear, transfer]}}"
)


def test_a_search_is_described_and_its_drawn_points_are_listed(experiment_file):
    plan, storage = packed(experiment_file, SEARCH)
    record(storage, plan.plan(plan.possible[0].trial), seconds=1)  # a corner: no trial of the search
    lines = lines_of(plan, storage)
    assert lines[:3] == [
        "search  random: of each entry 3 points with seed 0, then the best with 2 seeds",
        "        scratch: training.lr 0.01 to 0.1 by factors",
        "        sskt wise, learn_from all: training.lr 0.01 to 0.1 by factors; options.heads linear or transfer; "
        "options.alpha 0.5 or 1.0 where options.heads is linear",
    ]
    assert lines[3] == "trials  6 (3 scratch, 3 sskt)"
    (line,) = starting(lines, "time")
    trainings = 2 * (3 + 1)  # of each entry three points, and the best with one more seed
    assert f"{trainings} s of training" in line


@pytest.mark.parametrize("kind", ["asha", "pbt"])
def test_stopped_trials_are_at_their_end_and_populations_are_counted_whole(experiment_file, kind):
    search = "search={by: random, trials: 3, axes: {training.lr: {low: 0.01, high: 0.1}}}"
    plan, storage = packed(experiment_file, search, f"scheduler={{kind: {kind}}}")
    record(storage, packed(experiment_file)[0].trials[0], seconds=1)
    lines = lines_of(plan, storage)
    count = {"asha": 2 * (3 + 1), "pbt": 2 * 3 * 2}[kind]  # populations train every seed
    assert f"{count} s of training" in starting(lines, "time")[0]
    if kind == "asha":
        key = lines[4].split()[0]
        whole = next(planned.run_key for planned in plan.possible if planned.run_key.startswith(key))
        stopped = Stopped(run_key=whole, label="x", epoch=1, epochs=3, score=1.0, by="asha", reason="r")
        write_stopped(storage, search_id(plan, 0), whole, stopped)
        after = lines_of(plan, storage)
        assert after[4].endswith(": done")
        assert f"{count - 1} s of training" in starting(after, "time")[0]
