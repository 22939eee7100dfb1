"""Searches without data, sources or trainings: the plan of a real experiment file, and endings written by hand."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

from cluster.storage import Storage
from pipeline.canonical import digest, plain
from pipeline.planning.experiment import Experiment, Trial
from pipeline.planning.plan import PlannedTrial
from pipeline.planning.strict_yaml import parse_yaml
from pipeline.planning.validation import validate
from pipeline.sweeps.search import search_id
from pipeline.trials.results import Stopped, write_result, write_stopped
from sskt.methods import Needs

LR = "axes: {training.lr: {low: 0.001, high: 1.0, log: true}}"


@dataclass(frozen=True)
class PaperPlan:
    """What searches ask of a plan."""

    experiment: Experiment

    @cached_property
    def possible(self) -> list[PlannedTrial]:
        return [self.plan(trial) for trial in self.experiment.possible_trials()]

    def plan(self, trial: Trial) -> PlannedTrial:
        spec = {name: plain(value) for name, value in vars(trial).items() if name not in ("label", "entry", "point")}
        return PlannedTrial(trial=trial, run_key=digest(spec), spec=spec, needs=Needs(), facts=None)


def paper_plan(
    search: str, *, scheduler: str = "{}", methods: str = "[{method: scratch}]", epochs: int = 9, seeds: str = "[3, 4]"
) -> PaperPlan:
    """A plan with the search, which is written as in an experiment file."""
    raw = parse_yaml(f"""
name: paper
storage: nowhere
dataset: {{kind: digits}}
target: {{architecture: small_cnn}}
training: {{epochs: {epochs}}}
methods: {methods}
seeds: {seeds}
search: {{{search}}}
scheduler: {scheduler}
""")
    return PaperPlan(validate(Experiment, raw))


def record(storage: Storage, planned: PlannedTrial, *scores: float, **more: Any) -> None:
    """Write a result with a validation score of each epoch, the last one being its own."""
    history = [{"epoch": epoch, "validation_accuracy": score} for epoch, score in enumerate(scores, start=1)]
    result = {"metric": "accuracy", "validation": {"accuracy": scores[-1]}, "history": history}
    write_result(storage, planned.run_key, result | more)


def stop(storage: Storage, plan: PaperPlan, planned: PlannedTrial, *, epoch: int, score: float) -> None:
    """Write that a scheduler ended a trial."""
    stopped = Stopped(
        run_key=planned.run_key,
        label=planned.trial.label,
        epoch=epoch,
        epochs=planned.trial.training.epochs,
        score=score,
        by="asha",
        reason="behind",
    )
    write_stopped(storage, search_id(plan, planned.trial.entry), planned.run_key, stopped)
