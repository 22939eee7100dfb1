"""The command line: one verb per stage, one experiment file for all of them."""

import argparse
import os
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path

import shtab

from cluster.logs import LogError, check_choice
from cluster.resources import ResourceError
from cluster.storage import StorageError
from pipeline.care.upkeep import UPKEEP_VERBS, add_upkeep_arguments
from pipeline.demo import cost_lines, run_demo
from pipeline.forecasts.forecast import forecast
from pipeline.forecasts.records import compare
from pipeline.forecasts.shown import compared_lines
from pipeline.forecasts.verbs import FORECAST_VERBS, add_forecast_arguments
from pipeline.inspecting.verbs import INSPECTING_VERBS, add_inspecting_arguments
from pipeline.interrupts import insistent_interrupts
from pipeline.planning.catalogue import catalogue
from pipeline.planning.experiment import LAPTOP, load_experiment
from pipeline.planning.plan import Plan, PlannedTrial
from pipeline.progress import complain, say
from pipeline.release.verbs import RELEASE_VERBS, add_release_arguments
from pipeline.reports.report import report_experiment
from pipeline.reports.tables import to_json, to_terminal
from pipeline.reports.verbs import RESULTS_VERBS, add_results_arguments
from pipeline.reports.write import write_report
from pipeline.stages import Say, Stages
from pipeline.starting.verbs import STARTING_VERBS, add_starting_arguments
from pipeline.trials.loggers import check_loggers
from pipeline.watching.verbs import WATCHING_VERBS, add_watching_arguments
from sskt.errors import InputError, SsktError

BAD_INPUT, FAILED, INTERRUPTED = 2, 1, 130


def pack_verb(arguments: argparse.Namespace) -> int:
    """Pack the dataset of an experiment.

    Reads every image once, gives each a sample id that never changes, assigns the splits, and writes Parquet under
    `datasets/` of the storage. Images that cannot be read are named; `dataset.max_unreadable` says how many may be left
    out. A dataset that is packed already is found, not read again.

      python -m pipeline pack experiments/demo.yaml
      python -m pipeline pack mine.yaml --set dataset.image_size=64
    """
    _stages(arguments).pack()
    return 0


def cache_verb(arguments: argparse.Namespace) -> int:
    """Compute what the sources say about every view, once.

    Packs first if need be. Ray Data runs each source over its shards; a shard is read back, then committed, so
    that after any interruption the same command makes only what is missing. Existing shards are verified, a damaged
    one is made again. Graphs of nearest neighbours, where a method asks for them, are derived from the caches. Sources
    that no method reads, and those that are `live`, are left alone.

      python -m pipeline cache experiments/demo.yaml
      python -m pipeline cache mine.yaml --set views.count=16 --set cache.encoding=fp32
    """
    stages = _stages(arguments)
    stages.cache(stages.pack())
    return 0


def train_verb(arguments: argparse.Namespace) -> int:
    """Train one trial by Ray Train, over `resources.workers` processes.

    Packs and caches first if need be. Saves a checkpoint every epoch and continues from it; a finished training is
    found, not repeated. Without --trial the experiment has to hold a single one. With --profile it says where the time
    of its steps went (docs/sweeps.md).

      python -m pipeline train experiments/demo_source.yaml --export mnist.safetensors
      python -m pipeline train experiments/demo.yaml --trial 3
      python -m pipeline train mine.yaml --trial 0 --set resources.workers=2
      python -m pipeline train mine.yaml --trial 0 --in-process --profile
    """
    stages = _stages(arguments, writes="claims")
    plan = stages.pack()
    planned = _choose(plan, arguments.trial)
    stages.cache(plan, trials=[planned])
    stages.train(planned, plan, in_process=arguments.in_process, profiled=arguments.profile)
    if arguments.export:
        stages.export(planned, arguments.export)
    return 0


def sweep_verb(arguments: argparse.Namespace) -> int:
    """Run all trials of an experiment by Ray Tune, then print the report.

    Packs and caches first if need be. Trials that have a result are found, not repeated; interrupted ones go on from
    their last checkpoint. As many run side by side as the resources allow. A trial that fails does not end the
    sweep: the table shows it with its reason, the exit code is 1, and the same command tries it again. Grids, searches
    and schedulers stand in the file (docs/sweeps.md). With --dry-run nothing is made: it prints the trials, what the
    caches will hold, and how long all of it may take.

      python -m pipeline sweep experiments/demo.yaml
      python -m pipeline sweep mine.yaml --set seeds=[0,1,2,3,4]
      python -m pipeline sweep mine.yaml --dry-run
    """
    stages = _stages(arguments, writes=None if arguments.dry_run else "claims")
    check_loggers(stages.experiment.log_to)
    if arguments.dry_run:
        for line in forecast(stages.experiment, stages.storage):
            say(line)
        return 0
    plan = stages.pack()
    stages.cache(plan)
    outcome = stages.sweep(plan)
    _print_report(plan, stages)
    return FAILED if outcome.failures else 0


def report_verb(arguments: argparse.Namespace) -> int:
    """Print the table of an experiment from the results that are there, and write a page to show.

    Trains nothing. Under `reports/` of the storage it writes a page that is one HTML file and needs no network, and the
    same numbers as Markdown, CSV, Parquet and JSON (docs/report.md). Scores are those on the test split after the last
    epoch, mean ± standard deviation over seeds: accuracy, or mean average precision where an image may have several
    labels. The change against `scratch` is paired by seed and comes with its 95 % interval. Of a table of more than 60
    rows the 30 best by validation are printed. The CSV has a line for each trial that has ended, with those that
    failed, or that a search tried or stopped early. With --json it prints the numbers alone, for machines.

      python -m pipeline report experiments/demo.yaml
      python -m pipeline report experiments/demo.yaml --json
    """
    if not arguments.json:
        stages = _stages(arguments, writes=None)
        _print_report(stages.pack(), stages)
        return 0
    stages = _stages(arguments, writes=None, tell=lambda line: None)
    plan = stages.pack()
    report = report_experiment(plan, stages.storage)
    write_report(plan, report, stages.storage)
    print(to_json(report))  # noqa: T201 (whoever reads it wants nothing else)
    return 0


def methods_verb(arguments: argparse.Namespace) -> int:
    """List the methods, what each needs of its sources, and what can be chosen.

    Every option stands with its default; write others beside `method:` in an experiment file. docs/methods.md has the
    equations, where the defaults come from, and what was published.

      python -m pipeline methods

    - {method: sskt, sources: [imagenet, places], alpha: 0.5, heads: transfer}
    """
    say(catalogue())
    return 0


def demo_verb(arguments: argparse.Namespace) -> int:
    """Run the whole pipeline on data and networks that packages ship: no download, no account, no GPU.

    Trains a small network on MNIST, takes it and an ImageNet network as sources, and measures what each teaches a small
    target that sees five labels per class of scikit-learn's digits. The experiment is experiments/demo.yaml; what it
    makes lies in runs/demo. A second run finds everything.

      python -m pipeline demo
      python -m pipeline demo --set storage=/tmp/demo
    """
    return run_demo(changes=arguments.set, say=say)


VERBS: dict[str, Callable[[argparse.Namespace], int]] = {
    **STARTING_VERBS,
    "pack": pack_verb,
    "cache": cache_verb,
    "train": train_verb,
    **FORECAST_VERBS,
    "sweep": sweep_verb,
    "report": report_verb,
    **RESULTS_VERBS,
    **WATCHING_VERBS,
    **INSPECTING_VERBS,
    **RELEASE_VERBS,
    "methods": methods_verb,
    **UPKEEP_VERBS,
    "demo": demo_verb,
}

ADD_ARGUMENTS: dict[str, Callable[[argparse.ArgumentParser, str], None]] = {
    **dict.fromkeys(STARTING_VERBS, add_starting_arguments),
    **dict.fromkeys(FORECAST_VERBS, add_forecast_arguments),
    **dict.fromkeys(RESULTS_VERBS, add_results_arguments),
    **dict.fromkeys(WATCHING_VERBS, add_watching_arguments),
    **dict.fromkeys(INSPECTING_VERBS, add_inspecting_arguments),
    **dict.fromkeys(RELEASE_VERBS, add_release_arguments),
    **dict.fromkeys(UPKEEP_VERBS, add_upkeep_arguments),
}
"""Of the verbs that stand in files of their own."""

NO_CHANGES = ("methods", "caches", "cache-diff", "init", "predict", "results", "verify-results")
"""Verbs that read no experiment file, or say in another place what is changed in it."""


def make_parser() -> argparse.ArgumentParser:
    """The parser of the whole command line."""
    parser = argparse.ArgumentParser(
        prog="sskt" if Path(sys.argv[0]).name == "sskt" else "python -m pipeline",
        description="Transfer what several pretrained vision networks know into a small one of your own.",
    )
    shtab.add_argument_to(parser, "--print-completion", help="print what completes the command `sskt` in a shell")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    for name, verb in VERBS.items():
        summary, _, manual = (verb.__doc__ or "").partition("\n")
        manual = f"{summary}\n{textwrap.dedent(manual)}"
        command = verbs.add_parser(
            name, help=summary, description=manual, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        if name in ADD_ARGUMENTS:
            ADD_ARGUMENTS[name](command, name)
        elif name not in ("demo", "methods"):
            command.add_argument("experiment", help="the experiment file (YAML)").complete = shtab.FILE
        if name not in NO_CHANGES:
            command.add_argument(
                "--set", action="append", default=[], metavar="PATH=VALUE", help="change a field; as often as needed"
            )
        if name not in (*NO_CHANGES, "demo"):
            command.add_argument(
                "--laptop", action="append_const", dest="set", const=LAPTOP, help="take the file's own smaller settings"
            )
        if name == "report":
            command.add_argument("--json", action="store_true", help="print the numbers alone, as JSON")
        if name == "sweep":
            command.add_argument("--dry-run", action="store_true", help="only say what would be done")
        if name == "train":
            command.add_argument("--trial", type=int, metavar="N", help="number of the trial in the experiment, from 0")
            command.add_argument("--export", metavar="FILE", help="write the trained target there (.safetensors)")
            command.add_argument("--in-process", action="store_true", help="train here, without Ray")
            command.add_argument("--profile", action="store_true", help="say where the time of its steps goes")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; return its exit code."""
    arguments = make_parser().parse_args(argv)
    try:
        check_choice()
        return VERBS[arguments.verb](arguments)
    except (InputError, LogError, ResourceError, StorageError) as error:
        complain(f"error: {error}")
        return BAD_INPUT
    except SsktError as error:
        complain(f"failed in {arguments.verb}: {error}")
        return FAILED
    except BrokenPipeError:  # whoever read along has gone, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    except KeyboardInterrupt:
        complain("\nstopped; what was finished is kept, the same command goes on from there")
        return INTERRUPTED


def run() -> None:
    """Entry point of the console command."""
    with insistent_interrupts():
        code = main()
    sys.exit(code)


def _stages(arguments: argparse.Namespace, *, writes: str | None = "", tell: Say = say) -> Stages:
    return Stages(load_experiment(arguments.experiment, changes=arguments.set), tell, writes=writes)


def _choose(plan: Plan, number: int | None) -> PlannedTrial:
    if plan.experiment.search:
        raise InputError(f"{plan.experiment.name} is a search, whose trials are not known beforehand; run `sweep`")
    if number is None and len(plan.trials) == 1:
        return plan.trials[0]
    if number is None or not 0 <= number < len(plan.trials):
        listed = "; ".join(
            f"{at}: {planned.trial.label}, seed {planned.trial.seed}" for at, planned in enumerate(plan.trials)
        )
        raise InputError(f"--trial {number}: name one of {len(plan.trials)} trials by its number ({listed})")
    return plan.trials[number]


def _print_report(plan: Plan, stages: Stages) -> None:
    report = report_experiment(plan, stages.storage)
    where = f"{stages.experiment.storage}/{write_report(plan, report, stages.storage)}"
    shown = to_terminal(report, whole=where.removesuffix("html") + "csv")
    say(f"\n{shown}\n{cost_lines(report.cost)}")
    for line in compared_lines(compare(plan, stages.storage)):
        say(f"plan    {line}")
    say(f"report  {where}")


if __name__ == "__main__":
    run()
