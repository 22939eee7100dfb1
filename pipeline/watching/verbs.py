"""The verb that only looks."""

import argparse
import sys
import time
from collections.abc import Callable

from rich.console import Console
from rich.live import Live

from cluster.storage import Storage, checked_storage
from pipeline.planning.experiment import Experiment, load_experiment
from pipeline.planning.plan import Plan
from pipeline.progress import QUIET_SECONDS, say
from pipeline.stages import NotMadeError, found_plan
from pipeline.watching.live_page import EVERY, LivePage
from pipeline.watching.screen import Pace, line, screen
from pipeline.watching.snapshot import Snapshot, Watcher

NEAR, FAR = 2.0, 15.0
"""Seconds from look to look at a folder, and at a bucket, where listings are paid for."""


def watch_verb(arguments: argparse.Namespace) -> int:
    """Watch a sweep from another terminal or machine.

    Reads the storage alone: what the caches have, which trials run and how far, how the rows stand on the validation
    split, what failed and why, and about how long it will take. Ends when the sweep is over. In a terminal a screen
    that keeps itself up to date; elsewhere a line a minute; with --once a single look. With --page the report's files
    are written anew as trials end, and an open page loads itself again until the sweep is over (docs/report.md).

      python -m pipeline watch mine.yaml
      python -m pipeline watch mine.yaml --set storage=s3://bucket/prefix --once
      python -m pipeline watch mine.yaml --page
    """
    experiment = load_experiment(arguments.experiment, changes=arguments.set)
    storage = checked_storage(experiment.storage, write=None)
    if arguments.once:
        watcher = Watcher(found_plan(experiment, storage), storage)
        Console(highlight=False).print(screen(watcher.look(), left=None))
        return 0
    follow = _follow_on_screen if sys.stdout.isatty() else _follow_by_lines
    plan, pace = _plan_to_come(experiment, storage), FAR if "://" in storage.uri else NEAR
    page = LivePage(plan, storage) if arguments.page else None
    if page:
        say(f"page    {experiment.storage}/reports/{experiment.name}.html")
    follow(Watcher(plan, storage), pace, page)
    return 0


def _plan_to_come(experiment: Experiment, storage: Storage) -> Plan:
    """The plan, as soon as its data is packed."""
    told = False
    while True:
        try:
            return found_plan(experiment, storage)
        except NotMadeError as error:
            if not told:
                say(f"waiting: {error}")
            told = True
            time.sleep(NEAR)


def _follow_on_screen(watcher: Watcher, seconds: float, page: LivePage | None) -> None:
    pace, snapshot = Pace(), _look(watcher, page)
    with Live(screen(snapshot, left=None), console=Console(highlight=False), auto_refresh=False) as live:
        while not snapshot.over:
            time.sleep(seconds)
            snapshot = _look(watcher, page)
            live.update(screen(snapshot, left=pace.left(snapshot, now=time.monotonic())), refresh=True)


def _follow_by_lines(watcher: Watcher, seconds: float, page: LivePage | None) -> None:
    pace = Pace()
    while True:
        snapshot = _look(watcher, page)
        say(line(snapshot, left=pace.left(snapshot, now=time.monotonic())))
        if snapshot.over:
            return
        time.sleep(EVERY if page else max(seconds, QUIET_SECONDS))


def _look(watcher: Watcher, page: LivePage | None) -> Snapshot:
    snapshot = watcher.look()
    if page:
        page.follow(snapshot)
    return snapshot


WATCHING_VERBS: dict[str, Callable[[argparse.Namespace], int]] = {"watch": watch_verb}


def add_watching_arguments(command: argparse.ArgumentParser, name: str) -> None:
    """Declare what the verb takes."""
    command.add_argument("experiment", help="the experiment file (YAML)")
    how = command.add_mutually_exclusive_group()
    how.add_argument("--once", action="store_true", help="look once, and end")
    how.add_argument("--page", action="store_true", help="write the report's page anew as trials end")
