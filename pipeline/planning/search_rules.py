"""What a grid, a search and a scheduler can work on, refused before anything starts where they cannot."""

from collections.abc import Sequence
from typing import get_args, get_type_hints

from pipeline.planning.entries import Entry
from pipeline.planning.settings import ResourceSettings, SchedulerSettings, SearchSettings
from pipeline.planning.space import Axis
from sskt.errors import InputError

CHANGEABLE = ("training.lr", "training.momentum", "training.weight_decay")
"""What of the training may change while it runs."""


def check_axes(entries: Sequence[Entry], search: SearchSettings | None, scheduler: SchedulerSettings) -> None:
    """Refuse axes that cannot be gone through as they are meant to be."""
    for entry in entries:
        if scheduler.kind == "pbt" and not entry.axes:
            raise InputError(f"{entry.where}: it has no axis that 'pbt' could change; add one, such as training.lr")
        for axis in entry.axes:
            place = f"{entry.where}: axis {axis.path!r}"
            if axis.low is not None and (search is None or search.by == "grid"):
                raise InputError(f"{place} is a range; a grid needs a list of values")
            if scheduler.kind == "asha" and axis.path == "training.epochs":
                raise InputError(f"{place} does not go with 'asha', which compares trainings of one length")
            if scheduler.kind == "pbt":
                _check_changeable(axis, entry, place=place)


def check_scheduler(
    search: SearchSettings | None, scheduler: SchedulerSettings, *, resources: ResourceSettings
) -> None:
    """Refuse a scheduler that does not go with the search; `fifo` goes with everything."""
    if scheduler.kind == "fifo":
        return
    if search is None:
        raise InputError(f"scheduler.kind is {scheduler.kind!r} without a `search`; it has to be 'fifo'")
    if resources.packing == "fused":
        raise InputError(
            f"resources.packing is 'fused'; scheduler {scheduler.kind!r} stops trials one by one and needs 'processes'"
        )
    if resources.runner == "plain":
        raise InputError(f"resources.runner is 'plain'; scheduler {scheduler.kind!r} needs 'packed' or 'train'")
    if scheduler.kind == "asha":
        return
    if search.by != "random" or (search.trials or 0) < 2:
        raise InputError(
            f"search is by {search.by!r} with {search.trials} trials; scheduler 'pbt' needs by 'random', "
            "and trials, the size of each seed's population, of at least 2"
        )
    if resources.workers > 1 or resources.runner == "train":
        raise InputError(
            f"resources.runner is {resources.runner!r} with {resources.workers} workers; "
            "scheduler 'pbt' needs 'packed' with 1"
        )


def check_length(scheduler: SchedulerSettings, *, epochs: int) -> None:
    """Refuse a training that ends before its scheduler does anything."""
    first = {"fifo": 0, "asha": scheduler.grace, "pbt": scheduler.every}[scheduler.kind]
    if first >= epochs:
        name = {"asha": "grace", "pbt": "every"}[scheduler.kind]
        raise InputError(f"scheduler.{name} is {first}; it has to be below training.epochs, which is {epochs}")


def _check_changeable(axis: Axis, entry: Entry, *, place: str) -> None:
    section, _, name = axis.path.partition(".")
    hint = get_type_hints(entry.method.Options).get(name) if section == "options" else None
    if axis.path not in CHANGEABLE and float not in (hint, *get_args(hint)):
        allowed = ", ".join(CHANGEABLE)
        raise InputError(f"{place} cannot change in mid-training; 'pbt' changes {allowed} and options that are numbers")
    if axis.when or not all(isinstance(end, int | float) for end in axis.ends):
        raise InputError(f"{place} has conditions or values that are not numbers; 'pbt' needs numbers alone")
