"""The report: what was measured, how sure it is, what it cost."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

from cluster.storage import Storage
from pipeline.canonical import canonical
from pipeline.planning.experiment import Experiment
from pipeline.planning.plan import Plan, PlannedTrial
from pipeline.planning.space import Point
from pipeline.reports.costs import Cost, Used, cost_of
from pipeline.statistics import Change, Summary, compare, correct, summarise
from pipeline.sweeps.search import search_lines, stopped_early, table_trials, tried_trials
from pipeline.trials.results import Failure, Result, Stopped, existing_results, read_failures, read_results, seconds_of
from sskt.metrics import main_metric

SCRATCH, PLAIN_KD = "scratch", "kd"
"""The methods that others are compared with."""


State = Literal["done", "stopped", "failed"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Ending:
    """How a trial has ended, for now: well, early by a scheduler's word, or with a reason."""

    run_key: str
    label: str
    method: str
    sources: tuple[str, ...]
    seed: int
    state: State
    epoch: int
    """The last epoch that ended well, of `epochs` planned; 0 where none is known."""
    epochs: int
    validation: float | None
    """The metric on the validation split in %, after that epoch."""
    test: float | None = None
    """The same on the test split, of a trial that is done."""
    best_validation: float | None = None
    """The best of its epochs on the validation split, of a trial that is done; the test split is for the last one."""
    best_epoch: int | None = None
    seconds: float | None = None
    """How long it took, of a trial that is done."""
    tries: int = 1
    reason: str = ""
    last: dict[str, float] | None = None
    """Of one that failed, all metrics of that epoch."""
    point: Point
    """Where it was on its axes when it ended."""


@dataclass
class Row:
    """All trials that differ in their seed only; of populations, the best of each seed."""

    label: str
    method: str
    sources: tuple[str, ...] = ()
    name: str = ""
    """What it is called beside rows that differ from it in the axis alone which tables spread over columns."""
    wanted: int = 0
    """How many trials it has, whether they have ended or not."""
    point: Point = field(default_factory=dict)
    scores: dict[int, float] = field(default_factory=dict)
    """The metric on the test split in % by seed, after the last epoch."""
    validation_scores: dict[int, float] = field(default_factory=dict)
    """The same on the validation split."""
    unfinished: list[Ending] = field(default_factory=list)
    """Those that failed or were stopped."""
    summary: Summary | None = None
    """Of the scores on the test split."""
    validation: Summary | None = None
    change: Change | None = None
    """Against scratch."""
    against_kd: Change | None = None
    """Against plain distillation."""
    best_epochs: dict[int, int] = field(default_factory=dict)
    best_scores: dict[int, float] = field(default_factory=dict)
    """Which epoch was the best of a trial on the validation split, and how good, by seed."""
    seconds: dict[int, float] = field(default_factory=dict)
    """How long its trials took, by seed."""
    run_keys: dict[int, str] = field(default_factory=dict)
    """Of those that are done, by seed."""

    @property
    def rank(self) -> float:
        """What rows are ordered by where the best come first: validation, never the test split."""
        return self.validation.mean if self.validation else float("-inf")


class Kept(NamedTuple):
    """What a report keeps of a result."""

    test: float
    validation: float
    best_validation: float | None
    best_epoch: int | None
    used: Used
    point: Point | None
    """Where a member of a population was when it ended."""


@dataclass(frozen=True)
class Report:
    """What an experiment has shown so far."""

    title: str
    metric: str
    rows: list[Row]
    trials: list[Ending]
    """Those of the table and those that searches tried beside them."""
    search_lines: tuple[str, ...]
    cost: Cost
    planned: dict[str, PlannedTrial] = field(default_factory=dict, repr=False)
    """What is behind them, by run key."""
    across: str | None = None
    """The axis whose values are columns of the table."""


def report_experiment(plan: Plan, storage: Storage) -> Report:
    """Report what an experiment and its searches have found so far."""
    return make_report(
        plan,
        storage,
        trials=table_trials(plan, storage),
        tried=tried_trials(plan, storage),
        stopped=stopped_early(plan, storage),
        search_lines=search_lines(plan, storage),
    )


def make_report(
    plan: Plan,
    storage: Storage,
    *,
    trials: Sequence[PlannedTrial] | None = None,
    tried: Sequence[PlannedTrial] = (),
    stopped: Mapping[str, Stopped] | None = None,
    search_lines: Sequence[str] = (),
) -> Report:
    """Merge the results that are there.

    trials: of the table; None for all of the plan. tried: what searches ran, beside these too. stopped: those that a
    scheduler ended early, by run key. search_lines: what is said of searches below the table.
    """
    trials = plan.trials if trials is None else trials
    shown = {planned.run_key for planned in trials}
    every = [*trials, *(planned for planned in tried if planned.run_key not in shown)]
    run_keys = {planned.run_key for planned in every}
    results = read_results(storage, sorted(existing_results(storage) & run_keys), reduce=_keep)
    failures = read_failures(storage, run_keys - results.keys())
    metric = main_metric(multi_label=plan.packed.multi_label)
    endings = (_done(one, results) or _stopped(one, stopped or {}) or _failed(one, failures, metric) for one in every)
    ended = {one.run_key: ending for one, ending in zip(every, endings, strict=True) if ending}
    rows = _rows(trials, ended, plan.experiment)
    searched = plan.experiment.search is not None
    changes = [_changes(rows, trials, to=method, searched=searched) for method in (SCRATCH, PLAIN_KD)]
    for row, *compared in zip(rows, *changes, strict=True):
        row.change, row.against_kd = compared
    return Report(
        title=_title(plan, trials, done=len(shown & results.keys())),
        metric=metric,
        rows=rows,
        trials=list(ended.values()),
        search_lines=tuple(search_lines),
        cost=cost_of(plan, storage, trials=every, used={key: kept.used for key, kept in results.items()}),
        planned={one.run_key: one for one in every},
        across=plan.experiment.across,
    )


def _keep(result: Result) -> Kept:
    metric, lineage, history = result["metric"], result.get("lineage"), result.get("history", ())
    best = max((metrics[f"validation_{metric}"] for metrics in history), default=None)
    seconds, processes = seconds_of(result), result.get("processes", 1)
    return Kept(
        test=result["test"][metric],
        validation=result["validation"][metric],
        best_validation=best,
        best_epoch=result.get("best_epoch"),
        used=Used(seconds=seconds, processes=processes, label_rows=result["label_rows"]),
        point=lineage[-1]["point"] if lineage else None,
    )


def _done(planned: PlannedTrial, results: Mapping[str, Kept]) -> Ending | None:
    kept = results.get(planned.run_key)
    if kept is None:
        return None
    told = {name: getattr(kept, name) for name in ("test", "validation", "best_validation", "best_epoch")}
    told |= {"epoch": planned.trial.training.epochs, "seconds": kept.used.seconds}
    return _ending(planned, state="done", point=kept.point or planned.trial.point, **told)


def _stopped(planned: PlannedTrial, stopped: Mapping[str, Stopped]) -> Ending | None:
    cut = stopped.get(planned.run_key)
    if cut is None:
        return None
    reason = f"{cut.by}: {cut.reason}"
    return _ending(planned, state="stopped", epoch=cut.epoch, validation=cut.score, reason=reason)


def _failed(planned: PlannedTrial, failures: Mapping[str, Failure], metric: str) -> Ending | None:
    failure = failures.get(planned.run_key)
    if failure is None:
        return None
    last = failure.last or {}
    reached = {"epoch": int(last.get("epoch", 0)), "validation": last.get(f"validation_{metric}"), "last": failure.last}
    return _ending(planned, state="failed", reason=failure.reason, tries=failure.tries, **reached)


def _ending(planned: PlannedTrial, **told: Any) -> Ending:
    trial = planned.trial
    known = {name: getattr(trial, name) for name in ("label", "method", "sources", "seed", "point")}
    return Ending(**(known | {"run_key": planned.run_key, "epochs": trial.training.epochs} | told))


def _rows(trials: Sequence[PlannedTrial], ended: Mapping[str, Ending], experiment: Experiment) -> list[Row]:
    rows: dict[str, Row] = {}
    for planned in trials:
        trial = planned.trial
        name = experiment.name_of(trial)
        row = rows.setdefault(trial.label, Row(trial.label, trial.method, trial.sources, name, point=trial.point))
        row.wanted += 1
        if planned.run_key in ended:
            _enter(row, ended[planned.run_key])
    for row in rows.values():
        if row.scores:
            row.summary = summarise(list(row.scores.values()))
            row.validation = summarise(list(row.validation_scores.values()))
    return list(rows.values())


def _enter(row: Row, ending: Ending) -> None:
    if ending.test is None or ending.validation is None:
        row.unfinished.append(ending)
    else:
        row.scores[ending.seed], row.validation_scores[ending.seed] = ending.test, ending.validation
        row.seconds[ending.seed], row.run_keys[ending.seed] = ending.seconds or 0.0, ending.run_key
        if ending.best_epoch is not None and ending.best_validation is not None:
            row.best_epochs[ending.seed], row.best_scores[ending.seed] = ending.best_epoch, ending.best_validation


def _changes(rows: Sequence[Row], trials: Sequence[PlannedTrial], *, to: str, searched: bool) -> list[Change | None]:
    """Compare rows with those of a method under the same target and training; where all were searched for, its best.

    The p of all these comparisons are corrected for their number.
    """
    by_label = {planned.trial.label: planned.trial for planned in trials}

    def alike(row: Row) -> str:
        trial = by_label[row.label]
        return "" if searched else canonical([trial.target, trial.training])

    baselines = {alike(row): row.scores for row in sorted(rows, key=lambda row: row.rank) if row.method == to}
    others = (
        None if row.method in (SCRATCH, to) else compare(row.scores, baselines.get(alike(row), {})) for row in rows
    )
    return correct(list(others))  # of several baselines the best by validation came last


def _title(plan: Plan, trials: Sequence[PlannedTrial], *, done: int) -> str:
    packed, experiment = plan.packed, plan.experiment
    shown = [planned.trial for planned in trials] or [experiment]  # of a search nothing is known at first
    budgets = dict.fromkeys(one.training.labels_per_class for one in shown)
    targets = dict.fromkeys(one.target.architecture for one in shown)
    labels = [f"{', '.join(str(budget) for budget in budgets if budget)} labels per class"] if any(budgets) else []
    return (
        f"{experiment.name}: {packed.name}, {len(packed.classes)} classes, {packed.pool} training images, "
        f"{' or '.join([*labels, *['all labelled ones'] * (None in budgets)])} used; "
        f"target {', '.join(targets)}; {done} of {len(trials)} trials done"
    )
