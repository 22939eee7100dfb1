"""How far an experiment is, from what lies on its storage."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from cluster.storage import Storage
from pipeline.caches.labels import record_key
from pipeline.caches.segments import segments_of
from pipeline.planning.plan import Plan, PlannedTrial
from pipeline.planning.specs import CacheSpec
from pipeline.sweeps.search import stopped_early, table_trials, tried_trials
from pipeline.trials.attempts import trial_claim
from pipeline.trials.checkpoints import newest_epochs
from pipeline.trials.results import Failure, Result, existing_results, read_failures, read_results

State = Literal["done", "stopped", "failed", "running", "waiting"]


@dataclass(frozen=True, kw_only=True)
class CacheProgress:
    """How much of a cache is made."""

    name: str
    shards: int
    made: int

    @property
    def whole(self) -> bool:
        """Whether nothing is missing."""
        return self.made == self.shards


@dataclass(frozen=True, kw_only=True)
class TrialProgress:
    """How far a trial is."""

    label: str
    seed: int
    state: State
    epoch: int
    epochs: int
    score: float | None = None
    """The validation metric in % of one that is done."""
    reason: str = ""
    """Of one that failed."""


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """Everything that is shown."""

    title: str
    caches: tuple[CacheProgress, ...]
    trials: tuple[TrialProgress, ...]

    @property
    def epochs(self) -> tuple[int, int]:
        """Those that need no more training, and all."""
        over = ("done", "stopped", "failed")
        left = sum(trial.epochs - trial.epoch for trial in self.trials if trial.state not in over)
        total = sum(trial.epochs for trial in self.trials)
        return total - left, total

    @property
    def over(self) -> bool:
        """Whether nothing is left to do."""
        ended = all(trial.state in ("done", "stopped", "failed") for trial in self.trials)
        return ended and bool(self.trials)

    def count(self, state: State) -> int:
        """Trials in a state."""
        return sum(trial.state == state for trial in self.trials)


class Watcher:
    """Looks at a storage again and again, and reads no result twice."""

    def __init__(self, plan: Plan, storage: Storage) -> None:
        self._plan, self._storage = plan, storage
        self._scores: dict[str, float] = {}

    def look(self) -> Snapshot:
        """How far it is now."""
        plan, storage = self._plan, self._storage
        trials = plan.trials or _once([*tried_trials(plan, storage), *table_trials(plan, storage)])
        keys = {planned.run_key for planned in trials}
        new = (existing_results(storage) & keys) - self._scores.keys()
        self._scores |= read_results(storage, sorted(new), reduce=_validation)
        failures = read_failures(storage, keys - self._scores.keys())
        stopped, epochs = stopped_early(plan, storage), newest_epochs(storage)
        claims = set(storage.keys("claims"))

        def progress(planned: PlannedTrial) -> TrialProgress:
            key, trial = planned.run_key, planned.trial
            state = self._state(key, failures, stopped=key in stopped, claimed=trial_claim(key) in claims)
            failed = failures.get(key)
            return TrialProgress(
                label=trial.label,
                seed=trial.seed,
                state=state,
                epoch=trial.training.epochs if state == "done" else epochs.get(key, 0),
                epochs=trial.training.epochs,
                score=self._scores.get(key),
                reason=failed.reason if failed and state == "failed" else "",
            )

        return Snapshot(title=plan.experiment.name, caches=self._caches(), trials=tuple(map(progress, trials)))

    def _state(self, key: str, failures: dict[str, Failure], *, stopped: bool, claimed: bool) -> State:
        if key in self._scores:
            return "done"
        if stopped:
            return "stopped"
        if claimed:  # it may have failed before, and is tried again
            return "running"
        return "failed" if key in failures else "waiting"

    def _caches(self) -> tuple[CacheProgress, ...]:
        wanted = self._plan.caches_for()
        return tuple(
            self._cache(f"{source} {name}", spec) for source, specs in wanted.items() for name, spec in specs.items()
        )

    def _cache(self, name: str, spec: CacheSpec) -> CacheProgress:
        shards = made = 0
        for segment in segments_of(self._storage, spec):
            there = set(self._storage.keys(segment.prefix))
            shards += segment.shards
            made += sum(record_key(segment, shard) in there for shard in range(segment.shards))
        return CacheProgress(name=name, shards=shards, made=made)


def _validation(result: Result) -> float:
    score: float = result["validation"][result["metric"]]
    return score


def _once(trials: Sequence[PlannedTrial]) -> list[PlannedTrial]:
    return list({planned.run_key: planned for planned in trials}.values())
