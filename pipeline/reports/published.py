"""Figures that papers have published, for rows that repeat theirs: same data, same target, same method."""

import csv
from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path

from pipeline.planning.plan import Plan
from pipeline.reports.report import Report, Row
from sskt.settings import SourceSettings, TargetSettings

FILE = Path(__file__).with_name("published.csv")
KNOWN_SOURCES = ("imagenet", "places")
"""What the sources of SSKT's tables had learnt; told apart here by the names of their weights."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """A figure of a paper."""

    paper: str
    place: str
    """Where in it, or in what goes with it."""
    dataset: str
    target: str
    """The architecture; with `from` and its name, where pretrained weights were its beginning."""
    method: str
    sources: str
    """What they had learnt, of SSKT's tables; else in words."""
    heads: str
    """Of SSKT, as our options call them, like the loss."""
    loss: str
    score: str
    spread: str
    metric: str


@dataclass(frozen=True)
class Beside:
    """A row of ours and a figure of theirs."""

    row: Row
    theirs: Published


@cache
def published() -> tuple[Published, ...]:
    """All that the file beside this one holds."""
    names = [field.name for field in fields(Published)]
    with FILE.open(newline="") as lines:
        return tuple(Published(**{name: line[name] for name in names}) for line in csv.DictReader(lines))


def beside(plan: Plan, report: Report) -> list[Beside]:
    """What was published of each row of the table; nothing where only some of the labels are used."""
    planned = {one.trial.label: one.trial for one in report.planned.values()}
    found = []
    for row in report.rows:
        trial = planned[row.label]
        learnt = _learnt(trial.sources, plan.experiment.sources)
        asked = {"dataset": plan.packed.name, "target": _target(trial.target), "method": trial.method}
        if trial.method == "sskt":
            asked |= {"heads": trial.options.heads, "loss": trial.options.loss, "sources": learnt}
        alike = [one for one in published() if all(getattr(one, name) == said for name, said in asked.items())]
        found += [Beside(row, one) for one in alike if trial.training.labels_per_class is None]
    return found


def _target(settings: TargetSettings) -> str:
    """E.g. `resnet18`, or `resnet18 from IMAGENET1K_V1` where it does not begin with random weights."""
    return f"{settings.architecture} from {settings.weights}" if settings.weights else settings.architecture


def _learnt(names: tuple[str, ...], sources: Mapping[str, SourceSettings]) -> str:
    """E.g. `imagenet+places`; where some source is neither, its weights' name, which no table has."""
    weights = [sources[name].weights for name in names]
    known = [next((one for one in KNOWN_SOURCES if one in said.lower()), said) for said in weights]
    return "+".join(sorted(known))
