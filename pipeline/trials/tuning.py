"""Trials in the hands of Ray Tune: what is run next, and how each one ended."""

import logging
import os
import secrets
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from cluster.metrics import Traffic, hear, tell
from cluster.resources import Resources
from cluster.session import withhold_credentials
from pipeline.planning.plan import PlannedTrial
from pipeline.trials.attempts import Ended, State
from sskt.errors import SsktError
from sskt.loop import Metrics

TRIES = 4
"""How often a trial is started if its process dies, each time from its newest state: machines may well be lost under a
long one, but one that kills its process comes to an end. The same command then tries it as often again."""


PLACE = "placement_group"
"""In reports of Ray Train runs: what their workers' resources belong to."""


class Supply(Protocol):
    """Trials to be run, one after the other."""

    left: int
    """How many more there may be."""

    def next(self) -> PlannedTrial | None:
        """Return the next trial; None where there is no more."""

    def learn(self, ended: Ended) -> None:
        """Hear how a trial ended."""


class Fixed:
    """Trials that are known beforehand, in their order."""

    def __init__(self, trials: Iterable[PlannedTrial]) -> None:
        self._trials = list(trials)[::-1]

    @property
    def left(self) -> int:
        """How many more there are."""
        return len(self._trials)

    def next(self) -> PlannedTrial | None:
        """Return the next trial; None where there is no more."""
        return self._trials.pop() if self._trials else None

    def learn(self, ended: Ended) -> None:
        """What is known beforehand does not depend on outcomes."""


def tune_all(
    supply: Supply,
    trainable: Callable[..., None],
    *,
    resources: Any,
    at_once: int,
    tell: Callable[[Ended], None],
    scheduler: Any = None,
    reuse: bool = True,
    loggers: Callable[[], list[Any]] | None = None,
    beside: Callable[[PlannedTrial], Sequence[PlannedTrial]] = lambda planned: (),
) -> None:
    """Run all trials of a supply by Ray Tune, `at_once` side by side.

    resources: of each actor, a `place_of` or by names of Ray; reuse: whether an actor goes on with the next trial;
    loggers: makes callbacks of Ray's that hear of every epoch; beside: those that run in the process of a trial that
    the supply hands out, and are not handed out themselves.
    trainable: given {"planned": the trial, "beside": those, "entry": its method's number, "errand": a word that it has
    again when it is started anew for its process died, and the point's values by axis path}, it ends with a
    `final_report`; where that is missing, a scheduler has stopped the trial.
    """
    from ray import tune  # only inside a session

    withhold_credentials()
    logging.getLogger("ray.tune.execution.tune_controller").addFilter(is_news)
    while supply.left:
        with tempfile.TemporaryDirectory(prefix="sskt-tune-") as folder:
            tuner = tune.Tuner(
                tune.with_resources(trainable, resources),
                tune_config=tune.TuneConfig(
                    search_alg=_make_searcher(supply, beside),
                    scheduler=scheduler,
                    num_samples=min(supply.left, CHUNK),
                    reuse_actors=reuse,
                    max_concurrent_trials=at_once,
                    trial_dirname_creator=lambda trial: str(trial.trial_id),
                ),
                # Tune's own state is never read again: results and checkpoints lie on the storage, by run key.
                run_config=tune.RunConfig(
                    storage_path=folder,
                    verbose=0,
                    failure_config=tune.FailureConfig(max_failures=TRIES - 1),
                    callbacks=[_make_callback(supply, tell), *(loggers() if loggers else [])],
                ),
            )
            try:
                tuner.fit()
            except tune.TuneError as error:  # an ending that could not be told, as where the storage is gone
                raise SsktError(last_line(str(error))) from error


def bundle_of(need: Resources) -> dict[str, float]:
    """What one process takes, by the names Ray has for it."""
    amounts = {"CPU": need.cpus, "GPU": need.gpus, "memory": need.memory}
    return {name: amount for name, amount in amounts.items() if amount}


def place_of(need: Resources) -> Any:
    """The same for Tune, with what the node has to be labelled."""
    from ray import tune  # only inside a session

    return tune.PlacementGroupFactory([bundle_of(need)], bundle_label_selector=[dict(need.labels)])


CHUNK = 1000
"""Trials per Tuner: Tune writes its whole state again and again, and what it holds grows with it."""


def final_report(ended: Ended, *beside: Ended) -> dict[str, Any]:
    """What a trial, and those beside it, report last."""
    names = ("state", "reason", "score", "epoch", "seconds", "metrics")
    own, *others = ({name: getattr(one, name) for name in names} for one in (ended, *beside))
    return own | {"beside": others, "traffic": tell()}


def leave(*ended: Ended) -> None:
    """End a trial whose node goes as if its process had died of that: Tune starts it elsewhere, and does not count it.

    Were it to end by itself, Tune would give its process, on the node that goes, the next trial. Those beside end too.
    """
    from ray import tune
    from ray.exceptions import RayActorError

    tune.report(final_report(*ended))
    raise RayActorError(error_msg=f"leaves {ended[0].reason}", preempted=True)


def is_news(record: logging.LogRecord) -> bool:
    """Whether an error that Tune logs is more than that a node goes, which the sweep says in a line."""
    error = record.exc_info and record.exc_info[1]
    return not getattr(error, "preempted", False)


def epoch_report(metrics: Metrics, *, metric: str) -> dict[str, Any]:
    """What a trial reports of an epoch."""
    return {"epoch": metrics["epoch"], "score": metrics[f"validation_{metric}"], "metrics": metrics}


def ended_trial(planned: PlannedTrial, last: dict[str, Any]) -> Ended:
    """How a trial ended that Tune calls complete, by its last report."""
    return Ended(
        planned=planned,
        state=last.get("state", "stopped"),
        score=last.get("score"),
        reason=last.get("reason", ""),
        epoch=last.get("epoch", 0),
        seconds=last.get("seconds", 0),
        metrics=last.get("metrics", {}),
    )


def ended_trials(config: dict[str, Any], last: dict[str, Any]) -> list[Ended]:
    """How a trial ended, and those beside it."""
    said = [last, *last.get("beside", [])]
    return [
        ended_trial(planned, one) for planned, one in zip([config["planned"], *config["beside"]], said, strict=True)
    ]


def died_trials(config: dict[str, Any], reason: str) -> list[Ended]:
    """How a trial ended whose process died; those that died together are tried again with fewer of them in one."""
    planned, beside = config["planned"], config["beside"]
    if not beside:
        return [Ended(planned=planned, state=state_of_death(reason), reason=reason, died=True)]
    return [Ended(planned=one, state="starved", reason=reason) for one in (planned, *beside)]


def _make_searcher(supply: Supply, beside: Callable[[PlannedTrial], Sequence[PlannedTrial]]) -> Any:
    from ray.tune.search import Searcher  # only inside a session

    class Next(Searcher):
        """Hands out the trials of the supply."""

        def suggest(self, trial_id: str) -> Any:
            planned = supply.next()
            if planned is None:
                return Searcher.FINISHED
            config = {"planned": planned, "beside": beside(planned), "entry": planned.trial.entry}
            return config | {"errand": secrets.token_hex(8)} | planned.trial.point

        def on_trial_complete(self, trial_id: str, result: Any = None, **_: Any) -> None:
            """The callback hears it with the trial."""

        def set_search_properties(self, *_: Any, **__: Any) -> bool:
            return True

        def save(self, checkpoint_path: str) -> None:
            Path(checkpoint_path).touch()  # Tune moves it into place; nobody reads it

        def __reduce__(self) -> tuple[Any, ...]:
            return Searcher, ()  # Tune pickles it, for a restart by Tune that never happens

    return Next()


def _make_callback(supply: Supply, tell: Callable[[Ended], None]) -> Any:
    from ray import tune  # only inside a session

    class Callback(tune.Callback):
        """Passes the end of each trial on, and that one leaves its node."""

        def on_trial_result(self, iteration: int, trials: list[Any], trial: Any, result: Any, **info: Any) -> None:
            left = (
                [one for one in ended_trials(trial.config, result) if one.state == "leaving"]
                if "state" in result
                else []
            )
            for ended in left:
                tell(ended)
            if left:
                hear(result["traffic"])

        def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            last = trial.last_result or {}
            hear(last.get("traffic", Traffic()))
            if "state" not in last and PLACE in last:
                give_back(last[PLACE])
            for ended in ended_trials(trial.config, last):
                self._tell(ended)

        def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
            reason = last_line(str(trial.get_error() or "its process died"))
            for ended in died_trials(trial.config, reason):
                self._tell(ended)

        def _tell(self, ended: Ended) -> None:
            supply.learn(ended)
            tell(ended)

    return Callback()


def give_back(place: str) -> None:
    """Free what the workers of a Ray Train run held that was stopped: Ray itself does so only by way of a dashboard."""
    from ray.util.placement_group import remove_placement_group

    remove_placement_group(_group(place))


def told_by_train() -> Any:
    """What tells Tune of the epochs of a Ray Train run, in the actor that controls it."""
    from ray.tune.integration.ray_train import TuneReportCallback  # only inside a session
    from ray.util.placement_group import placement_group_table

    class Told(TuneReportCallback):
        """Ends the run too, where its place was given back.

        Tune kills one that it stops after half a minute; until then it would take other places for new workers, and
        the last of them would never be free again.
        """

        place = ""

        def after_report(self, run_context: Any, metrics: Any, checkpoint: Any) -> None:
            self.place = metrics[0][PLACE]
            super().after_report(run_context, metrics, checkpoint)

        def after_exception(self, run_context: Any, worker_exceptions: Any) -> None:
            if self.place and placement_group_table(_group(self.place))["state"] == "REMOVED":
                os._exit(0)

    return Told()


def _group(place: str) -> Any:
    from ray._raylet import PlacementGroupID
    from ray.util.placement_group import PlacementGroup

    return PlacementGroup(PlacementGroupID(bytes.fromhex(place)))


def state_of_death(reason: str) -> State:
    """What an error that ended a process says of its trial; Ray kills processes where a node's memory runs out."""
    return "starved" if "OutOfMemory" in reason or "out of memory" in reason else "failed"


def last_line(text: str) -> str:
    """What an error says at its end."""
    return text.strip().splitlines()[-1]
