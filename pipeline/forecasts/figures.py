"""What an experiment will cost on a cluster: counted where it can be counted, simulated where it takes time."""

from dataclasses import dataclass, field

from cluster.storage import Storage
from pipeline.forecasts.batches import batch_lines
from pipeline.forecasts.holdings import holdings, supposed
from pipeline.forecasts.machines import HOUR, Cluster
from pipeline.forecasts.rates import Rates
from pipeline.forecasts.requests import cost_of, requests_of
from pipeline.forecasts.simulation import Run, Stage, simulate
from pipeline.forecasts.work import known_trials, standing_of, trainings, work_left
from pipeline.forecasts.workload import Workload, bytes_of_node, of_size, stages_of
from pipeline.planning.plan import Plan

WELL_USED = 0.5
"""Below this share of useful time a cluster has stopped scaling."""

NO_STARTS = "how long Ray and its workers take to start is not known, and left out; --measure tells"

LIMITS = {
    "idle": "too little work for so many places",
    "driver": "the driver",
    "storage": "the storage",
    "lost": "lost nodes",
    "absent": "lost nodes",
    "start": "starting up",
}
"""What takes the time that is not useful, by the names of `Times`."""


@dataclass(frozen=True, kw_only=True)
class Side:
    """The experiment with caches, or with the same sources run live. What is not known is None."""

    passes: int
    requests: dict[str, int]
    source_hours: float | None = None
    """Device hours, as all that ends so: GPUs where they are asked for, else CPUs."""
    training_hours: float | None = None
    seconds: float | None = None
    """Wall clock, from the start of Ray to the last trial."""
    first: float | None = None
    """Of these, until the first piece of work begins."""
    cost: float | None = None
    """Of machines and requests, in dollars."""


@dataclass(frozen=True, kw_only=True)
class Size:
    """The same on so many nodes."""

    nodes: int
    seconds: float
    cost: float
    efficiency: float
    """The share of the time of all places that is work which counts."""
    limit: str
    """What takes most of the rest."""
    losses: int


@dataclass(frozen=True, kw_only=True)
class Forecast:
    """All of it."""

    experiment: str
    trials: int
    found: int
    epochs: int
    dataset_bytes: int
    cache_bytes: dict[str, int]
    """Of each cache, whole, by source and name."""
    checkpoint_bytes: int | None
    """At most at once: two of every trial that runs."""
    node_bytes: int
    cached: Side
    live: Side
    sizes: list[Size] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def make_forecast(plan: Plan, storage: Storage, rates: Rates, cluster: Cluster) -> Forecast:
    """Forecast what is left of an experiment. What never fits a node is refused."""
    resources = plan.experiment.resources
    for need, workers in ((resources.trial, resources.workers), (resources.source_worker, 1)):
        cluster.places(need, workers=workers)
    work, found = workload(plan, storage, cluster)
    sources = [name for name, shards in work.shards.items() if shards]
    unknown = rates.lacking(work.trainings, sources)
    sides = {cached: _side(work, rates, cluster, plan=plan, cached=cached) for cached in (True, False)}
    return Forecast(
        experiment=plan.experiment.name,
        trials=work.trials,
        found=found,
        epochs=work.epochs,
        dataset_bytes=round(work.growth * sum(one.bytes for one in storage.objects(plan.packed.prefix))),
        cache_bytes={f"{name} {one.name}": one.stored for name, some in work.caches.items() for one in some},
        checkpoint_bytes=_checkpoint_bytes(work, rates, cluster, plan),
        node_bytes=work.node_bytes,
        cached=sides[True],
        live=sides[False],
        sizes=[] if unknown else [_size(work, rates, cluster, plan=plan, nodes=nodes) for nodes in cluster.nodes],
        unknown=unknown,
        warnings=[
            *_warnings(work, cluster, plan),
            *batch_lines(
                {name: pace.batches for name, pace in rates.sources.items()}, used=plan.experiment.source_batch
            ),
            *([] if rates.starts else [NO_STARTS]),
        ],
    )


def workload(plan: Plan, storage: Storage, cluster: Cluster) -> tuple[Workload, int]:
    """What is left to be done, and how many trials are found done."""
    standing, known = standing_of(plan, storage), known_trials(plan, storage)
    images = cluster.suppose.images
    growth = images / plan.packed.pool if images else 1.0
    wanted = plan.caches_for()
    caches = holdings(supposed(wanted, images) if images else wanted, storage)
    left = trainings(plan, work_left(plan, known, standing))
    work = Workload(
        trainings=of_size(left, trials=cluster.suppose.trials, growth=growth),
        caches=caches,
        growth=growth,
        node_bytes=bytes_of_node(plan, caches, growth=growth),
        live=frozenset(name for name in plan.sources if name not in plan.caches),
    )
    return work, sum(planned.run_key in standing.done for planned in known)


def scaling_line(sizes: list[Size]) -> str:
    """Where more nodes stop being of use; nothing where there is nothing to compare."""
    if len(sizes) < 2:
        return ""
    for size in sizes:
        if size.efficiency < WELL_USED:
            return f"stops scaling at {size.nodes} nodes: {size.limit}"
    return f"scales to {sizes[-1].nodes} nodes"


def _side(work: Workload, rates: Rates, cluster: Cluster, *, plan: Plan, cached: bool) -> Side:
    shards = [shard for some in work.shards.values() for shard in some] if cached else []
    known = not rates.lacking(work.trainings, _needed(work, cached=cached))
    nodes = cluster.nodes[0]
    stages = stages_of(work, rates, cluster, plan=plan, nodes=nodes, cached=cached) if known else []
    busy = {stage.name: sum(one.around + one.laps * one.lap for one in stage.pieces) for stage in stages}
    requests = requests_of(
        trials=work.trials,
        epochs=work.epochs,
        shards=len(shards),
        outputs=sum(shard.outputs for shard in shards),
        segments=sum(one.segments for some in work.caches.values() for one in some if one.lacking) if cached else 0,
        claimed_seconds=sum(busy.values()),
    )
    passes = work.passes(cached=cached)
    if not known:
        return Side(passes=passes, requests=dict(requests))
    run, resources = _run(stages, cluster, nodes), plan.experiment.resources
    devices = resources.workers * (resources.gpus_per_trial or resources.cpus_per_trial)
    return Side(
        passes=passes,
        requests=dict(requests),
        source_hours=busy["cache"] / HOUR * (resources.gpus_per_source_worker or resources.cpus_per_source_worker),
        training_hours=busy["sweep"] / HOUR * devices,
        seconds=run.seconds,
        first=run.first,
        cost=_cost(run, cluster, nodes, requests),
    )


def _needed(work: Workload, *, cached: bool) -> list[str]:
    """Sources whose pace has to be known."""
    if cached:
        return [name for name, shards in work.shards.items() if shards]
    return sorted({name for one in work.trainings for name in one.sources} - work.live)


def _run(stages: list[Stage], cluster: Cluster, nodes: int) -> Run:
    return simulate(stages, cluster.fleet(nodes), cluster.storage.link)


def _size(work: Workload, rates: Rates, cluster: Cluster, *, plan: Plan, nodes: int) -> Size:
    run = _run(stages_of(work, rates, cluster, plan=plan, nodes=nodes, cached=True), cluster, nodes)
    other = {name: seconds for name, seconds in vars(run.times).items() if name != "useful"}
    return Size(
        nodes=nodes,
        seconds=run.seconds,
        cost=_cost(run, cluster, nodes, {}),
        efficiency=run.times.useful / run.times.total if run.times.total else 1.0,
        limit=LIMITS[max(other, key=lambda name: other[name])],
        losses=run.losses,
    )


def _cost(run: Run, cluster: Cluster, nodes: int, requests: dict[str, int]) -> float:
    storage = cluster.storage
    asked = cost_of(
        requests, per_1000_writes=storage.price_per_1000_writes, per_1000_reads=storage.price_per_1000_reads
    )
    return nodes * run.seconds / HOUR * cluster.price_per_hour + asked


def _checkpoint_bytes(work: Workload, rates: Rates, cluster: Cluster, plan: Plan) -> int | None:
    known = [rates.paces[one.kind].checkpoint_bytes for one in work.trainings if one.kind in rates.paces]
    if not known or not all(known):
        return None
    resources = plan.experiment.resources
    places = cluster.nodes[0] * cluster.places(resources.trial, workers=resources.workers)
    return 2 * max(known) * min(work.trials, places)


def _warnings(work: Workload, cluster: Cluster, plan: Plan) -> list[str]:
    """What will not fit."""
    told, node_cache = [], plan.experiment.resources.node_cache_gb
    if work.node_bytes > cluster.memory_gb * 1e9:
        told.append(
            f"a node has {cluster.memory_gb:g} GB of memory; what it trains from takes {work.node_bytes / 1e9:.0f}"
        )
    if cluster.disk_gb is not None and node_cache > cluster.disk_gb:
        told.append(f"resources.node_cache_gb is {node_cache:g}; a node has {cluster.disk_gb:g} GB of disk")
    return told
