"""The report as one HTML file that needs nothing beside it: no network, light and dark, on a phone and on paper."""

import base64
import hashlib
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined

from pipeline.canonical import canonical, plain
from pipeline.planning.plan import Plan
from pipeline.reports.answer import Answer, answer, counted, equals, interval, p_value, representatives, signed, verdict
from pipeline.reports.classes import baseline_of, gains_of, mixups_of
from pipeline.reports.evidence import Evidence
from pipeline.reports.figures import DASHES
from pipeline.reports.importance import importance
from pipeline.reports.plots import charts_of
from pipeline.reports.published import beside
from pipeline.reports.report import SCRATCH, Report, Row
from pipeline.reports.spending import money_lines, took
from pipeline.reports.trial_data import trial_data
from pipeline.statistics import Change
from sskt.metrics import TITLES

FOLDER = Path(__file__).parent
MOST_ROWS = 24
MARKS = "●■◆▲▼✚✖"
"""As Matplotlib's markers look."""
NOTHING = "There is nothing to compare yet."
OLD = "These results are older than the figures of single classes; trials that are trained now have them."


def render(plan: Plan, report: Report, evidence: Evidence, *, refresh: int | None = None) -> bytes:
    """The page. All that people wrote is escaped by the template, or spelled by the JSON of its data."""
    loader = FileSystemLoader(FOLDER)
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    helpers = {
        "verdict": verdict,
        "interval": interval,
        "p_value": p_value,
        "signed": signed,
        "mean": lambda by_seed: fmean(by_seed.values()),
        "shade": lambda value, largest: round(70 * abs(value or 0) / largest),
        "dashes": ["none" if dash == "-" else " ".join(map(str, dash[1])) for dash in DASHES],
        "marks": MARKS,
        "titles": TITLES,
    }
    script = (FOLDER / "page.js").read_text()
    hashed = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    static = {"css": (FOLDER / "page.css").read_text(), "script": script, "script_hash": hashed, "refresh": refresh}
    template = environment.get_template("page.html")
    parts = template.generate(helpers | static | _content(plan, report, evidence))
    return b"".join(part.encode() for part in parts)  # whole only once: a page of a long sweep has megabytes


def _content(plan: Plan, report: Report, evidence: Evidence) -> dict[str, Any]:
    rows, found = sorted(report.rows, key=lambda row: -row.rank), answer(report)
    weights = importance(report.trials)
    limit = _limit(rows)
    trials = [trial for trial in report.trials if trial.run_key in report.planned][: len(evidence.shown)]
    baseline = baseline_of(rows, evidence.fates)
    gains = gains_of(representatives(rows, MOST_ROWS), evidence.fates, plan.packed.classes)
    best = next((row for row in rows if row.method != SCRATCH and row.label in evidence.fates), None)
    return {
        "name": plan.experiment.name,
        "facts": report.title.removeprefix(f"{plan.experiment.name}: "),
        "report": report,
        "metric": TITLES[report.metric],
        "answer": found,
        "tiles": _tiles(found, report),
        "by_sources": found.by_sources,
        "rows": rows,
        "shown": MOST_ROWS,
        "compared": counted(sum(row.change is not None and row.change.p is not None for row in rows), "comparison"),
        "has_kd": any(row.against_kd for row in rows),
        "searched": plan.experiment.search is not None,
        "limit": limit,
        "place": lambda change: _place(change, limit),
        "failed": [trial for trial in report.trials if trial.state == "failed"],
        "charts": charts_of(rows, report, evidence, weights),
        "importance": weights,
        "gains": gains,
        "no_gains": NOTHING if evidence.fates or not any(row.scores for row in rows) else OLD,
        "mixups": mixups_of(best, baseline, evidence.fates, plan.packed.classes) if gains else None,
        "money": money_lines(report.cost, evidence),
        "forecast": evidence.forecast,
        "published": beside(plan, report),
        "trials": trials,
        "hidden_trials": len(report.trials) - len(trials),
        "counts": _counts(report),
        "data": trial_data(trials, report, evidence),
        "provenance": _provenance(plan, report, evidence),
        "experiment": _indented(plain(plan.experiment)),
    }


def _tiles(found: Answer, report: Report) -> list[tuple[str, str, str]]:
    """Which source, which method, how sure, at what cost."""
    best = found.best
    if best is None or best.summary is None:
        return []
    spread = "" if best.summary.std is None else f" ± {best.summary.std:.1f}"
    score = f"{best.summary.mean:.1f}{spread} % {TITLES[report.metric]} on the test split"
    tried = counted(len(found.by_sources), "set")
    cost, paid = report.cost, "no caches were read"
    if cost.made:
        paid = f"and {took(cost.source_seconds)} of sources, once for {counted(cost.trials, 'trial')}"
    return [
        ("Which source", " + ".join(best.sources) or "none", f"out of {tried} of sources"),
        ("Which method", best.method, f"{score}, {counted(best.summary.n, 'seed')}"),
        ("How sure", *_sure(best)),
        ("At what cost", f"{took(fmean(best.seconds.values()))} a training", paid),
    ]


def _sure(best: Row) -> tuple[str, str]:
    if best.method == SCRATCH:
        return "the baseline itself", "nothing that was tried beat it on validation"
    if best.change is None:
        return "not compared", "no training from scratch of the same seeds beside it"
    p = "one seed: no interval" if best.change.p is None else f"p {equals(best.change.p)}, paired"
    return interval(best.change), f"points over scratch; {p}"


def _limit(rows: Sequence[Row]) -> float:
    """Points to either side that bars have room for: all but what lies far outside of the others."""
    changes = [row.change for row in rows if row.change is not None]
    if not changes:
        return 1.0
    ends = [max(abs(one.low), abs(one.high)) if one.low is not None else abs(one.mean) for one in changes]
    usual = float(np.median([abs(one.mean) for one in changes]))
    return max(1.0, math.ceil(max(end for end in ends if end <= max(4 * usual, min(ends)))))


def _place(change: Change, limit: float) -> dict[str, float]:
    """Where the parts of a bar lie, in percent of its width."""

    def at(points: float) -> float:
        return round(50 + 50 * min(max(points / limit, -1), 1), 2)

    low, high = at(change.low), at(change.high)
    return {"low": low, "width": round(high - low, 2), "mean": at(change.mean)}


def _counts(report: Report) -> str:
    counts = Counter(trial.state for trial in report.trials)
    return ", ".join(f"{counts[state]} {state}" for state in ("done", "stopped", "failed") if counts[state]) + "."


def _provenance(plan: Plan, report: Report, evidence: Evidence) -> list[tuple[str, str]]:
    packed = plan.packed
    seeds = ", ".join(str(seed) for seed in plan.experiment.seeds)

    def counted(counts: Counter[str]) -> str:
        return "; ".join(f"{name} ({count} trials)" for name, count in counts.most_common()) or "nothing trained yet"

    return [
        ("Data", f"{packed.name}: {packed.pool} to train on, {packed.validation} validation, {packed.test} test"),
        ("Data fingerprint", packed.fingerprint),
        ("Views", f"{plan.experiment.views.count} of each image, {canonical(plan.recipe.identity())}"),
        ("Seeds", seeds),
        ("Hardware", counted(evidence.hardware)),
        ("Versions", counted(evidence.versions)),
        ("Caches", "; ".join(f"{one.source} {one.name} {one.id}" for one in report.cost.made) or "none"),
        ("Storage", plan.experiment.storage),
    ]


def _indented(value: Any, depth: int = 0) -> str:
    """Nested settings as people read them."""
    if not isinstance(value, Mapping) or not value:
        return canonical(value)
    lines = [
        f"{'  ' * depth}{key}:" + (f"\n{below}" if isinstance(inner, Mapping) and inner else f" {below}")
        for key, inner in value.items()
        for below in [_indented(inner, depth + 1)]
    ]
    return "\n".join(lines)
