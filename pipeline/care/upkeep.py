"""The verbs of house-keeping: what lies on a storage, whether it is right, and what nobody needs."""

import argparse
from collections.abc import Callable

from cluster.storage import checked_storage, open_storage
from pipeline.care.housekeeping import collect, diff_caches, list_caches
from pipeline.care.verify import verify
from pipeline.planning.experiment import load_experiment
from pipeline.progress import say
from pipeline.stages import found_plan
from sskt.errors import InputError


def caches_verb(arguments: argparse.Namespace) -> int:
    """List the label caches and the graphs on a storage.

    A line for each: whose answers, about which samples and views, in which encoding; its size; whether it is whole,
    lacks shards, or is damaged; when it was last written to; how many results on the storage came from it. A pool that
    has grown has a cache for each time it grew.

      python -m pipeline caches runs/mine
    """
    for line in list_caches(checked_storage(arguments.storage, write=None)):
        say(line)
    return 0


def cache_diff_verb(arguments: argparse.Namespace) -> int:
    """Say what two caches of a storage differ in.

    A line for each field of their identities that differs, such as source.weights or views.operations, with both
    values; "identical" where none does. The first digits of an id are enough; `caches` lists the ids.

      python -m pipeline cache-diff runs/mine 628bcca9fdfb8a0e c81547ac598aa582
      python -m pipeline cache-diff runs/mine 628 c8
    """
    for line in diff_caches(checked_storage(arguments.storage, write=None), arguments.one, arguments.other):
        say(line)
    return 0


def verify_verb(arguments: argparse.Namespace) -> int:
    """Verify all caches and graphs that the trials of an experiment read.

    Checks every checksum, that every sample's every view is there once, records and manifests, and the pixels that the
    sources saw; then runs each source again on some samples, in other batches, and compares. Beyond what its encoding
    rounds, a value may be off by 10 times the noise between two such runs. Shards that are bad are put aside, under
    quarantine/, so that `cache` makes them again and no others; nothing else is changed. The exit code is 1 where
    anything was bad.

      python -m pipeline verify experiments/demo.yaml
      python -m pipeline verify mine.yaml --rerun 0
    """
    experiment = load_experiment(arguments.experiment, changes=arguments.set)
    storage, bad, verdict = checked_storage(experiment.storage, write=None), 0, None
    for verdict in verify(found_plan(experiment, storage), storage, fraction=arguments.rerun):
        say(str(verdict))
        bad += bool(verdict.problems)
    if verdict is None:
        say("verify  no trial reads a cache")
    return 1 if bad else 0


def gc_verb(arguments: argparse.Namespace) -> int:
    """Remove the caches and graphs of a storage that none of the experiments needs.

    Goes by the experiment files given, each as it would be run now, with every --set; caches of an experiment, or of
    a --set, that is not named are taken for needless. Removes such caches, their graphs, what was put aside as damaged,
    checkpoints of trainings that have a result, and claims that nobody has renewed for an hour; all of it can be made
    again. Never touches results, networks, data sets, choices of encodings, other checkpoints, or what may be in the
    making: claimed or begun, and written to within the hour. Without --yes nothing is removed: it says what would be.

      python -m pipeline gc runs/mine mine.yaml other.yaml --dry-run
      python -m pipeline gc runs/mine mine.yaml other.yaml --yes
    """
    storage, plans = checked_storage(arguments.storage, write="" if arguments.yes else None), []
    for file in arguments.experiments:
        experiment = load_experiment(file, changes=arguments.set)
        if (theirs := open_storage(experiment.storage).uri) != storage.uri:
            raise InputError(f"{file}: storage is {theirs!r}; it has to be {storage.uri!r}, which is to be cleared")
        plans.append(found_plan(experiment, storage))
    for line in collect(storage, plans, delete=arguments.yes):
        say(line)
    return 0


UPKEEP_VERBS: dict[str, Callable[[argparse.Namespace], int]] = {
    "caches": caches_verb,
    "cache-diff": cache_diff_verb,
    "verify": verify_verb,
    "gc": gc_verb,
}


def add_upkeep_arguments(command: argparse.ArgumentParser, name: str) -> None:
    """What each of the verbs takes."""
    if name == "verify":
        command.add_argument("experiment", help="the experiment file (YAML)")
        told = "run sources again on so much of the samples, on 16 of each part at least; 0 for none (%(default)s)"
        command.add_argument("--rerun", type=float, default=0.001, metavar="FRACTION", help=told)
        return
    command.add_argument("storage", help="a storage, as in experiment files")
    if name == "cache-diff":
        command.add_argument("one", help="id of a cache, or its first digits")
        command.add_argument("other", help="id of another")
    if name == "gc":
        command.add_argument("experiments", nargs="+", metavar="experiment", help="the experiment files that count")
        sure = command.add_mutually_exclusive_group()
        sure.add_argument("--dry-run", action="store_true", help="only say what would be removed; the default")
        sure.add_argument("--yes", action="store_true", help="remove it")
