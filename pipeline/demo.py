"""The demo: the whole pipeline on real data and real networks that packages ship."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

from pipeline.planning.experiment import load_experiment
from pipeline.reports.costs import Cost
from pipeline.reports.report import make_report
from pipeline.reports.tables import to_markdown
from pipeline.reports.write import write_report
from pipeline.stages import Stages

EXPERIMENTS = Path(__file__).parent.parent / "experiments"
SOURCE_NAME = "mnist"


def run_demo(*, changes: Sequence[str], say: Callable[[str], None]) -> int:
    """Train the demo's source, then pack, cache, sweep, report; return the exit code."""
    began = time.perf_counter()
    experiment = load_experiment(str(EXPERIMENTS / "demo.yaml"), changes=changes)
    storage_change = [f"storage={experiment.storage}"]
    source = Stages(load_experiment(str(EXPERIMENTS / "demo_source.yaml"), changes=storage_change), say)
    source_plan = source.pack()
    trained = source.train(source_plan.trials[0], source_plan)
    source.export(source_plan.trials[0], experiment.sources[SOURCE_NAME].weights)

    stages = Stages(experiment, say)
    plan = stages.pack()
    caches = stages.cache(plan)
    outcome = stages.sweep(plan)
    report = make_report(plan, stages.storage)
    where = write_report(plan, report, stages.storage)
    say("")
    say(to_markdown(report))
    say(cost_lines(report.cost))
    passes = sum(made.worker_seconds / made.workers for made in caches.values())
    training = trained + outcome.seconds / outcome.at_once
    say(now_lines(source_passes=passes, training=training, total=time.perf_counter() - began))
    say(f"report  {experiment.storage}/{where}")
    return 1 if outcome.failures else 0


def cost_lines(cost: Cost) -> str:
    """What the table cost, and what the cache saved."""
    return (
        f"{cost.trials} trials trained for {cost.training_seconds:.1f} s in all; {cost.caches} caches "
        f"({cost.cache_bytes / 1e6:.2f} MB) took {cost.source_passes} source passes in {cost.source_seconds:.1f} s.\n"
        f"The trials read {cost.label_rows} labels: "
        f"the cache saved {cost.passes_saved} source passes."
    )


def now_lines(*, source_passes: float, training: float, total: float) -> str:
    """Where the time of this command went."""
    overhead = total - source_passes - training
    return (
        f"This run took {total:.1f} s: source passes {source_passes:.1f} s, training {training:.1f} s, "
        f"overhead {overhead:.1f} s (starting Ray and its workers, reading, writing)."
    )
