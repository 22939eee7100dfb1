"""Where time and storage went, in sentences: what was counted, and what follows from it."""

import math

from pipeline.reports.answer import counted
from pipeline.reports.costs import Cost, pace
from pipeline.reports.evidence import Evidence


def money_lines(cost: Cost, evidence: Evidence) -> list[str]:
    """What the trials and the caches took and saved."""
    devices = took(cost.process_seconds)
    lines = [f"{counted(cost.trials, 'training')} took {took(cost.training_seconds)}, {devices} of devices in use."]
    beside = sorted({one.side_by_side for one in evidence.seen.values()})
    if beside:
        lines.append(f"Up to {beside[-1]} trained side by side; speeds are comparable where that number is the same.")
    if evidence.stalled is None:
        lines.append("How long hosts waited for batches was not recorded.")
    else:
        lines.append(f"Hosts waited {100 * evidence.stalled:.1f} % of the trainings' time for batches.")
    return lines + (_cache_lines(cost) if cost.made else ["No caches were read."])


def _cache_lines(cost: Cost) -> list[str]:
    lines = [
        f"{counted(cost.caches, 'cache')} of {size(cost.cache_bytes)} took {cost.source_passes} source passes in "
        f"{took(cost.source_seconds)}.",
        f"Trials read {cost.label_rows} labels from them: {cost.passes_saved} source passes saved.",
    ]
    paces = {cache.source: pace(cache.source, cost.made) for cache in cost.made}
    told = ", ".join(f"{name} {1000 * seconds:.2f} ms" for name, seconds in paces.items())
    lines.append(f"A source took per image: {told}.")
    if cost.speed_up is None or cost.speed_up_bound is None or cost.break_even is None:
        return lines
    needed = max(1, math.ceil(cost.break_even))
    reached = 100 * cost.speed_up / cost.speed_up_bound
    return [
        *lines,
        f"With sources run live at that pace the trials would have taken {took(cost.live_seconds)} more: caching was "
        f"{cost.speed_up:.2f} times as fast, {reached:.0f} % of the {cost.speed_up_bound:.2f} times that no cache can "
        "exceed. An estimate, from the pace of the pass that made the caches.",
        f"The caches had paid for themselves after {counted(needed, 'trial')} that read them.",
    ]


def took(seconds: float) -> str:
    """E.g. `4.3 s`, `12 min`, `3.4 h`."""
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 2 * 3600 else f"{seconds / 3600:.1f} h"


def size(count: float) -> str:
    """E.g. `8.65 MB`."""
    return f"{count / 1e6:.2f} MB" if count < 1e9 else f"{count / 1e9:.2f} GB"
