"""Forecasts that were made, and what came of them.

reports/forecasts/<experiment>/<time>-<id>.json    a forecast and the rates it goes by; the newest counts
"""

from dataclasses import asdict, dataclass
from datetime import UTC, datetime

from cluster.storage import Storage
from pipeline.caches.labels import read_record, record_key, shard_key
from pipeline.caches.segments import segments_of
from pipeline.canonical import digest, seal, unseal
from pipeline.forecasts.figures import Forecast
from pipeline.forecasts.rates import Rates
from pipeline.forecasts.work import known_trials
from pipeline.planning.plan import Plan
from pipeline.planning.specs import Segment
from pipeline.planning.validation import validate
from pipeline.trials.results import read_results
from sskt.errors import DamagedError

FOLDER = "reports/forecasts"
"""Whoever may write reports may write these."""


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """A forecast as it was made."""

    forecast: Forecast
    rates: Rates
    supposed: bool
    """Whether it is of another size than the experiment, so that nothing will come of it."""

    @property
    def something(self) -> bool:
        """Whether anything was to be done."""
        return self.forecast.trials + self.forecast.cached.passes > 0


@dataclass(frozen=True, kw_only=True)
class Compared:
    """A figure as it was forecast, and as it came."""

    what: str
    unit: str
    forecast: float
    actual: float

    @property
    def ratio(self) -> float | None:
        """The forecast by what came; None where nothing came."""
        return self.forecast / self.actual if self.actual else None


@dataclass(frozen=True, kw_only=True)
class Span:
    """A piece of work that was done: when it ended, by the storage's clock, and how long it took."""

    ended: float
    seconds: float
    passes: int = 0


def write_forecast(storage: Storage, recorded: Recorded) -> str:
    """Keep a forecast; return its key."""
    said, now = asdict(recorded), datetime.now(UTC).strftime("%Y%m%dT%H%M%S%f")
    key = f"{FOLDER}/{recorded.forecast.experiment}/{now}-{digest(said)}.json"
    storage.write(key, seal(said))
    return key


def read_forecast(storage: Storage, experiment: str) -> tuple[Recorded, float] | None:
    """The newest forecast of an experiment as it is, with something to do, and when it was made; None for none."""
    for found in reversed(list(storage.objects(f"{FOLDER}/{experiment}"))):
        recorded = _read(storage, found.key)
        if (
            recorded is not None
            and not recorded.supposed
            and (recorded.forecast.trials or recorded.forecast.cached.passes)
        ):
            return recorded, found.written
    return None


def compare(plan: Plan, storage: Storage) -> list[Compared]:
    """The newest forecast beside what was done since; nothing where none was made, or nothing was done."""
    found = read_forecast(storage, plan.experiment.name)
    if found is None:
        return []
    (recorded, made), shards = found, list[Span]()
    forecast, cached, stored = recorded.forecast, recorded.forecast.cached, 0
    for specs in plan.caches_for().values():
        for spec in specs.values():
            spans, size = _made_since(storage, segments=segments_of(storage, spec), made=made)
            shards, stored = shards + spans, stored + size
    trials = _trained_since(plan, storage, made)
    pairs: list[tuple[str, str, float | None, float]] = [
        ("source passes", "", cached.passes, sum(one.passes for one in shards)),
        ("caches", "bytes", sum(forecast.cache_bytes.values()), stored),
        ("trials", "", forecast.trials, len(trials)),
        ("work", "s", cached.seconds and cached.seconds - (cached.first or 0.0), _lasted([*shards, *trials])),
    ]
    return [Compared(what=what, unit=unit, forecast=said, actual=actual) for what, unit, said, actual in pairs if said]


def _lasted(spans: list[Span]) -> float:
    """From the beginning of the first to the end of the last."""
    return max(one.ended for one in spans) - min(one.ended - one.seconds for one in spans) if spans else 0.0


def _made_since(storage: Storage, *, segments: list[Segment], made: float) -> tuple[list[Span], int]:
    """The shards of some segments that were made since, and the bytes of all of them."""
    spans, size = [], 0
    for segment in segments:
        objects = {one.key: one for one in storage.objects(segment.prefix)}
        for shard in range(segment.shards):
            there, record = objects.get(record_key(segment, shard)), read_record(storage, segment, shard)
            if there is None or record is None:
                continue
            size += objects[shard_key(segment, shard)].bytes if shard_key(segment, shard) in objects else 0
            if there.written >= made:
                spans.append(Span(ended=there.written, seconds=record.seconds, passes=record.passes))
    return spans, size


def _trained_since(plan: Plan, storage: Storage, made: float) -> list[Span]:
    """The trials that have ended since."""
    times = {one.key.removeprefix("results/").removesuffix(".json"): one.written for one in storage.objects("results")}
    known = {planned.run_key for planned in known_trials(plan, storage)}
    late = sorted(key for key in known & times.keys() if times[key] >= made)
    took = read_results(storage, late, reduce=lambda result: float(result["seconds"]))
    return [Span(ended=times[key], seconds=seconds) for key, seconds in took.items()]


def _read(storage: Storage, key: str) -> Recorded | None:
    data = storage.read(key)
    if data is None:
        return None
    try:
        return validate(Recorded, unseal(data))
    except ValueError as error:
        raise DamagedError(f"{key} is damaged ({error}); delete it") from error
