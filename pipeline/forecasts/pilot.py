"""A short run of each kind of work, on this machine, by the means of a real one: Ray Data for sources, Tune for trials.

Everything is written to a folder that goes again. What caches will hold is not there yet; trials get real answers to a
few images in its place, again and again.
"""

import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace

from cluster.session import is_local, start_session
from cluster.storage import Storage
from pipeline.forecasts.rates import Rates
from pipeline.forecasts.source_pilot import measure_sources
from pipeline.forecasts.trial_pilot import copies, measure_here, measure_packed, stand_in
from pipeline.forecasts.work import kind_of
from pipeline.planning.plan import Plan, PlannedTrial
from pipeline.sweeps.sweep import choose_runner, make_demand
from sskt.errors import InputError

SECONDS = 1.5
"""How long a kind of work is measured at least."""
SIDE_BY_SIDE = 8
"""Of a kind of trial, at most: more of them tell nothing new."""


def measure(plan: Plan, storage: Storage, *, trials: Sequence[PlannedTrial], seconds: float = SECONDS) -> Rates:
    """Measure every source that caches are made of, and every kind of some trials. Starts Ray."""
    if not is_local():
        raise InputError("--measure runs on this machine, but RAY_ADDRESS names a cluster; unset it")
    kinds = {kind_of(planned.spec["trial"]): planned for planned in reversed(trials)}
    runner, _ = choose_runner(plan.experiment.resources, trials=len(trials), local=True)
    if runner == "train" and kinds:
        raise InputError(
            "--measure knows no trials that Ray Train runs; set resources.workers=1 and runner auto, or run one trial, "
            "whose result then tells"
        )
    began = time.perf_counter()
    start_session()
    rates = Rates(session=time.perf_counter() - began)
    with tempfile.TemporaryDirectory(prefix="sskt-pilot-") as folder:
        wanted = plan.caches_for(list(kinds.values()))
        if wanted:
            rates |= measure_sources(plan, storage, folder, wanted=wanted, seconds=seconds)
        if kinds:
            demand = make_demand(plan.experiment.resources, runner)
            demand = replace(demand, at_once=min(demand.at_once, SIDE_BY_SIDE))
            materials = stand_in(plan, storage, folder, list(kinds.values()))
            how = measure_here if runner == "plain" else measure_packed
            rates |= how(copies(plan, list(kinds.values()), demand), materials, demand, seconds=seconds)
    return rates
