"""Populations: who is in one, how a member changes, and where its state comes from."""

import json

import pytest
import torch

from cluster.storage import FolderStorage
from pipeline.planning.experiment import load_experiment
from pipeline.stages import Stages
from pipeline.trials.checkpoints import Checkpoints
from pipeline.trials.populations import hand_out, handed_on, members, moved, take_over, where_it_was
from pipeline.trials.trials import Process, gather_materials, run_trial
from tests.pipeline.sweeps.searches import LR, paper_plan

PBT = "{kind: pbt}"
START = {"training.lr": 0.5}


@pytest.fixture
def storage(tmp_path):
    return FolderStorage(str(tmp_path))


@pytest.fixture
def plan():
    return paper_plan(f"by: random, trials: 4, {LR}", scheduler=PBT)


def state(epoch, *lineage):
    return {"epoch": epoch, "method": {"weight": float(epoch)}, "lineage": list(lineage)}


def step(epoch, donor, lr):
    return {"epoch": epoch, "from": donor, "point": {"training.lr": lr}}


def test_no_member_is_another_nor_a_trial_on_its_own(plan):
    every = [member for seed in (3, 4) for member in members(plan, 0, seed)]
    alone = [plan.plan(member.trial) for member in every]
    other = [
        member
        for changed in (
            paper_plan(f"by: random, trials: 5, {LR}", scheduler=PBT),
            paper_plan(f"by: random, trials: 4, seed: 1, {LR}", scheduler=PBT),
            paper_plan(f"by: random, trials: 4, {LR}", scheduler="{kind: pbt, every: 2}"),
            paper_plan("by: random, trials: 4, axes: {training.lr: {low: 0.002, high: 0.5, log: true}}", scheduler=PBT),
        )
        for member in members(changed, 0, 3)
    ]
    keys = [planned.run_key for planned in (*every, *alone, *other)]
    assert len(set(keys)) == len(keys) == 8 + 8 + 17


def test_members_are_the_same_each_time_and_drawn_anew_for_each_seed(plan):
    assert [one.run_key for one in members(plan, 0, 3)] == [one.run_key for one in members(plan, 0, 3)]
    points = [one.trial.training.lr for seed in (3, 4) for one in members(plan, 0, seed)]
    assert len(set(points)) == 8
    assert [one.trial.seed for seed in (3, 4) for one in members(plan, 0, seed)] == [3] * 4 + [4] * 4


def test_a_members_name_says_nothing_of_what_will_change_and_its_spec_is_plain(plan):
    member = members(plan, 0, 3)[1]
    assert member.trial.label == "scratch"
    assert member.spec["population"]["member"] == 1
    assert json.loads(json.dumps(member.spec)) == member.spec


def test_a_member_moves_in_its_training_and_its_options():
    methods = "[{method: sskt, learn_from: all, search: {alpha: {low: 0.1, high: 1.0}}}]"
    plan = paper_plan(f"by: random, trials: 2, {LR}", scheduler=PBT, methods=methods)
    member = members(plan, 0, 3)[0]
    there = moved(member, {"training.lr": 0.25, "options.alpha": 0.75})
    assert (there.trial.training.lr, there.trial.options.alpha) == (0.25, 0.75)
    assert there.trial.point == {"training.lr": 0.25, "options.alpha": 0.75}
    assert there.run_key == member.run_key
    assert there.trial.training.momentum == member.trial.training.momentum
    assert there.trial.options.learn_from == "all"
    assert moved(there, member.trial.point).trial == member.trial


def test_a_member_that_begins_has_its_start_for_lineage(plan, storage):
    member = moved(members(plan, 0, 3)[0], START)
    assert take_over(member, storage, {}) == [step(0, None, 0.5)]
    assert list(storage.keys("checkpoints")) == []


def test_a_member_goes_on_from_its_own_newest_state(plan, storage):
    member = moved(members(plan, 0, 3)[0], START)
    checkpoints = Checkpoints(storage, member.run_key)
    checkpoints.save(state(2, step(0, None, 0.5)))
    assert take_over(member, storage, {}) == [step(0, None, 0.5)]
    assert take_over(member, storage, {member.run_key: state(1, step(0, None, 0.5))}) == [step(0, None, 0.5)]
    assert checkpoints.load()["epoch"] == 2


def test_a_member_goes_on_from_anothers_state_even_where_its_own_is_further(plan, storage):
    leader, member = (one.run_key for one in members(plan, 0, 3)[:2])
    behind = moved(members(plan, 0, 3)[1], START)
    checkpoints = Checkpoints(storage, member)
    for epoch in (4, 5):
        checkpoints.save(state(epoch, step(0, None, 0.9)))
    donated = state(3, step(0, None, 0.1), step(2, "an earlier one", 0.4))
    lineage = take_over(behind, storage, {leader: donated})
    assert lineage == [step(0, None, 0.1), step(2, "an earlier one", 0.4), step(3, leader, 0.5)]
    assert checkpoints.load() == state(3, *lineage)


def test_to_go_on_from_another_twice_is_to_do_so_once(plan, storage):
    """A process may die before its first report after it: it is started anew with the same."""
    leader, behind = members(plan, 0, 3)[0].run_key, moved(members(plan, 0, 3)[1], START)
    donated = {leader: state(3, step(0, None, 0.1))}
    assert take_over(behind, storage, donated) == take_over(behind, storage, donated)


def test_after_a_restart_a_member_is_where_its_newest_state_was(plan, storage):
    member = members(plan, 0, 3)[0]
    assert where_it_was(member, storage) == member
    Checkpoints(storage, member.run_key).save(state(3, step(0, None, 0.1), step(2, "another", 0.4)))
    assert where_it_was(member, storage) == moved(member, {"training.lr": 0.4})


def test_what_is_handed_out_arrives_under_the_name_of_its_member(storage, tmp_path):
    folder = tmp_path / "handed"
    folder.mkdir()
    for epoch in (1, 2):
        Checkpoints(storage, "leader").save(state(epoch, step(0, None, 0.1)))
    hand_out("leader", storage, str(folder))
    (folder / ".metadata.json").write_text("{}")  # Tune's
    assert handed_on(str(folder)) == {"leader": state(2, step(0, None, 0.1))}


def test_states_and_results_carry_the_lineage_of_their_weights(experiment_file):
    changes = [
        "methods=[{method: scratch}]",
        "search={by: random, trials: 2, axes: {training.lr: {low: 0.01, high: 0.1}}}",
        "scheduler={kind: pbt}",
    ]
    stages = Stages(load_experiment(str(experiment_file), changes=changes), lambda line: None)
    plan, storage = stages.pack(), stages.storage
    materials = gather_materials(plan, storage, plan.possible)
    leader, behind = members(plan, 0, 0)

    def killed(metrics):
        if metrics["epoch"] == 2:
            raise KeyboardInterrupt

    def process(member, handed, report=lambda metrics: None):
        carried = {"lineage": take_over(member, storage, handed)}
        return Process(device=torch.device("cpu"), threads=1, carried=carried, report=report)

    with pytest.raises(KeyboardInterrupt):
        run_trial(leader, materials, process(leader, {}, killed))
    state_of_leader = Checkpoints(storage, leader.run_key).load()
    behind = moved(behind, {"training.lr": 0.0625})
    result = run_trial(behind, materials, process(behind, {leader.run_key: state_of_leader}))
    begun = {"epoch": 0, "from": None, "point": leader.trial.point}
    assert result["lineage"] == [begun, step(2, leader.run_key, 0.0625)]
    finished = run_trial(leader, materials, process(where_it_was(leader, storage), {}))
    assert finished["lineage"] == [begun]
    assert result["history"][:2] == finished["history"][:2] == state_of_leader["history"]
    assert result["history"][2] != finished["history"][2]
