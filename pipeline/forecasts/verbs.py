"""The verb that says what an experiment will cost."""

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict

import shtab

from cluster.storage import Storage, checked_storage
from pipeline.forecasts.figures import make_forecast
from pipeline.forecasts.machines import load_cluster, this_machine
from pipeline.forecasts.pilot import measure
from pipeline.forecasts.rates import Rates, found_rates
from pipeline.forecasts.records import FOLDER, Recorded, read_forecast, write_forecast
from pipeline.forecasts.shown import forecast_lines
from pipeline.forecasts.work import known_trials, standing_of, work_left
from pipeline.planning.experiment import load_experiment
from pipeline.planning.plan import Plan
from pipeline.progress import say
from pipeline.stages import found_plan


def plan_verb(arguments: argparse.Namespace) -> int:
    """Say what an experiment will cost before it is paid for.

    Trials, source passes, bytes, device hours, S3 requests, wall clock and dollars of what is left to do, with caches
    and with the same sources run live, on this machine or on the cluster that a file describes (docs/plan.md). Of a
    file with several sizes it also says where more nodes stop being of use. What pieces of work take is known from
    finished trials and caches on the storage; --measure runs a few steps of each kind instead, in a minute or two. What
    is known of neither is called unknown. The data have to be packed. The forecast is kept beside what it is about.

      python -m pipeline plan mine.yaml --measure
      python -m pipeline plan mine.yaml --cluster cluster.yaml
    """
    experiment = load_experiment(arguments.experiment, changes=arguments.set)
    cluster = load_cluster(arguments.cluster) if arguments.cluster else this_machine()
    storage = checked_storage(experiment.storage, write=FOLDER)
    plan = found_plan(experiment, storage)
    rates = known_rates(plan, storage)
    if arguments.measure:
        left = work_left(plan, known_trials(plan, storage), standing_of(plan, storage))
        rates |= measure(plan, storage, trials=[planned for planned, times in left if times > 0])
    forecast = make_forecast(plan, storage, rates, cluster)
    imagined = cluster.suppose.images is not None or cluster.suppose.trials is not None
    write_forecast(storage, Recorded(forecast=forecast, rates=rates, supposed=imagined))
    if arguments.json:
        print(json.dumps(asdict(forecast), indent=2))  # noqa: T201 (whoever reads it wants nothing else)
        return 0
    for line in forecast_lines(forecast):
        say(line)
    return 0


def known_rates(plan: Plan, storage: Storage) -> Rates:
    """What finished work took, and what was measured when the newest forecast was made."""
    recorded = read_forecast(storage, plan.experiment.name)
    return found_rates(plan, storage) | (recorded[0].rates if recorded else Rates())


FORECAST_VERBS: dict[str, Callable[[argparse.Namespace], int]] = {"plan": plan_verb}


def add_forecast_arguments(command: argparse.ArgumentParser, name: str) -> None:
    """Declare what the verb takes."""
    command.add_argument("experiment", help="the experiment file (YAML)").complete = shtab.FILE  # type: ignore[attr-defined]
    command.add_argument("--cluster", metavar="FILE", help="its description (YAML); without it this machine")
    command.add_argument("--measure", action="store_true", help="run a few steps of each kind of work first")
    command.add_argument("--json", action="store_true", help="print the numbers alone, as JSON")
