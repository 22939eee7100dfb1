"""What is left to be trained: which trials, how much of each, and of which kind, for kinds take times of their own."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cluster.storage import Storage
from pipeline.canonical import canonical, digest, plain
from pipeline.packing.packed import PackedDataset
from pipeline.planning.plan import Plan, PlannedTrial
from pipeline.sweeps.search import stopped_early, table_trials, tried_trials
from pipeline.trials.checkpoints import newest_epochs
from pipeline.trials.results import existing_results

COSTLESS = {
    "epochs", "steps_per_epoch", "labels_per_class", "views", "lr", "momentum", "weight_decay", "schedule",
    "milestones", "gamma",
}  # fmt: skip
"""Settings of a training that change what is learned, or for how long, but not what a step takes."""


@dataclass(frozen=True, kw_only=True)
class Standing:
    """How far trainings are, by run key."""

    done: set[str]
    """Those that have a result, or were stopped for good."""
    epochs: Mapping[str, int]
    """What those that were begun have behind them."""

    def words(self, planned: PlannedTrial) -> str:
        """Of one trial."""
        if planned.run_key in self.done:
            return "done"
        epoch = self.epochs.get(planned.run_key, 0)
        return f"at epoch {epoch} of {planned.trial.training.epochs}" if epoch else "to do"

    def summary(self, trials: Sequence[PlannedTrial]) -> str:
        """Of many."""
        counts = Counter(self.words(planned).partition(" epoch")[0] for planned in trials)
        return f"{counts['done']} done, {counts['at']} begun, {counts['to do']} to do"

    def left(self, planned: PlannedTrial) -> float:
        """The share of one trial's epochs that is still to be trained."""
        if planned.run_key in self.done:
            return 0.0
        return 1 - self.epochs.get(planned.run_key, 0) / planned.trial.training.epochs


@dataclass(frozen=True, kw_only=True)
class Training:
    """So many trainings that are still to be done and take the same."""

    planned: PlannedTrial
    """One of them."""
    count: int
    epochs: int
    """Those that each has still to train."""
    steps: int
    """Of each of these."""
    rows: int
    """Images that every source of it has to answer for in a step."""
    sources: tuple[str, ...]
    """Those that are asked, cached or live."""

    @property
    def kind(self) -> str:
        """What it has in common with all that take the same."""
        return kind_of(self.planned.spec["trial"])

    @property
    def label_rows(self) -> int:
        """Answers of sources that one of them reads."""
        return self.epochs * self.steps * self.rows * len(self.sources)


def standing_of(plan: Plan, storage: Storage) -> Standing:
    """How far the trainings of a plan are."""
    done = existing_results(storage) | stopped_early(plan, storage).keys()
    return Standing(done=done, epochs=newest_epochs(storage))


def known_trials(plan: Plan, storage: Storage) -> list[PlannedTrial]:
    """All trials; of a search those that are known by now."""
    found = plan.trials or [*tried_trials(plan, storage), *table_trials(plan, storage)]
    return list({planned.run_key: planned for planned in found}.values())


def work_left(plan: Plan, known: Sequence[PlannedTrial], standing: Standing) -> list[tuple[PlannedTrial, float]]:
    """Trials, and how often each has still to be trained: a share of once, or for those of a search not known yet."""
    work = [(planned, standing.left(planned)) for planned in known]
    experiment, search = plan.experiment, plan.experiment.search
    if search is None or experiment.scheduler.kind == "pbt":
        return work
    for entry, example in {planned.trial.entry: planned for planned in plan.possible}.items():
        seeds = [planned.trial.seed for planned in known if planned.trial.entry == entry]
        tried = search.trials if search.by == "optuna" and example.trial.point else seeds.count(experiment.seeds[0])
        work.append((example, max(0, (tried or 0) + len(experiment.seeds) - 1 - len(seeds))))
    return work


def trainings(plan: Plan, work: Sequence[tuple[PlannedTrial, float]]) -> list[Training]:
    """What `work_left` says, in whole epochs."""
    left = []
    for planned, times in work:
        whole = planned.trial.training.epochs
        epochs = round(whole * min(1.0, times))
        if epochs:
            steps = steps_of(planned.spec["trial"]["training"], plan.packed) // whole
            sources = planned.trial.sources if planned.needs.outputs else ()
            count, rows = max(1, round(times)), rows_of_step(planned)
            left.append(Training(planned=planned, count=count, epochs=epochs, steps=steps, rows=rows, sources=sources))
    return left


def steps_of(training: Mapping[str, Any], packed: PackedDataset) -> int:
    """Steps of a whole training. training: its settings, as results keep them."""
    most = training["labels_per_class"] or packed.pool
    labelled = min(sum(min(there, most) for there in packed.labelled), packed.pool - packed.unlabelled)
    steps: int = training["epochs"] * (training["steps_per_epoch"] or -(-labelled // training["batch_size"]))
    return steps


def rows_of_step(planned: PlannedTrial) -> int:
    """Images of a step, in all their views, as the feed serves them."""
    training, extras = planned.trial.training, planned.needs.extras(planned.trial.sources)
    rows = training.batch_size
    if extras.pool:
        size, group = training.pool_batch_size or training.batch_size, 1 + (extras.near[1] if extras.near else 0)
        rows += size // group * group
        if training.mix != "none":
            return rows
    return rows * (2 if extras.pair else 1) * (4 if extras.turned else 1)


def kind_of(trial: Mapping[str, Any]) -> str:
    """Name of all trials whose steps take the same. trial: what stands in a result's spec.

    Options that are fractions, such as weights of losses, change no cost; names and whole numbers may.
    """
    training = {name: value for name, value in plain(trial["training"]).items() if name not in COSTLESS}
    options = {name: value for name, value in plain(trial["options"]).items() if not _is_weight(value)}
    alike = [trial["method"], list(trial["sources"]), trial["target"], options, training]
    return f"{trial['method']} {'+'.join(trial['sources']) or 'alone'} {digest(canonical(alike))[:8]}"


def _is_weight(value: Any) -> bool:
    if isinstance(value, dict):
        return all(_is_weight(one) for one in value.values())
    return isinstance(value, float)
