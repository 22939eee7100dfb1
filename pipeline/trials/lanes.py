"""Trials that step together in one process, as one stacked network: which may, in which groups, and how they end."""

import math
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

import torch

from cluster.metrics import working
from pipeline.canonical import canonical
from pipeline.planning.plan import PlannedTrial
from pipeline.trials.attempts import Ended, attempting
from pipeline.trials.telling import STAGE
from pipeline.trials.trials import Materials, Process
from pipeline.trials.tuning import Supply
from sskt.fused import together, why_not, why_not_network
from sskt.methods import get_method
from sskt.networks import build_target


def stacks(trials: Iterable[PlannedTrial]) -> tuple[list[list[PlannedTrial]], list[str]]:
    """Sort trials by those whose targets may be stacked; and why others are by themselves, each reason once."""
    kinds: dict[object, list[PlannedTrial]] = {}
    reasons = []
    for planned in trials:
        reason = why_not(get_method(planned.trial.method))
        if reason:
            reasons.append(f"method {planned.trial.method!r}: {reason}")
        kinds.setdefault(planned.run_key if reason else _kind(planned), []).append(planned)
    sorted_out: list[list[PlannedTrial]] = []
    for alike in kinds.values():
        reason = _why_not_target(alike[0]) if len(alike) > 1 else None
        if reason:
            reasons.append(f"target {alike[0].trial.target.architecture!r}: {reason}")
        sorted_out += [[planned] for planned in alike] if reason else [alike]
    return sorted_out, list(dict.fromkeys(reasons))


def _kind(planned: PlannedTrial) -> tuple[str, int]:
    """Equal for trials whose targets are built alike and see as many images at a step."""
    facts = planned.facts
    return canonical(planned.trial.target), facts.rows + facts.pool_rows * planned.needs.pool


def _why_not_target(planned: PlannedTrial) -> str | None:
    image = planned.facts.image
    network = build_target(planned.trial.target, classes=planned.facts.classes, image=image)
    return why_not_network(network, torch.zeros(2, image.channels, image.size, image.size, dtype=torch.uint8))


def groups(supply: Supply, *, lanes: int, at_once: int = 1) -> Iterator[list[PlannedTrial]]:
    """What a supply holds, in groups of at most so many that step together.

    lanes: 1 asks for the next trial only when the one before has ended, for a supply may learn from it; at_once: groups
    that there is room for, none of which stays idle where there are trials for it.
    """
    if lanes == 1:
        yield from ([planned] for planned in _handed_out(supply))
        return
    for alike in stacks(_handed_out(supply))[0]:
        size = math.ceil(len(alike) / max(at_once, math.ceil(len(alike) / lanes)))
        yield from (alike[start : start + size] for start in range(0, len(alike), size))


def _handed_out(supply: Supply) -> Iterator[PlannedTrial]:
    while supply.left and (planned := supply.next()) is not None:
        yield planned


class Grouped:
    """A supply of groups, each handed out by the name of its first trial."""

    def __init__(self, supply: Supply, *, lanes: int, at_once: int) -> None:
        self._supply = supply
        self._groups = deque(groups(supply, lanes=lanes, at_once=at_once))
        self._beside = {first.run_key: tuple(others) for first, *others in self._groups}

    @property
    def left(self) -> int:
        """How many more groups there are."""
        return len(self._groups)

    def next(self) -> PlannedTrial | None:
        """Return the first trial of the next group; None where there is no more."""
        return self._groups.popleft()[0] if self._groups else None

    def beside(self, planned: PlannedTrial) -> Sequence[PlannedTrial]:
        """Return the other trials of the group of one that was handed out."""
        return self._beside[planned.run_key]

    def learn(self, ended: Ended) -> None:
        """Pass it on."""
        self._supply.learn(ended)


def attempt_all(group: Sequence[PlannedTrial], materials: Materials, process: Process) -> Iterator[Ended]:
    """Run the trials of a group in this process, each as `attempt` does; how each ended, as it ends."""
    count = len(group)
    process = replace(process, fused=count, side_by_side=process.side_by_side * count)
    # Around all of them: each alone would end what is counted for the others.
    with working(experiment=materials.experiment, stage=STAGE):
        yield from together([attempting(one, materials, process) for one in group], device=process.device)


def in_order(group: Sequence[PlannedTrial], ends: Iterable[Ended]) -> list[Ended]:
    """How the trials of a group ended, in its order."""
    found = {ended.planned.run_key: ended for ended in ends}
    return [found[planned.run_key] for planned in group]
