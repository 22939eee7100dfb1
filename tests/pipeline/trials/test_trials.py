"""Trials in this process: cached labels against a live source, resuming, what a result says."""

import dataclasses
import re
from typing import ClassVar

import numpy as np
import pytest
import torch

from cluster.metrics import Work
from pipeline.caches.graphs import make_graph
from pipeline.caches.labels import finish_segment
from pipeline.caches.segments import segments_of
from pipeline.caches.shards import Part, ShardJob, make_shard
from pipeline.canonical import digest
from pipeline.planning.experiment import load_experiment
from pipeline.stages import Stages
from pipeline.trials.results import read_result
from pipeline.trials.trials import Process, gather_materials, make_feed, make_method, network_key, run_trial
from sskt.answers import LiveOutputs
from sskt.errors import DamagedError
from sskt.export import export_bytes, import_bytes
from sskt.methods import METHODS, Needs
from sskt.methods.scratch import Scratch
from sskt.networks import ImageFormat, build_target
from sskt.seeds import seeded
from sskt.settings import TargetSettings
from sskt.sources import OUTPUTS, Source
from sskt.views import TURN

CPU = Process(device=torch.device("cpu"), threads=1)


def prepared(file, *changes):
    """A plan whose caches were made here, without Ray."""
    stages = Stages(load_experiment(str(file), changes=changes), lambda line: None)
    plan = stages.pack()
    for name, specs in plan.caches_for(plan.trials).items():
        parts = {
            segment.prefix: Part(source=name, segment=segment)
            for spec in specs.values()
            for segment in segments_of(stages.storage, spec)
        }
        job = ShardJob(
            storage_uri=stages.storage.uri, parts=parts, sources=dict(plan.experiment.sources),
            recipe=plan.recipe, batch_size=64, threads=1, device="cpu", packed=plan.packed,
        )  # fmt: skip
        for prefix, part in parts.items():
            shards = [make_shard(plan.sources, job, shard=s, prefixes=[prefix]) for s in range(part.segment.shards)]
            finish_segment(stages.storage, part.segment, [records[prefix] for records in shards])
    for graph in plan.graphs_for(plan.trials).values():
        make_graph(stages.storage.uri, graph, resources=stages.experiment.resources, work=Work())
    return plan, stages.storage


def with_methods(file, *entries):
    """The experiment with other methods."""
    methods = "".join(f"  - {{{entry}}}\n" for entry in entries)
    file.write_text(re.sub(r"methods:\n(  - .*\n)+", f"methods:\n{methods}", file.read_text()))
    return file


@pytest.mark.parametrize(("encoding", "bound"), [("fp16", 1e-3), ("fp32", 1e-6)])
def test_the_first_step_from_the_cache_is_that_of_a_live_source(experiment_file, encoding, bound):
    plan, storage = prepared(experiment_file, f"cache.encoding={encoding}")
    planned = plan.trials[2]
    materials = gather_materials(plan, storage, [planned])
    losses = []
    for live in (False, True):
        feed = make_feed(planned, materials, CPU)
        if live:
            feed.outputs = {"wise": LiveOutputs(plan.sources["wise"], ("logits",))}
        method = make_method(planned, materials, feed=feed, process=CPU)
        method.train(mode=True)
        batch = feed.batch(0)
        losses.append(method.step(batch)["loss"].item())
    assert plan.sources["wise"].passes == len(batch.ids) + plan.packed.pool * 3
    assert abs(losses[0] - losses[1]) < bound


def test_training_from_an_exact_cache_is_training_live_step_by_step(experiment_file):
    plan, storage = prepared(experiment_file, "cache.encoding=fp32")
    planned = plan.trials[2]
    materials, parameters = gather_materials(plan, storage, [planned]), []
    losses: list[list[float]] = [[], []]
    for live in (False, True):
        feed = make_feed(planned, materials, CPU)
        if live:
            feed.outputs = {"wise": LiveOutputs(plan.sources["wise"], ("logits",))}
        method = make_method(planned, materials, feed=feed, process=CPU)
        method.train(mode=True)
        losses[live] = [method.step(feed.batch(step))["loss"].item() for step in range(30)]
        parameters.append(torch.cat([weight.flatten() for weight in method.export().parameters()]))
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert (parameters[0] - parameters[1]).abs().max() < 1e-5


@pytest.mark.parametrize("mix", ["mixup", "cutmix"])
def test_training_on_mixed_images_from_an_exact_cache_is_training_live(experiment_file, mix):
    changes = (f"training.mix={mix}", "cache.encoding=fp32", "training.epochs=2", "seeds=[0]")
    results, networks = [], []
    for live in ("false", "true"):
        plan, storage = prepared(experiment_file, *changes, f"sources.wise.live={live}")
        planned = plan.trials[1]
        wanted = {} if live == "true" else {"wise": {"logits", f"{mix} logits"}}
        assert {name: set(specs) for name, specs in plan.caches_for([planned]).items()} == wanted
        assert plan.caches_for([plan.trials[0]]) == {}
        results.append(run_trial(planned, gather_materials(plan, storage, [planned]), CPU))
        exported = import_bytes(storage.read(network_key(planned.run_key)))
        networks.append(torch.cat([weight.flatten() for weight in exported.parameters()]))
    for name in ("loss", "auxiliary/wise"):
        one, other = ([metrics[name] for metrics in result["history"]] for result in results)
        assert one == pytest.approx(other, abs=1e-5)
    assert (networks[0] - networks[1]).abs().max() < 1e-5
    assert results[0]["run_key"] != results[1]["run_key"]


def test_the_labels_of_mixed_images_are_read_and_not_those_of_the_images_they_are_made_of(experiment_file):
    """With those of the upright images in their place the first step would be another."""
    plan, storage = prepared(experiment_file, "training.mix=mixup", "cache.encoding=fp32", "seeds=[0]")
    planned, losses = plan.trials[1], []
    materials = gather_materials(plan, storage, [planned])
    payload = materials.payload["wise"]
    for other in (payload, payload | {"mixup logits": payload["logits"]}):
        changed = dataclasses.replace(materials, payload={"wise": other})
        feed = make_feed(planned, changed, CPU)
        method = make_method(planned, changed, feed=feed, process=CPU)
        method.train(mode=True)
        losses.append(method.step(feed.batch(0))["auxiliary/wise"].item())
    assert abs(losses[0] - losses[1]) > 1e-4
    assert {int(place.split("/")[1]) // TURN for place in materials.golden} == {0, 4}
    assert materials.edges == (0, plan.packed.pool)
    with pytest.raises(DamagedError, match=r"view \d+ of sample \d+ is not what the sources saw"):
        make_feed(planned, dataclasses.replace(materials, edges=(0, 50, plan.packed.pool)), CPU)


def test_of_the_cached_views_the_first_are_used(experiment_file):
    plan, storage = prepared(experiment_file, "seeds=[0]", "grid={training.views: [1, 2, null]}")
    feeds = [make_feed(one, gather_materials(plan, storage, [one]), CPU) for one in plan.trials[3:]]
    shown = [{view for step in range(9) for view in feed.batch(step).views.tolist()} for feed in feeds]
    assert shown == [{0}, {0, 1}, {0, 1, 2}]
    ids = {tuple(spec.id for spec in plan.caches_for([one])["wise"].values()) for one in plan.trials[3:]}
    assert len(ids) == 1


def test_pixels_that_the_sources_did_not_see_stop_a_training_before_its_first_step(experiment_file):
    plan, storage = prepared(experiment_file)
    planned = plan.trials[2]
    materials = gather_materials(plan, storage, [planned])
    assert len(materials.golden) >= 64
    other = dataclasses.replace(materials, recipe=dataclasses.replace(materials.recipe, seed=99))
    with pytest.raises(DamagedError, match=r"view \d+ of sample \d+ is not what the sources saw"):
        run_trial(planned, other, CPU)


def test_a_result_says_what_was_trained_and_how(experiment_file):
    plan, storage = prepared(experiment_file)
    planned = plan.trials[2]
    materials = gather_materials(plan, storage, [planned])
    result = run_trial(planned, materials, CPU)
    assert read_result(storage, planned.run_key) == result
    assert [metrics["epoch"] for metrics in result["history"]] == [1, 2, 3]
    assert result["spec"]["trial"]["training"]["labels_per_class"] == 8
    assert result["spec"]["trial"]["options"]["learn_from"] == "all"
    assert result["spec"]["dataset"] == plan.packed.fingerprint
    assert result["spec"]["sources"] == [["wise", plan.caches["wise"]["logits"].id]]
    assert digest(result["spec"]) == planned.run_key
    assert result["label_rows"] == 3 * 4 * 32
    assert set(result["versions"]) == {"torch", "python", "device", "commit"}
    confusion = np.array(result["by_class"]["confusion"])
    assert (confusion.shape, confusion.sum()) == ((3, 3), plan.packed.test)
    assert 100 * np.trace(confusion) / plan.packed.test == pytest.approx(result["test"]["accuracy"])
    assert result["test"]["accuracy"] > 40
    assert list(storage.keys("checkpoints")) == []
    exported = import_bytes(storage.read(network_key(planned.run_key)))
    assert exported(materials_images(materials)).logits.shape == (4, 3)


def materials_images(materials):
    return torch.from_numpy(materials.images[:4].copy())


def test_a_finished_trial_is_found(experiment_file):
    plan, storage = prepared(experiment_file)
    materials = gather_materials(plan, storage, plan.trials)
    first = run_trial(plan.trials[0], materials, CPU)
    reports = []
    process = Process(device=torch.device("cpu"), threads=1, report=reports.append)
    assert run_trial(plan.trials[0], materials, process) == first
    assert reports == []


class KilledError(Exception):
    """Stands for the death of the process."""


def test_a_killed_trial_goes_on_from_its_checkpoint_to_the_same_result(experiment_file, tmp_path):
    plan, storage = prepared(experiment_file)
    planned = plan.trials[2]
    materials = gather_materials(plan, storage, [planned])
    epochs = []

    def die_in_epoch_two(metrics):
        epochs.append(metrics["epoch"])
        if metrics["epoch"] == 2:
            raise KilledError

    with pytest.raises(KilledError):
        run_trial(planned, materials, Process(device=torch.device("cpu"), threads=1, report=die_in_epoch_two))
    assert list(storage.keys("checkpoints")) != []
    process = Process(device=torch.device("cpu"), threads=1, report=lambda metrics: epochs.append(metrics["epoch"]))
    resumed = run_trial(planned, materials, process)
    assert epochs == [1, 2, 3]
    storage.delete(f"results/{planned.run_key}.json")
    whole = run_trial(planned, materials, CPU)
    assert resumed["history"] == whole["history"]
    assert resumed["test"] == whole["test"]


def test_materials_are_not_gathered_from_a_cache_that_is_not_whole(experiment_file):
    stages = Stages(load_experiment(str(experiment_file)), lambda line: None)
    plan = stages.pack()
    with pytest.raises(DamagedError, match="of source 'wise' is not whole; run `cache`"):
        gather_materials(plan, stages.storage, plan.trials)
    assert gather_materials(plan, stages.storage, plan.trials[:2]).payload == {}


class Everything(Scratch):
    """Scratch that asks for all there is to ask for."""

    asks: ClassVar[Needs] = Needs(outputs=OUTPUTS, pool=True, pair=True, turned=True, graph=4)

    @classmethod
    def needs(cls, options):
        return cls.asks

    @classmethod
    def check(cls, options, facts):
        """Anything goes."""


class Shown(Everything):
    """The same without neighbours, which only a cache can tell."""

    asks: ClassVar[Needs] = Needs(outputs=OUTPUTS, pool=True, pair=True, turned=True)


@pytest.fixture
def asking(experiment_file, monkeypatch):
    """An experiment of the methods above."""
    monkeypatch.setitem(METHODS, "everything", Everything)
    monkeypatch.setitem(METHODS, "shown", Shown)
    return experiment_file


def assert_alike(cached, live, bound):
    """All outputs of one source; logits up to the constant that a cache of fp16 takes from them."""
    assert list(cached) == list(live) == list(OUTPUTS)
    for output, said in live.items():
        stored = cached[output]
        if output == "logits":
            said, stored = said.log_softmax(dim=1), stored.log_softmax(dim=1)
        assert said.shape == stored.shape
        assert said.std() > 30 * bound, "a bound that anything would keep"
        assert torch.allclose(stored, said, atol=bound, rtol=bound), output


@pytest.mark.parametrize(("encoding", "bound"), [("fp16", 1e-3), ("fp32", 1e-6)])
def test_every_output_of_every_view_is_that_of_a_live_source(asking, encoding, bound):
    """The outputs of one batch, and of any samples that a method asks about, upright and turned."""
    change = f"cache.encoding={encoding}"
    with_methods(asking, "method: shown, sources: [wise]")
    plan, storage = prepared(asking, change)
    cached = make_feed(plan.trials[0], gather_materials(plan, storage, plan.trials), CPU)
    plan, storage = prepared(asking, change, "sources.wise.live=true")
    live = make_feed(plan.trials[0], gather_materials(plan, storage, plan.trials), CPU)
    assert isinstance(live.outputs["wise"], LiveOutputs)
    for step in (0, 5):
        stored, said = cached.batch(step), live.batch(step)
        for one, other in ((stored, said), (stored.pair, said.pair), (stored.turned, said.turned),
                           (stored.pair.turned, said.pair.turned)):  # fmt: skip
            assert torch.equal(one.images, other.images)
            assert_alike(one.outputs["wise"], other.outputs["wise"], bound)
    ids = torch.tensor([3, 0, plan.packed.pool - 1])
    for view, quarters in ((0, 0), (2, 0), (1, 1), (2, 3)):
        asked = [feed.pool().ask("wise", ids, view=view, quarters=quarters) for feed in (cached, live)]
        assert_alike(*asked, bound)


def test_the_graph_a_method_gets_is_that_of_its_sources_first_views(asking):
    with_methods(asking, "method: everything, sources: [wise]")
    plan, storage = prepared(asking, "cache.encoding=fp32")
    feed = make_feed(plan.trials[0], gather_materials(plan, storage, plan.trials), CPU)
    ids = torch.arange(plan.packed.pool)
    rows = feed.pool().ask("wise", ids)["embedding"].double().numpy()
    rows /= np.sqrt((rows**2).sum(axis=1, keepdims=True))
    cosines = rows @ rows.T
    np.fill_diagonal(cosines, -np.inf)
    graph = feed.pool().graphs["wise"]
    assert graph.ids.shape == (plan.packed.pool, 4)
    np.testing.assert_allclose(graph.similarity.numpy(), -np.sort(-cosines)[:, :4], atol=1e-6)
    np.testing.assert_allclose(np.take_along_axis(cosines, graph.ids.numpy(), axis=1), graph.similarity, atol=1e-6)


def three_classes(file):
    """A source of the target's own label space, which some methods want."""
    settings = TargetSettings(architecture="small_cnn", options={"width": 6})
    with seeded(4, "three classes"):
        network = build_target(settings, classes=3, image=ImageFormat(1, 12, (0.5,), (0.25,)))
    file.write_bytes(export_bytes(network, settings=settings, classes=3))
    return file


def first_step(plan, storage, number):
    materials = gather_materials(plan, storage, plan.trials)
    feed = make_feed(plan.trials[number], materials, CPU)
    method = make_method(plan.trials[number], materials, feed=feed, process=CPU)
    method.train(mode=True)
    return {name: part.item() for name, part in method.step(feed.batch(0)).items()}


@pytest.mark.parametrize(("encoding", "bound"), [("fp16", 1e-3), ("fp32", 1e-6)])
def test_the_first_step_of_a_method_is_that_with_a_live_source(experiment_file, encoding, bound):
    entries = [
        "method: sskt, sources: [wise], learn_from: all", "method: at, sources: [wise]",
        "method: dreamteacher, sources: [wise]", "method: embed, sources: [wise]",
        "method: relation, sources: [wise]", "method: seed, sources: [wise]", "method: crd, sources: [wise]",
        "method: sskd, sources: [wise], similarity: 0, keep_turned: 1",
    ]  # fmt: skip
    source = three_classes(experiment_file.parent / "three.safetensors")
    experiment_file.write_text(re.sub(r"wise: .*", f"wise: {{weights: {source}}}", experiment_file.read_text()))
    with_methods(experiment_file, *entries)
    cached = prepared(experiment_file, f"cache.encoding={encoding}")
    live = prepared(experiment_file, f"cache.encoding={encoding}", "sources.wise.live=true")
    for number in range(0, len(cached[0].trials), 2):
        stored, said = first_step(*cached, number), first_step(*live, number)
        assert len(said) > 2
        for name, part in said.items():
            assert stored[name] == pytest.approx(part, abs=bound, rel=bound), (entries[number // 2], name)


def test_the_first_step_of_a_method_with_neighbours_is_that_with_live_outputs(experiment_file):
    """The neighbours come from the cache, what is said of them from the source."""
    entries = ["method: lsp, sources: [wise], neighbours: 3", "method: smooth, sources: [wise], neighbours: 3"]
    plan, storage = prepared(with_methods(experiment_file, *entries), "cache.encoding=fp32")
    for planned in plan.trials[::2]:
        materials = gather_materials(plan, storage, [planned])
        losses = []
        for live in (False, True):
            feed = make_feed(planned, materials, CPU)
            if live:
                feed.outputs = {"wise": LiveOutputs(plan.sources["wise"], ("embedding",))}
            method = make_method(planned, materials, feed=feed, process=CPU)
            method.train(mode=True)
            losses.append(method.step(feed.batch(0))["loss"].item())
        assert losses[0] == pytest.approx(losses[1], abs=1e-6)


def test_labels_of_live_sources_do_not_count_as_read_from_caches(experiment_file, source_file):
    text = experiment_file.read_text().replace(
        "sources:\n", f"sources:\n  quick: {{weights: {source_file}, live: true}}\n", 1
    )
    experiment_file.write_text(text)
    entries = [f"method: sskt, sources: [{names}]" for names in ("wise", "quick", "wise, quick")]
    plan, storage = prepared(with_methods(experiment_file, *entries, "method: scratch"), "seeds=[0]")
    materials = gather_materials(plan, storage, plan.trials)
    rows = [run_trial(planned, materials, CPU)["label_rows"] for planned in plan.trials]
    assert rows == [3 * 4 * 16, 0, 3 * 4 * 16, 0]


def test_a_live_source_by_the_statistics_of_each_batch_trains_and_stays_as_it_was(experiment_file, monkeypatch):
    asked = []
    outputs = Source.outputs

    def watched(self, images, wanted):
        before = {name: value.clone() for name, value in self.network.state_dict().items()}
        said = outputs(self, images, wanted)
        assert all(torch.equal(value, before[name]) for name, value in self.network.state_dict().items())
        alone = outputs(self, images[:4], wanted)
        asked.append(torch.allclose(said["logits"][:4], alone["logits"], atol=1e-3))
        return said

    monkeypatch.setattr(Source, "outputs", watched)
    plan, storage = prepared(experiment_file, "sources.wise.live=true", "sources.wise.batch_norm=batch")
    result = run_trial(plan.trials[2], gather_materials(plan, storage, plan.trials), CPU)
    assert result["history"][-1]["epoch"] == 3
    assert len(asked) == 12
    assert not any(asked), "what it says of an image depends on the images beside it"


def test_a_trial_without_its_graph_is_not_started(experiment_file):
    entry = "method: propagate, sources: [wise], neighbours: 3"
    plan, storage = prepared(with_methods(experiment_file, entry))
    (graph,) = plan.graphs_for(plan.trials).values()
    storage.write(graph.key, b"damaged")
    with pytest.raises(DamagedError, match="graph of wise, 3 neighbours is missing; run `cache`"):
        gather_materials(plan, storage, plan.trials)
