import dataclasses

import pytest

from pipeline.experiment import load_experiment
from pipeline.plan import load_sources, make_plan
from pipeline.stages import Stages
from sskt.errors import InputError

TAUGHT = "method: sskt, sources: [wise], learn_from: all"


def plan_of(file, *changes):
    return Stages(load_experiment(str(file), changes=changes), lambda line: None).pack()


def keys(plan):
    return [planned.run_key for planned in plan.trials]


def test_every_trial_has_a_key_of_its_own_and_keeps_it(experiment_file):
    plan = plan_of(experiment_file)
    assert len(set(keys(plan))) == 4
    assert keys(plan_of(experiment_file)) == keys(plan)


def test_comments_labels_and_the_place_of_things_change_no_key(experiment_file, tmp_path):
    before = keys(plan_of(experiment_file))
    text = experiment_file.read_text().replace("{method: scratch}", "{method: scratch, label: alone}")
    elsewhere = tmp_path / "elsewhere.yaml"
    elsewhere.write_text("# a comment\n" + text.replace("/store", "/other"))
    assert keys(plan_of(elsewhere)) == before


@pytest.mark.parametrize(
    "change",
    [
        "training.lr=0.06",
        "training.epochs=4",
        "training.labels_per_class=7",
        "views.count=4",
        "views.seed=1",
        "target.options.width=5",
        "dataset.seed=1",
        "dataset.image_size=11",
    ],
)
def test_what_changes_a_training_changes_its_key(experiment_file, change):
    assert not set(keys(plan_of(experiment_file))) & set(keys(plan_of(experiment_file, change)))


def test_what_changes_only_the_labels_leaves_scratch_alone(experiment_file):
    before, after = keys(plan_of(experiment_file)), keys(plan_of(experiment_file, "cache.encoding=fp32"))
    assert before[:2] == after[:2]
    assert not set(before[2:]) & set(after[2:])


def test_only_sources_that_are_read_get_a_cache(experiment_file):
    plan = plan_of(experiment_file)
    assert {name: list(specs) for name, specs in plan.caches_for(plan.trials).items()} == {"wise": ["logits"]}
    assert plan.caches_for(plan.trials[:2]) == {}
    experiment_file.write_text(experiment_file.read_text().replace(TAUGHT, "method: finetune, sources: [wise]"))
    plan = plan_of(experiment_file)
    assert plan.caches_for(plan.trials) == {}


def test_a_cache_is_that_of_the_pool_alone(experiment_file):
    plan = plan_of(experiment_file)
    assert plan.caches["wise"]["logits"].rows == plan.packed.pool == 180 - plan.packed.validation - plan.packed.test


def test_impossible_combinations_are_refused(experiment_file):
    text = experiment_file.read_text()
    experiment_file.write_text(text.replace(TAUGHT, "method: kd, sources: [wise]"))
    with pytest.raises(InputError, match="methods: 'kd wise': source 'wise' has 4 classes and the target 3"):
        plan_of(experiment_file)
    experiment_file.write_text(text.replace("pad_crop: 1", "pad_crop: 12"))
    with pytest.raises(InputError, match="pad_crop of 12 pixels on images of 12"):
        plan_of(experiment_file)
    experiment_file.write_text(text.replace("wise.safetensors", "fool.safetensors"))
    with pytest.raises(InputError, match=r"sources\.wise.*fool\.safetensors"):
        plan_of(experiment_file)


def test_another_weight_is_another_cache(experiment_file):
    plan = plan_of(experiment_file)
    before = plan.caches["wise"]["logits"].id
    plan.sources["wise"].network.network.state_dict()["fc.bias"][0] += 1e-3
    changed = dataclasses.replace(plan.caches["wise"]["logits"], source=plan.sources["wise"].identity())
    assert changed.id != before
    fresh = make_plan(plan.experiment, plan.packed, sources=load_sources(plan.experiment))
    assert fresh.caches["wise"]["logits"].id == before


def test_more_labels_than_there_are_is_refused(experiment_file):
    assert plan_of(experiment_file).packed.labelled == (36, 36, 36)
    plan_of(experiment_file, "training.labels_per_class=36")
    with pytest.raises(
        InputError, match=r"training\.labels_per_class is 37, but class 'dark' has 36 labelled training"
    ):
        plan_of(experiment_file, "training.labels_per_class=37")


def test_methods_know_the_rows_of_a_batch(experiment_file):
    changes = ("training.batch_size=16", "training.pool_batch_size=24", "resources.workers=2")
    facts = plan_of(experiment_file, *changes).trials[0].facts
    assert (facts.rows, facts.pool_rows) == (8, 12)


@pytest.mark.parametrize(
    "change",
    ["cache.encoding=fp32", "cache.batch_size=100", "views.count=4", "views.seed=1", "views.ops=[hflip]",
     "dataset.seed=1", "sources.wise.input.size=16", "resources.cpus_per_source_worker=2"],
)  # fmt: skip
def test_what_changes_a_label_changes_its_cache(experiment_file, change):
    before, after = (plan_of(experiment_file, *changes).caches["wise"] for changes in ((), (change,)))
    assert before["logits"].id != after["logits"].id
    assert before["embedding"].id != after["embedding"].id
    assert before["logits"].id != before["embedding"].id
