"""An experiment as work for a cluster: shards and trials with what they take, as the simulation wants them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from statistics import mean

import numpy as np

from pipeline.forecasts.holdings import Holding, Shard, shards_to_make
from pipeline.forecasts.machines import Cluster
from pipeline.forecasts.rates import Pace, Rates
from pipeline.forecasts.requests import PER_EPOCH, PER_OUTPUT, PER_SHARD, PER_TRIAL
from pipeline.forecasts.simulation import Piece, Stage
from pipeline.forecasts.work import Training
from pipeline.planning.feeding import image_bytes
from pipeline.planning.plan import Plan


@dataclass(frozen=True, kw_only=True)
class Workload:
    """What is to be done, of the experiment as it is or as it is supposed to be."""

    trainings: tuple[Training, ...]
    caches: dict[str, list[Holding]]
    """By source."""
    growth: float
    """How many times as many images it has as what is packed."""
    node_bytes: int
    """What every node that trains holds in memory: images, labels, what sources say, graphs."""
    live: frozenset[str]
    """Sources that have no cache."""

    @property
    def trials(self) -> int:
        """How many are to be done."""
        return sum(one.count for one in self.trainings)

    @property
    def epochs(self) -> int:
        """Of all trials together."""
        return sum(one.count * one.epochs for one in self.trainings)

    @property
    def shards(self) -> dict[str, list[Shard]]:
        """What is to be made, by source."""
        return {source: shards_to_make(caches) for source, caches in self.caches.items()}

    def passes(self, *, cached: bool) -> int:
        """Images that go through sources."""
        inside = sum(
            one.count * one.label_rows // len(one.sources) * (len(self.live & set(one.sources)))
            for one in self.trainings
            if one.sources
        )
        if cached:
            return inside + sum(shard.views for shards in self.shards.values() for shard in shards)
        return sum(one.count * one.label_rows for one in self.trainings)


def of_size(trainings: Sequence[Training], *, trials: int | None, growth: float) -> tuple[Training, ...]:
    """The same trainings with more images, and so many of them, each in turn."""
    grown = [replace(one, steps=math.ceil(one.steps * growth)) if _grows(one) else one for one in trainings]
    if trials is None or not grown:
        return tuple(grown)
    ends = list(accumulate(one.count for one in grown))
    upto = [end * trials // ends[-1] for end in ends]
    return tuple(
        replace(one, count=end - start) for one, start, end in zip(grown, [0, *upto], upto, strict=False) if end > start
    )


def _grows(one: Training) -> bool:
    training = one.planned.trial.training
    return training.steps_per_epoch is None and training.labels_per_class is None


def bytes_of_node(plan: Plan, caches: dict[str, list[Holding]], *, growth: float) -> int:
    """Memory of what all trials of a node share; streamed images and what sources say of them lie on its disk."""
    packed = plan.packed
    label = len(packed.classes) if packed.multi_label else np.dtype(np.int64).itemsize
    image = 0 if plan.streamed else image_bytes(packed)
    images = round(packed.rows * growth * (image + label + 1))
    graphs = sum(round(packed.pool * growth) * spec.neighbours * 8 for spec in plan.graphs_for().values())
    if plan.streamed:
        return images + graphs
    return images + graphs + sum(one.payload for some in caches.values() for one in some)


def stages_of(work: Workload, rates: Rates, cluster: Cluster, *, plan: Plan, nodes: int, cached: bool) -> list[Stage]:
    """The stages of the run, where all rates are known that it needs."""
    resources, speed = plan.experiment.resources, cluster.speed
    shards = [(source, shard) for source, some in work.shards.items() for shard in some] if cached else []
    session = rates.session or 0.0
    making = Stage(
        name="cache",
        pieces=[_shard(shard, rates, source, speed) for source, shard in shards],
        places=cluster.places(resources.source_worker),
        start=session + (rates.cache_start or 0.0) / speed,
        saves=round(mean(shard.outputs for _, shard in shards)) * sum(PER_OUTPUT.values()) if shards else 0,
        ends=sum(PER_SHARD.values()),
    )
    pieces = [_trial(one, rates, work, speed, cached=cached) for one in work.trainings]
    checkpoints = [rates.paces[one.kind].checkpoint_bytes for one in work.trainings]
    training = Stage(
        name="sweep",
        pieces=[piece for one, piece in zip(work.trainings, pieces, strict=True) for _ in range(one.count)],
        places=cluster.places(resources.trial, workers=resources.workers),
        start=(0.0 if shards else session) + (rates.sweep_start or 0.0) / speed + _handing_out(work, cluster, nodes),
        turn=(rates.turn or 0.0) / speed,
        saves=sum(PER_EPOCH.values()),
        save_bytes=mean(checkpoints) if checkpoints else 0.0,
        ends=sum(PER_TRIAL.values()),
    )
    return [making, training]


def _shard(shard: Shard, rates: Rates, source: str, speed: float) -> Piece:
    pace = rates.sources[source]
    return Piece(lap=shard.views * pace.view / speed, around=shard.outputs * pace.shard / speed)


def _trial(one: Training, rates: Rates, work: Workload, speed: float, *, cached: bool) -> Piece:
    pace = rates.paces[one.kind]
    epoch = one.steps * pace.step + pace.evaluation * work.growth + pace.checkpoint
    if not cached:
        epoch += one.steps * one.rows * sum(rates.sources[name].answer for name in one.sources if name not in work.live)
    return Piece(laps=one.epochs, lap=epoch / speed, around=around(pace, work) / speed)


def around(pace: Pace, work: Workload) -> float:
    """Seconds of a trial beside its epochs; most are the test split's."""
    return pace.trial * max(1.0, work.growth)


def _handing_out(work: Workload, cluster: Cluster, nodes: int) -> float:
    """Until every node has what trials share: the driver reads it, then those that have it pass it on."""
    read = work.node_bytes / cluster.storage.link.bytes_per_second
    if cluster.network_mb_per_second is None:
        return read
    return read + math.ceil(math.log2(nodes)) * work.node_bytes / (cluster.network_mb_per_second * 1e6)
