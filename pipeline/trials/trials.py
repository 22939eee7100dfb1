"""One trial, from its materials to its recorded result, on whatever process it runs."""

import time
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from cluster.storage import Storage, open_storage
from pipeline.caches.graphs import GraphArrays, load_graph
from pipeline.caches.mapped import map_cache
from pipeline.caches.segments import WholeCache, read_cache, require_cache
from pipeline.planning.plan import Plan, PlannedTrial
from pipeline.planning.specs import GraphSpec, Labels, cache_name, graph_name, kinds_of
from pipeline.tensors import as_tensor, placed
from pipeline.trials.checkpoints import Checkpoints
from pipeline.trials.networks import export_trained, network_key
from pipeline.trials.process import Process, prepared, reset_process
from pipeline.trials.results import Result, read_result, write_result
from pipeline.trials.streaming import StreamedImages, hold_images, open_shelf
from pipeline.trials.telling import told
from pipeline.trials.versions import versions
from sskt.answers import CachedOutputs, Column, LiveOutputs, SourceOutputs
from sskt.errors import DamagedError
from sskt.feeds import Feed, ImageSet, ResidentFeed
from sskt.golden import check_pixels
from sskt.graphs import Graph
from sskt.loop import Context, Metrics, Steps, alone, evaluate, evaluate_classes, training
from sskt.loop import Progress as TrainingProgress
from sskt.methods import Method, Needs, Task, get_method
from sskt.metrics import main_metric
from sskt.orders import Share
from sskt.profile import Profile
from sskt.seeds import derive
from sskt.settings import SourceSettings
from sskt.sources import load_source
from sskt.streamed import StreamedFeed
from sskt.views import Recipe

PURPOSES = ("target", "heads", "labelled order", "pool order", "views", "training")
"""What a trial draws random numbers for, each from a seed of its own."""


@dataclass(frozen=True, kw_only=True)
class Materials:
    """What the trials of an experiment share, as arrays: one copy a node in Ray's object store, however many."""

    images: np.ndarray | StreamedImages
    labels: np.ndarray
    splits: np.ndarray
    payload: dict[str, dict[str, np.ndarray | WholeCache]]
    """By source, then by cache: uint8 [P, views, bytes], or, where images are streamed, what they are read from."""
    stored: dict[str, dict[str, Labels]]
    """What those are."""
    golden: dict[str, str]
    """Hashes of the pixels the sources saw in some views, by `sample/view`."""
    graphs: dict[str, GraphArrays]
    """By what they are called."""
    recipe: Recipe
    edges: tuple[int, ...]
    """Of the blocks of the pool."""
    sources: dict[str, SourceSettings]
    experiment: str
    storage_uri: str


def gather_materials(plan: Plan, storage: Storage, trials: list[PlannedTrial]) -> Materials:
    """Read and verify everything some trials train from. The caches have to be whole."""
    held = hold_images(plan, storage)
    caches = {
        name: {cache: require_cache(storage, spec, source=name) for cache, spec in specs.items()}
        for name, specs in plan.caches_for(trials).items()
    }
    every = [whole for by_name in caches.values() for whole in by_name.values()]
    return Materials(
        images=held.images,
        labels=held.labels,
        splits=held.splits,
        payload={
            name: {cache: whole if plan.streamed else read_cache(storage, whole) for cache, whole in by_name.items()}
            for name, by_name in caches.items()
        },
        stored={
            name: {cache: whole.spec.labels for cache, whole in by_name.items()} for name, by_name in caches.items()
        },
        golden={place: seen for whole in every for place, seen in whole.golden.items()},
        graphs={name: _graph(storage, name, spec) for name, spec in plan.graphs_for(trials).items()},
        recipe=plan.recipe,
        edges=plan.packed.edges,
        sources={name: plan.experiment.sources[name] for name in plan.sources},
        experiment=plan.experiment.name,
        storage_uri=storage.uri,
    )


def _graph(storage: Storage, name: str, spec: GraphSpec) -> GraphArrays:
    graph = load_graph(storage, spec)
    if graph is None:
        raise DamagedError(f"graph of {name} is missing; run `cache`")
    return graph


def run_trial(planned: PlannedTrial, materials: Materials, process: Process) -> Result:
    """Train one target to its end and record the result; return the recorded one where there is one."""
    return alone(trial_steps(planned, materials, process))


def trial_steps(planned: PlannedTrial, materials: Materials, process: Process) -> Steps[Result]:
    """What `run_trial` does, step by step."""
    storage = open_storage(materials.storage_uri)
    found = read_result(storage, planned.run_key)
    if found is not None:
        return found
    reset_process(process.threads)
    with closing(make_feed(planned, materials, process)) as feed:
        return (yield from _trained(planned, materials, process, feed=feed))


def _trained(planned: PlannedTrial, materials: Materials, process: Process, *, feed: Feed) -> Steps[Result]:
    storage = open_storage(materials.storage_uri)
    method = make_method(planned, materials, feed=feed, process=process)
    checkpoints = Checkpoints(storage, planned.run_key)
    trial, began = planned.trial, time.perf_counter()

    def save(state: dict[str, Any]) -> None:
        checkpoints.save(state | process.carried)
        process.saved()

    context = Context(
        device=process.device,
        report=process.report,
        save=process.waiting(save) if process.rank == 0 else lambda state: None,
        load=checkpoints.load,
        gather=process.gather,
        leaving=process.leaving,
        beat=process.beat,
        share=1 / process.fused,
    )
    profile = Profile(process.device, wanted=process.profiled)
    context = profile.told(told(context, planned, first=process.rank == 0))
    with profile.taking(method, feed):
        progress = yield from training(method, feed, epochs=trial.training.epochs, seed=trial.seed, context=context)
    test = evaluate(method, feed, "test", beat=process.beat)
    seconds = context.since(began)
    result = describe(planned, progress, materials=materials, test=test, process=process, seconds=seconds)
    by_class = evaluate_classes(method, feed, "test", classes=planned.facts.classes, beat=process.beat)
    result |= {"by_class": by_class} | process.carried | profile.kept()
    if process.rank == 0:
        process.waiting(storage.write)(network_key(planned.run_key), export_trained(planned, method))
        process.waiting(write_result)(storage, planned.run_key, result)
        process.waiting(checkpoints.clear)()
    return result


def make_feed(planned: PlannedTrial, materials: Materials, process: Process) -> Feed:
    """Serve batches of images and cached labels, from the device where all of them are in memory."""
    trial, needs, streamed = planned.trial, planned.needs, isinstance(materials.images, StreamedImages)
    feed = (StreamedFeed if streamed else ResidentFeed)(
        _image_set(materials, process),
        classes=planned.facts.classes,
        training=trial.training,
        recipe=materials.recipe,
        view_count=planned.facts.views,
        seed=trial.seed,
        outputs={name: _outputs(name, planned, materials, process) for name in trial.sources if needs.outputs},
        graphs={name: _neighbours(name, needs, materials, process) for name in trial.sources if needs.graph},
        extras=needs.extras(trial.sources),
        share=Share(rank=process.rank, world=process.world),
    )
    if not streamed:
        check_pixels(feed.gallery, materials.golden)
    return feed


def _image_set(materials: Materials, process: Process) -> ImageSet:
    """Images, or those that are there at a time, whose pixels are checked as they come."""
    labels, splits = (placed(array, process.device, process.placed) for array in (materials.labels, materials.splits))
    if isinstance(materials.images, StreamedImages):
        shelf = open_shelf(materials.images, golden=materials.golden, recipe=materials.recipe, device=process.device)
        return ImageSet(shelf, labels, splits, materials.edges)
    return ImageSet(placed(materials.images, process.device, process.placed), labels, splits, materials.edges)


def _outputs(name: str, planned: PlannedTrial, materials: Materials, process: Process) -> SourceOutputs:
    settings, needs = materials.sources[name], planned.needs
    if settings.live:
        return LiveOutputs(load_source(name, settings).place(process.device), needs.outputs)

    def column(cache: str) -> Column:
        payload, labels = materials.payload[name][cache], materials.stored[name][cache]
        if isinstance(payload, WholeCache):
            mapped = map_cache(open_storage(materials.storage_uri), payload)
            return Column(as_tensor(mapped), labels.encoder, labels.width)
        return Column(placed(payload, process.device, process.placed), labels.encoder, labels.width)

    kinds = kinds_of(needs, planned.trial.training)
    return CachedOutputs(
        {kind: {output: column(cache_name(output, kind=kind)) for output in needs.outputs} for kind in kinds}
    )


def _neighbours(name: str, needs: Needs, materials: Materials, process: Process) -> Graph:
    columns = materials.graphs[graph_name(name, needs.graph)]
    ids, similarity = (placed(columns[name], process.device, process.placed) for name in ("ids", "similarity"))
    return Graph(ids.long(), similarity)


def make_method(planned: PlannedTrial, materials: Materials, *, feed: Feed, process: Process) -> Method:
    """Build the trial's method with its networks and optimisers."""
    trial = planned.trial
    task = Task(
        facts=planned.facts,
        target=trial.target,
        training=trial.training,
        steps_per_epoch=feed.steps_per_epoch,
        seed=trial.seed,
        load_source=lambda name: load_source(name, materials.sources[name]),
        pool=feed.pool(),
        prepare=partial(prepared, process=process, feed=feed, rows=planned.facts.rows),
    )
    return get_method(trial.method)(task, trial.options)


def describe(
    planned: PlannedTrial,
    progress: TrainingProgress,
    *,
    materials: Materials,
    test: Metrics,
    process: Process,
    seconds: float,
) -> Result:
    """Everything worth keeping of a finished training."""
    metric = main_metric(multi_label=planned.facts.multi_label)
    best = max(progress.history, key=lambda metrics: metrics[f"validation_{metric}"])
    return {
        "run_key": planned.run_key,
        "label": planned.trial.label,
        "spec": planned.spec,
        "metric": metric,
        "test": test,
        "validation": {name: progress.history[-1][f"validation_{name}"] for name in test},
        "best_epoch": best["epoch"],
        "history": progress.history,
        "label_rows": _from_caches(progress.label_rows, planned, materials) * process.world,
        "training_seconds": round(progress.seconds, 3),
        "waited_seconds": round(progress.waited, 3),
        "seconds": round(seconds, 3),
        "earlier_seconds": round(progress.earlier, 3),
        "processes": process.world,
        "side_by_side": process.side_by_side,
        **({"fused": process.fused} if process.fused > 1 else {}),
        "seeds": {purpose: derive(planned.trial.seed, purpose) for purpose in PURPOSES},
        "versions": versions(),
    }


def _from_caches(label_rows: int, planned: PlannedTrial, materials: Materials) -> int:
    """Of the labels that a feed has served, as many of one source as of another, those that no live source gave."""
    sources = planned.trial.sources
    return label_rows // max(1, len(sources)) * sum(not materials.sources[name].live for name in sources)
