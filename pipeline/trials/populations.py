"""Populations of trials that learn from each other: one that falls behind goes on from a copy of one that leads.

Each entry of `methods` has a population for every seed. A member keeps its run key when its hyperparameters change. Its
states, and in the end its result, carry its lineage: after which epoch its weights came from whom, to what point.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

import torch

from cluster.storage import Storage
from pipeline.canonical import digest, plain
from pipeline.planning.plan import Plan, PlannedTrial
from pipeline.planning.space import Point, draw
from pipeline.trials.checkpoints import Checkpoints
from sskt.seeds import derive

T = TypeVar("T")

Step = dict[str, Any]
"""`epoch` after which it began, `from`: the run key of the member whose state it is or None, and the `point` since."""


def members(plan: Plan, entry: int, seed: int) -> list[PlannedTrial]:
    """The population of an entry and a seed, where it starts."""
    return [_member(plan, entry, seed=seed, number=number) for number in range(plan.experiment.search.trials)]


def _member(plan: Plan, entry: int, *, seed: int, number: int) -> PlannedTrial:
    """One of a population. What becomes of it depends on the others, so its key is not that of a trial on its own."""
    experiment, axes = plan.experiment, plan.experiment.axes_of(entry)
    point = draw(axes, number=number, seed=derive(experiment.search.seed, f"population/{seed}"))
    planned = plan.plan(experiment.at(entry, point, seed=seed))
    population = {
        "scheduler": experiment.scheduler,
        "axes": axes,
        "size": experiment.search.trials,
        "seed": experiment.search.seed,
        "member": number,
    }
    spec = planned.spec | {"population": plain(population)}
    trial = replace(planned.trial, label=experiment.entries[entry].label_at({}))
    return replace(planned, trial=trial, run_key=digest(spec), spec=spec)


def moved(planned: PlannedTrial, point: Point) -> PlannedTrial:
    """The same member with the values of another point."""
    trial = planned.trial
    training, options = _put(trial.training, point, "training"), _put(trial.options, point, "options")
    return replace(planned, trial=replace(trial, training=training, options=options, point=dict(point)))


def _put(settings: T, point: Point, section: str) -> T:
    values = {path.partition(".")[2]: value for path, value in point.items() if path.partition(".")[0] == section}
    return replace(settings, **values) if values else settings  # type: ignore[type-var]


def where_it_was(planned: PlannedTrial, storage: Storage) -> PlannedTrial:
    """A member at the point of its newest state; one that has none stays where it starts."""
    state = Checkpoints(storage, planned.run_key).load()
    return planned if state is None else moved(planned, state["lineage"][-1]["point"])


def take_over(planned: PlannedTrial, storage: Storage, handed: Mapping[str, dict[str, Any]]) -> list[Step]:
    """Make a member go on from what a scheduler hands over; return its lineage, which it keeps with its states.

    handed: a state by the run key of the member that saved it. Its own is not needed: the storage has it.
    """
    checkpoints = Checkpoints(storage, planned.run_key)
    for donor, state in handed.items():
        if donor != planned.run_key:
            lineage = [*state["lineage"], {"epoch": state["epoch"], "from": donor, "point": planned.trial.point}]
            checkpoints.clear()  # of its own states some may count more epochs, and would be taken for newer
            checkpoints.save(state | {"lineage": lineage})
            return lineage
    own = checkpoints.load()
    return own["lineage"] if own else [{"epoch": 0, "from": None, "point": planned.trial.point}]


def hand_out(run_key: str, storage: Storage, folder: str) -> None:
    """Put the newest state of a member into a folder that Tune hands on."""
    torch.save(Checkpoints(storage, run_key).load(), Path(folder) / run_key)


def handed_on(folder: str) -> dict[str, dict[str, Any]]:
    """The state in such a folder, by the run key of the member whose it is."""
    files = [file for file in Path(folder).iterdir() if not file.name.startswith(".")]  # Tune may add its own
    return {file.name: torch.load(file, weights_only=True) for file in files}
