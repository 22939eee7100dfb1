"""The stages in their order, each doing only what is missing."""

import functools
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Concatenate, ParamSpec, TypeVar

import torch

from cluster.logs import event
from cluster.metrics import since, traffic, working
from cluster.near import nearby
from cluster.resources import concurrency, local_limits
from cluster.session import is_local
from cluster.storage import Storage, StorageError, checked_storage
from pipeline.caches.cache import CacheOutcome, ensure_caches
from pipeline.caches.graphs import ensure_graphs
from pipeline.caches.pilot import choose_encoding, known_encoding, make_pilots
from pipeline.caches.rounding import rounding_lines
from pipeline.canonical import plain
from pipeline.packing.growth import packed_datasets
from pipeline.packing.pack import ALL_READERS, pack
from pipeline.packing.parts import read_labels
from pipeline.planning.experiment import Experiment
from pipeline.planning.feeding import feed_line
from pipeline.planning.plan import Plan, PlannedTrial, load_sources, make_plan, try_sources
from pipeline.progress import Progress
from pipeline.sweeps.sweep import SweepOutcome, run_one, sweep
from pipeline.trials.checkpoints import Checkpoints
from pipeline.trials.networks import network_key
from pipeline.trials.results import Result, read_result
from sskt.errors import DamagedError, InputError, SsktError
from sskt.metrics import TITLES
from sskt.profile import profile_lines

WATCH_SECONDS = 0.5

Say = Callable[[str], None]
P, T = ParamSpec("P"), TypeVar("T")


class NotMadeError(InputError):
    """What `pack` makes is not there."""


def found_plan(experiment: Experiment, storage: Storage) -> Plan:
    """The plan of what is packed and chosen already; makes nothing, asks for no resources, refuses what is missing."""
    dataset, sources, encodings = experiment.dataset, load_sources(experiment), dict[str, str]()
    settings, signature = plain(dataset), ALL_READERS[dataset.kind](dataset).signature
    found = [one for one in packed_datasets(storage) if (plain(one.settings), one.signature) == (settings, signature)]
    if not found:
        raise NotMadeError(
            f"{experiment.name}: its dataset, as it is now, is not packed on {storage.uri!r}; run `pack`"
        )
    for name, pilot in make_pilots(experiment, found[0], sources).items():
        known = known_encoding(pilot, storage)
        if known is None:
            raise NotMadeError(
                f"{experiment.name}: cache.encoding is 'auto', and none is chosen for {name!r}; run `pack`"
            )
        encodings[name] = known
    return make_plan(experiment, found[0], sources=sources, encodings=encodings)


def _stage(run: Callable[Concatenate["Stages", P], T]) -> Callable[Concatenate["Stages", P], T]:
    """A stage whose beginning and end are logged, and whose last line tells of a storage that had to be asked again."""

    @functools.wraps(run)
    def told(stages: "Stages", *arguments: P.args, **named: P.kwargs) -> T:
        name, began, before = run.__name__, time.monotonic(), traffic()
        with working(stages.experiment.name, name):
            event("stage_begin")
            try:
                made = run(stages, *arguments, **named)
            except (SsktError, StorageError) as error:
                event("stage_end", level=logging.ERROR, seconds=time.monotonic() - began, reason=str(error))
                raise
            asked = since(before)
            if asked.retried:
                stages.say(f"{name:<7} storage: {asked.requests} requests, {asked.retried} retried")
            event("stage_end", seconds=time.monotonic() - began, **asked._asdict())
            return made

    return told


@dataclass
class Stages:
    """Runs the stages of one experiment; `say` is told, in a line each, what was done and what was found done."""

    experiment: Experiment
    say: Say
    writes: str | None = ""
    """Where on the storage something will be written for sure; None where at most a report is."""

    def __post_init__(self) -> None:
        resources = self.experiment.resources
        if self.writes is not None and is_local():  # what can never fit is refused now
            for need, workers in ((resources.trial, resources.workers), (resources.source_worker, 1)):
                concurrency(local_limits(gpus=torch.cuda.device_count()), need, workers=workers)
        try:
            storage = checked_storage(self.experiment.storage, write=self.writes)
        except StorageError as error:
            raise InputError(str(error)) from error
        self.storage: Storage = nearby(storage, resources.node_cache_gb)

    @_stage
    def pack(self) -> Plan:
        """Load the sources, pack the dataset, and check the whole experiment against both."""
        sources = load_sources(self.experiment)
        with Progress("pack", total=0, unit="images") as progress:
            packed = pack(self.experiment.dataset, self.storage, progress=progress.reach)
        counts = f"{packed.pool} to train on, {packed.validation} validation, {packed.test} test"
        grown = ""
        if len(packed.blocks) > 1:
            grown = f", grown from {packed.blocks[-2].stop} to {packed.pool} training images"
        self.say(f"pack    {packed.name}: {packed.rows} images ({counts}){grown} [{packed.fingerprint[:12]}]")
        if packed.not_grown:
            self.say(f"pack    not grown from {packed.not_grown}")
        for reason in packed.unreadable:
            self.say(f"pack    left out: {reason}")
        try_sources(sources, packed)
        for line in rounding_lines(self.experiment, packed, sources, self.storage):
            self.say(f"pilot   {line}")
        encodings = {
            name: choose_encoding(pilot, self.storage, say=self.say)
            for name, pilot in make_pilots(self.experiment, packed, sources).items()
        }
        plan = make_plan(self.experiment, packed, sources=sources, encodings=encodings)
        if plan.streamed:
            read_labels(packed, self.storage)  # made now, by whoever may write data sets
            self.say(f"pack    {feed_line(plan.experiment, packed, plan.caches)}")
        return plan

    @_stage
    def cache(self, plan: Plan, *, trials: list[PlannedTrial] | None = None) -> dict[str, CacheOutcome]:
        """Make what is missing of the caches that some trials read (None: all possible ones)."""
        wanted = plan.caches_for(trials)
        outcomes = ensure_caches(plan, self.storage, wanted=wanted)
        for name, outcome in outcomes.items():
            for damage in outcome.repaired:
                self.say(f"cache   {name}: made again: {damage}")
            how = f"{outcome.passes} source passes" if outcome.passes else "found, 0 source passes"
            for cache, whole in outcome.caches.items():
                told = f"{whole.bytes / 1e6:.2f} MB, content {whole.content} [{whole.spec.id}]"
                self.say(f"cache   {name} {cache}: {how}; {told}")
        for name in ensure_graphs(self.storage, plan.graphs_for(trials), resources=self.experiment.resources):
            self.say(f"graph   {name}")
        return outcomes

    @_stage
    def sweep(self, plan: Plan) -> SweepOutcome:
        """Run the trials that have no result yet."""
        outcome = sweep(plan, self.storage, say=self.say)
        failed = f", {len(outcome.failures)} failed" if outcome.failures else ""
        self.say(f"sweep   {outcome.found} trials found, {outcome.done} done now{failed}")
        return outcome

    @_stage
    def train(self, planned: PlannedTrial, plan: Plan, *, in_process: bool = False, profiled: bool = False) -> float:
        """Train one trial by Ray Train, or in this process; return how long it trained now, 0 if it was found done."""
        found = read_result(self.storage, planned.run_key)
        result = found or self._train(planned, plan, in_process=in_process, profiled=profiled)
        how = "found" if found else f"{result['seconds']:.1f} s on {result['processes']} process(es)"
        name = f"{planned.trial.label}, seed {planned.trial.seed}"
        told = f"test {TITLES[result['metric']]} {result['test'][result['metric']]:.1f} %"
        self.say(f"train   {name}: {told} ({how}) [{planned.run_key}]")
        if profiled:
            taken = result.get("profile")
            lines = profile_lines(taken) if taken else ["no profile was taken when this was trained"]
            self.say("\n".join(f"profile {line}" for line in lines))
        return 0.0 if found else float(result["seconds"])

    def _train(self, planned: PlannedTrial, plan: Plan, *, in_process: bool, profiled: bool) -> Result:
        if self.experiment.log_to:
            self.say("train   log_to is heard of by `sweep` alone")
        with self._watched(planned):
            return run_one(planned, plan, self.storage, in_process=in_process, profiled=profiled, say=self.say)

    @contextmanager
    def _watched(self, planned: PlannedTrial) -> Iterator[None]:
        """Show how far a training is by looking at its checkpoints: wherever it runs, they lie on the storage."""
        epochs, checkpoints = planned.trial.training.epochs, Checkpoints(self.storage, planned.run_key)
        ended = threading.Event()

        def watch(progress: Progress) -> None:
            while not ended.wait(WATCH_SECONDS):
                with suppress(StorageError):  # the training will say so, if it matters
                    progress.reach(max(progress.done, checkpoints.newest_epoch()), epochs)

        with Progress("train", total=epochs, unit="epochs") as progress:
            watcher = threading.Thread(target=watch, args=(progress,), daemon=True)
            watcher.start()
            try:
                yield
            finally:
                ended.set()
                watcher.join()

    def export(self, planned: PlannedTrial, path: str) -> None:
        """Copy a trained target to a file of its own."""
        data = self.storage.read(network_key(planned.run_key))
        if data is None:
            raise DamagedError(
                f"{network_key(planned.run_key)} is missing; delete the result beside it and train again"
            )
        file = Path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(data)
        self.say(f"export  {file}: {len(data) / 1e6:.2f} MB")
