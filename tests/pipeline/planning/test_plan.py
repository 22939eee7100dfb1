import dataclasses

import pytest
import torch

from pipeline.__main__ import main
from pipeline.canonical import digest, plain
from pipeline.planning.experiment import load_experiment
from pipeline.planning.plan import load_sources, make_plan
from pipeline.stages import Stages
from pipeline.trials.trials import gather_materials, run_trial
from sskt.errors import InputError
from sskt.export import export_bytes
from sskt.networks import ImageFormat, build_target
from sskt.settings import TargetSettings
from sskt.views import KINDS
from tests import fragile
from tests.pipeline.trials.test_trials import CPU, prepared, three_classes, with_methods

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


def test_where_things_run_and_what_nodes_keep_changes_neither_keys_nor_caches(experiment_file):
    before = plan_of(experiment_file)
    resources = (
        "memory_gb_per_trial: 0.1, memory_gb_per_source_worker: 0.1, node_cache_gb: 0, "
        "trial_node_labels: {ray.io/accelerator-type: H100}, source_node_labels: {zone: a}"
    )
    experiment = load_experiment(str(experiment_file), changes=[f"resources={{{resources}}}"])
    after = make_plan(experiment, before.packed, sources=before.sources, encodings={})
    assert keys(after) == keys(before)
    assert after.caches == before.caches


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
    labels = dataclasses.replace(plan.caches["wise"]["logits"].labels, source=plan.sources["wise"].identity())
    changed = dataclasses.replace(plan.caches["wise"]["logits"], labels=labels)
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
    ["cache.encoding=fp32", "cache.batch_size=100", "views.seed=1", "views.ops=[hflip]",
     "dataset.seed=1", "sources.wise.input.size=16", "resources.cpus_per_source_worker=2"],
)  # fmt: skip
def test_what_changes_a_label_changes_its_cache(experiment_file, change):
    before, after = (plan_of(experiment_file, *changes).caches["wise"] for changes in ((), (change,)))
    assert before["logits"].id != after["logits"].id
    assert before["embedding"].id != after["embedding"].id
    assert before["logits"].id != before["embedding"].id


def test_more_views_are_more_of_the_same_cache(experiment_file):
    before, after = (plan_of(experiment_file, *changes).caches["wise"] for changes in ((), ("views.count=5",)))
    assert before["logits"].id == after["logits"].id
    assert after["logits"].view_count == 5


def refusal(file, capsys, *changes):
    """What a sweep says before it ends with the exit code of bad input."""
    capsys.readouterr()
    assert main(["sweep", str(file), *(word for change in changes for word in ("--set", change))]) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    return said.removeprefix("error: ").removesuffix("\n").replace(str(file), "FILE")


def test_a_live_source_has_no_cache_and_other_run_keys(experiment_file):
    cached, live = plan_of(experiment_file), plan_of(experiment_file, "sources.wise.live=true")
    assert keys(live)[:2] == keys(cached)[:2]
    assert not set(keys(live)[2:]) & set(keys(cached)[2:])
    assert live.caches == live.caches_for(live.trials) == live.graphs_for(live.trials) == {}
    by_batch = plan_of(experiment_file, "sources.wise.live=true", "sources.wise.batch_norm=batch")
    assert not set(keys(by_batch)[2:]) & set(keys(live)[2:])


def test_nothing_of_a_cache_changes_what_a_live_source_teaches(experiment_file):
    before = keys(plan_of(experiment_file, "sources.wise.live=true"))
    changes = ("cache.encoding=fp32", "cache.batch_size=100", "resources.cpus_per_source_worker=2")
    assert keys(plan_of(experiment_file, "sources.wise.live=true", *changes)) == before


def test_how_a_source_is_read_does_not_matter_where_only_its_weights_do(experiment_file):
    with_methods(experiment_file, "method: finetune, sources: [wise]")
    assert keys(plan_of(experiment_file)) == keys(plan_of(experiment_file, "sources.wise.live=true"))


def test_a_cache_is_planned_for_every_view_a_method_reads(experiment_file):
    entries = (
        "method: sskd, sources: [wise], soft: 0, turned: 0",
        "method: at, sources: [wise]",
        "method: propagate, sources: [wise], neighbours: 7",
    )
    with_methods(experiment_file, *entries)
    plan = plan_of(experiment_file)
    specs, pool, count = plan.caches["wise"], plan.packed.pool, plan.experiment.views.count
    wanted = {"embedding", "turned embedding", "attention"}
    assert set(plan.caches_for(plan.trials)["wise"]) == wanted
    assert [len(specs[name].segment(0, 0, count).view_ids) for name in ("embedding", "turned embedding")] == [
        count,
        3 * count,
    ]
    assert specs["attention"].labels.width == sum(shape.cells for shape in plan.maps["wise"]) > 0
    (name, graph) = next(iter(plan.graphs_for(plan.trials).items()))
    assert (name, graph.neighbours, graph.embedding.rows) == ("wise, 7 neighbours", 7, pool)
    assert graph.embedding == specs["embedding"]
    assert len({spec.id for spec in specs.values()}) == len(specs)


def test_mixed_images_have_caches_and_keys_of_their_own_where_the_pool_is_learnt_from(experiment_file):
    """A method that does not look at the pool asks for no other cache."""
    entries = (TAUGHT, TAUGHT.replace("all", "labelled"), "method: at, sources: [wise], learn_from: all")
    with_methods(experiment_file, *entries)
    plan = plan_of(experiment_file, "grid={training.mix: [none, mixup, cutmix]}", "seeds=[0]")
    read = [set(plan.caches_for([planned])["wise"]) for planned in plan.trials]
    for first, output, mixed in ((0, "logits", True), (3, "logits", False), (6, "attention", True)):
        expected = [{output} | ({f"{mix} {output}"} if mixed and mix else set()) for mix in ("", "mixup", "cutmix")]
        assert read[first : first + 3] == expected
    assert len(set(keys(plan))) == 9
    assert plan.trials[1].spec["sources"] == [
        ["wise", *(plan.caches["wise"][name].id for name in ("logits", "mixup logits"))]
    ]
    assert len({spec.id for spec in plan.caches["wise"].values()}) == len(plan.caches["wise"])


def test_maps_are_known_only_where_they_are_asked_for(experiment_file):
    plan = plan_of(experiment_file)
    assert plan.maps == {}
    outputs = {"logits", "embedding"}
    assert set(plan.caches["wise"]) == outputs | {f"{kind} {output}" for kind in list(KINDS)[1:] for output in outputs}


def test_a_frozen_part_of_a_source_is_part_of_the_key(experiment_file):
    with_methods(experiment_file, "method: finetune, sources: [wise]")
    before = keys(plan_of(experiment_file))
    assert not set(before) & set(keys(plan_of(experiment_file, "target.frozen=[stage1]")))


def test_batch_statistics_without_live_are_refused(experiment_file, capsys):
    assert refusal(experiment_file, capsys, "sources.wise.batch_norm=batch") == (
        "FILE: sources.wise: batch_norm is 'batch' and live is false; what such a source says of an image depends on "
        "the images beside it, so no cache could be right: it goes with `live: true`"
    )


def test_neighbours_by_a_live_source_are_refused(experiment_file, capsys):
    with_methods(experiment_file, "method: propagate, sources: [wise], neighbours: 3")
    assert refusal(experiment_file, capsys, "sources.wise.live=true") == (
        "methods: 'propagate wise, neighbours 3': sources.wise.live is true; the neighbours that this method asks for "
        "come from a cache of the source's embeddings, so it has to be false"
    )


@pytest.mark.parametrize(
    ("entry", "changes", "says"),
    [
        ("method: dogo", ("views.count=1",),
         "methods: 'dogo': views.count or training.views is 1; this method compares 2 views of an image"),
        ("method: dogo", ("training.views=1",),
         "methods: 'dogo': views.count or training.views is 1; this method compares 2 views of an image"),
        ("method: scratch", ("training.views=4",), "FILE: training.views is 4; it has to be at most views.count, 3"),
        ("method: crd, sources: [wise], learn_from: all", ("training.mix=mixup",),
         "methods: 'crd wise, learn_from all': training.mix is 'mixup'; it has to be 'none', for this method "
         "learns about single images"),
        ("method: scratch", ("training.loss=bce",),
         "methods: 'scratch': training.loss is 'bce'; an image has one class here, which needs 'ce' or 'focal'"),
        ("method: propagate, sources: [wise], neighbours: 108", (),
         "methods: 'propagate wise, neighbours 108': "
         "108 neighbours of every image are asked for; there are 108 images"),
        ("method: lsp, sources: [wise], neighbours: 4", (),
         "methods: 'lsp wise, neighbours 4': training.pool_batch_size gives each process 16 images; "
         "it has to be a multiple of 5, an image and its 4 neighbours"),
        ("method: scratch", ("dataset.validation=0",),
         "dataset.validation leaves no image to measure on; it has to be above 0"),
        ("method: scratch", ("dataset.test=0",),
         "dataset.test leaves no image to measure on; it has to be above 0"),
        ("method: finetune, sources: [wise]", ("target.frozen=[stage9]",),
         "methods: 'finetune wise': target.frozen part 'stage9' is unknown; did you mean 'stage3'? known: fc, pool, "
         "stage1, stage1.0, stage1.1, stage1.2, stage2, stage2.0, stage2.1, stage2.2, stage3, stage3.0, stage3.1, "
         "stage3.2"),
        ("method: finetune, sources: [wise]", ("target.frozen=[fc]",),
         "methods: 'finetune wise': target.frozen part 'fc' holds the head 'fc', which is new and has to learn"),
        ("method: scratch", ("target.frozen=[stage1]",),
         "target.frozen is ['stage1'], but random weights would never be trained; give target.weights"),
        ("method: maxl", ("resources.workers=2",),
         "methods: 'maxl': resources.workers is 2; maxl trains in one process, so it has to be 1"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_before_anything_runs(experiment_file, capsys, entry, changes, says):
    with_methods(experiment_file, entry)
    assert refusal(experiment_file, capsys, *changes) == says


@pytest.mark.parametrize(
    ("entry", "changes"),
    [
        ("method: kd, sources: [wise]", ()),
        ("method: sskt, sources: [wise], temperature: 2", ()),
        ("method: sskt, sources: [wise], preset: paper_as_released", ()),
        ("method: sskd, sources: [wise]", ()),
        ("method: sskt, sources: [wise]", ("grid={options.temperature: [1, 3]}",)),
    ],
)
def test_a_temperature_on_truncated_logits_is_refused(experiment_file, capsys, entry, changes):
    """What is left of them says nothing of another temperature."""
    wise = three_classes(experiment_file.parent / "three.safetensors")
    changes = (*changes, f"sources.wise.weights={wise}")
    with_methods(experiment_file, entry)
    said = refusal(experiment_file, capsys, "cache.encoding=top2", *changes)
    assert said.startswith("methods: '" + entry.split()[1].rstrip(","))
    assert said.endswith(
        "': cache.encoding is 'top2' for source 'wise', which keeps the likeliest classes at temperature 1 only; this "
        "method divides by another one and needs 'u8', 'fp16' or 'fp32'"
    )
    for encoding in ("u8", "fp16", "fp32"):
        plan_of(experiment_file, f"cache.encoding={encoding}", *changes)
    plan_of(experiment_file, "cache.encoding=top2", "sources.wise.live=true", *changes)


def test_truncated_logits_teach_at_temperature_1(experiment_file):
    with_methods(experiment_file, "method: sskt, sources: [wise]", "method: embed, sources: [wise]")
    plan, storage = prepared(experiment_file, "cache.encoding=top2")
    specs = plan.caches["wise"]
    assert (specs["logits"].labels.encoding, specs["logits"].labels.view_bytes) == ("top2", 2 + 2 + 2)
    assert specs["embedding"].labels.encoding == specs["turned embedding"].labels.encoding == "fp16"
    materials = gather_materials(plan, storage, plan.trials)
    history = run_trial(plan.trials[0], materials, CPU)["history"]
    assert history[-1]["auxiliary/wise"] < history[0]["auxiliary/wise"]


def test_more_classes_kept_than_there_are_is_refused(experiment_file, capsys):
    assert refusal(experiment_file, capsys, "cache.encoding=top4") == (
        "methods: 'sskt wise, learn_from all': cache.encoding is 'top4' for 4 classes; "
        "it is for more than 4 of them, and for 32768 at most"
    )


MULTI_LABEL = ("dataset={kind: digit_pairs, image_size: 8}", "training.labels_per_class=20")


@pytest.mark.parametrize(
    ("entry", "changes", "says"),
    [
        ("method: scratch", ("training.loss=ce",),
         "methods: 'scratch': training.loss is 'ce'; an image has several classes here, which needs 'bce'"),
        ("method: scratch", ("training.loss=focal",),
         "methods: 'scratch': training.loss is 'focal'; an image has several classes here, which needs 'bce'"),
        ("method: kd, sources: [wise]", ("sources.wise={weights: %s/ten.safetensors}",),
         "methods: 'kd wise': this method needs one class for every image; here several may hold"),
        ("method: maxl", (),
         "methods: 'maxl': this method needs one class for every image; here several may hold"),
    ],
)  # fmt: skip
def test_what_has_no_meaning_with_several_classes_is_refused(experiment_file, capsys, tmp_path, entry, changes, says):
    settings = TargetSettings(architecture="small_cnn", options={"width": 4})
    network = build_target(settings, classes=10, image=ImageFormat(1, 8, (0.5,), (0.25,)))
    (tmp_path / "ten.safetensors").write_bytes(export_bytes(network, settings=settings, classes=10))
    with_methods(experiment_file, entry)
    filled = [change.replace("%s", str(tmp_path)) for change in changes]
    assert refusal(experiment_file, capsys, *MULTI_LABEL, *filled) == says
    plan = plan_of(experiment_file, *MULTI_LABEL, "methods=[{method: scratch}]", "training.loss=bce")
    assert plan.packed.multi_label
    assert all(planned.facts.multi_label for planned in plan.trials)


def test_what_nobody_reads_is_not_refused_for_its_width(experiment_file):
    with_methods(experiment_file, "method: embed, sources: [wise]")
    plan = plan_of(experiment_file, "cache.encoding=top10")
    assert plan.caches["wise"]["embedding"].labels.encoding == "fp16"


def test_what_was_chosen_for_the_logits_is_for_the_logits_alone(experiment_file):
    experiment = load_experiment(str(experiment_file), changes=["cache.encoding=auto"])
    plan = plan_of(experiment_file)
    chosen = make_plan(experiment, plan.packed, sources=plan.sources, encodings={"wise": "u8"}).caches["wise"]
    assert {name: spec.labels.encoding for name, spec in chosen.items()} == {
        name: "u8" if name.endswith("logits") else "fp16" for name in plan.caches["wise"]
    }


def test_a_network_that_does_not_take_such_images_is_refused(experiment_file, capsys):
    said = refusal(experiment_file, capsys, "target={architecture: vit_b_16}")
    assert said.startswith("target: VisionTransformer does not take images of 12 by 12 pixels (")
    assert said.endswith("; say which in input.size")
    assert "\n" not in said


def test_a_source_that_does_not_take_such_images_is_refused(experiment_file, capsys, tmp_path):
    torch.save(fragile.picky(classes=3).state_dict(), tmp_path / "picky.pt")
    source = f"architecture: 'tests.fragile:picky', weights: {tmp_path}/picky.pt, classes: 3"
    said = refusal(experiment_file, capsys, f"sources.wise={{{source}, input: {{mean: [0.5], std: [0.5]}}}}")
    wanted = "sources.wise: Picky does not take images of 12 by 12 pixels (it wants 20 by 20); say which in input.size"
    assert said == wanted


def test_a_training_is_the_same_however_its_values_were_come_by(experiment_file):
    written = plan_of(experiment_file, "training.lr=0.07", "methods.1.alpha=0.5")
    swept = plan_of(experiment_file, "grid={training.lr: [0.06, 0.07]}", "methods.1.grid={alpha: [0.5, 1.0]}")
    searched = "search={by: grid, axes: {training.lr: [0.06, 0.07]}}"
    plan = plan_of(experiment_file, searched, "methods.1.search={alpha: [0.5, 1.0]}")
    assert set(keys(written)) < set(keys(swept))
    assert len(keys(swept)) == 2 * (2 + 2 * 2)
    assert {planned.run_key for planned in plan.possible} == {
        planned.run_key for planned in swept.trials if planned.trial.seed == 0
    }
    point = {"training.lr": 0.07, "options.alpha": 0.5}
    assert plan.plan(plan.experiment.at(1, point, seed=1)).run_key == keys(written)[3]
    assert plan.trials == []


def test_a_run_key_is_the_hash_of_what_decides_the_outcome_and_of_nothing_else(experiment_file):
    plan = plan_of(experiment_file, "grid={training.lr: [0.06, 0.07]}")
    for planned in plan.trials:
        trial = planned.trial
        decides = {name: getattr(trial, name) for name in ("method", "sources", "training", "seed")}
        decides["options"] = {name: value for name, value in vars(trial.options).items() if name != "taps"}
        # As it was when run keys began.
        settings = ("architecture", "weights", "frozen", "options", "input")
        decides["target"] = {name: getattr(trial.target, name) for name in settings}
        assert planned.run_key == digest(planned.spec) == digest(planned.spec | {"trial": decides})
        assert planned.spec == plain(planned.spec)
    first, last = plan.trials[0].spec, plan.trials[-1].spec
    assert first["trial"]["target"] is last["trial"]["target"]  # one object: there may be thousands of trials
    assert first["views"] is last["views"]


def test_whatever_a_search_may_need_is_known_beforehand(experiment_file):
    with_methods(
        experiment_file, "method: dreamteacher, search: {attention_weight: {low: 0.0, high: 1.0}}", "method: scratch"
    )
    axes = "{sources: [[wise]], target: [{architecture: small_cnn}, {architecture: resnet20}]}"
    plan = plan_of(experiment_file, f"search={{by: optuna, trials: 3, axes: {axes}}}")
    assert set(plan.caches_for()["wise"]) == {"features", "attention"}  # of which one end needs but one
    assert len(plan.taps) == 2
    assert set(plan.sources) == {"wise"}
    inside = {"sources": ["wise"], "target": {"architecture": "resnet20"}, "options.attention_weight": 0.5}
    planned = plan.plan(plan.experiment.at(0, inside, seed=0))
    assert plan.caches_for([planned]) == plan.caches_for()


def test_graphs_of_all_that_a_search_may_ask_for(experiment_file):
    with_methods(experiment_file, "method: lsp, sources: [wise], search: {neighbours: [3, 7]}")
    plan = plan_of(experiment_file, "search={by: grid}", "training.pool_batch_size=32")
    assert {graph.neighbours for graph in plan.graphs_for().values()} == {3, 7}


def test_a_corner_that_cannot_be_is_refused_before_anything_runs(experiment_file, capsys):
    said = refusal(experiment_file, capsys, "search={by: optuna, trials: 3, axes: {training.loss: [ce, bce]}}")
    assert said.startswith("methods: 'scratch, loss bce': training.loss is 'bce'")
