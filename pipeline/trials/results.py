"""What became of trainings: an immutable result per run key; why one failed, until it succeeds; which were stopped."""

import itertools
import json
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from typing import Any, TypeVar

from cluster.storage import Storage
from pipeline.canonical import canonical, digest
from pipeline.planning.plan import PlannedTrial
from pipeline.planning.specs import CacheSpec
from sskt.errors import DamagedError

T = TypeVar("T")

Result = dict[str, Any]

READERS = 8
"""Objects read at once: a bucket answers many requests side by side."""

OTHER_TORCH = tuple(f"2.{minor}" for minor in range(20, 10, -1))
"""Versions of torch that a result may be of, newest first."""


@dataclass(frozen=True)
class Failure:
    """Why a training failed when it was last tried."""

    reason: str
    tries: int = 1
    last: dict[str, float] | None = None
    """The metrics of the last epoch that ended well, if one did."""


@dataclass(frozen=True, kw_only=True)
class Stopped:
    """A trial that a scheduler ended early."""

    run_key: str
    label: str
    epoch: int
    """Epochs it trained, of the `epochs` it was planned for."""
    epochs: int
    score: float | None
    """The validation metric in % after them."""
    by: str
    reason: str


def existing_results(storage: Storage) -> set[str]:
    """The run keys that have a result, from one listing: no object is read."""
    return _names(storage, "results")


def read_result(storage: Storage, run_key: str) -> Result | None:
    """Return the finished result of a training, or None."""
    return _read(storage, _result_key(run_key))


def read_results(storage: Storage, run_keys: Iterable[str], *, reduce: Callable[[Result], T]) -> dict[str, T]:
    """What `reduce` keeps of each result that is there; whole ones hold their history, and there may be thousands."""

    def read(run_key: str) -> T | None:
        result = read_result(storage, run_key)
        return None if result is None else reduce(result)

    return _each(read, run_keys)


def seconds_of(result: Result) -> float:
    """How long a training took in all processes that had a part in it, less what was lost with one."""
    return float(result["seconds"]) + float(result.get("earlier_seconds", 0.0))  # results of before lack it


def write_result(storage: Storage, run_key: str, result: Result) -> None:
    """Record a finished training. If another process finished the same one first, its result stands."""
    storage.create(_result_key(run_key), canonical(result).encode())
    storage.delete(_failure_key(run_key))


def read_failure(storage: Storage, run_key: str) -> Failure | None:
    """Return why a training failed when it was last tried, or None."""
    found = _read(storage, _failure_key(run_key))
    return None if found is None else Failure(found["reason"], found.get("tries", 1), found.get("last"))


def read_failures(storage: Storage, run_keys: Iterable[str]) -> dict[str, Failure]:
    """Those of some trainings that failed when they were last tried."""
    there = _names(storage, "failures")
    return _each(lambda run_key: read_failure(storage, run_key), (key for key in run_keys if key in there))


def write_failure(
    storage: Storage, run_key: str, reason: str, *, tries: int = 1, last: Mapping[str, float] | None = None
) -> None:
    """Record why a training failed, after how many tries, and how far it had come."""
    failure = Failure(reason, tries, None if last is None else dict(last))
    storage.write(_failure_key(run_key), canonical({"run_key": run_key} | asdict(failure)).encode())


def write_stopped(storage: Storage, search_id: str, run_key: str, stopped: Stopped) -> None:
    """Record that a scheduler ended a trial early. What was recorded first stands."""
    storage.create(f"{_stopped_folder(search_id)}/{run_key}.json", canonical(stopped).encode())


def stopped_trials(storage: Storage, search_id: str) -> dict[str, Stopped]:
    """The trials of a search that were ended early, by run key."""
    folder = _stopped_folder(search_id)

    def read(run_key: str) -> Stopped | None:
        found = _read(storage, f"{folder}/{run_key}.json")
        return None if found is None else Stopped(**found)

    return _each(read, sorted(_names(storage, folder)))


def older_names(caches: Iterable[CacheSpec]) -> dict[str, dict[str, str]]:
    """By version of torch: what each cache is called if that version makes it."""
    specs = list(caches)
    return {version: {spec.id: _made_by(spec, version).id for spec in specs} for version in OTHER_TORCH}


def older_results(planned: PlannedTrial, existing: set[str], *, names: Mapping[str, Mapping[str, str]]) -> str | None:
    """Which version of torch, or older meaning of its settings, the same trial has a result of, if any: `torch 2.13`.

    names: what `older_names` says of the caches it trains from.
    """
    now = (planned.spec["semantics"], planned.spec["torch"])
    for semantics, version in itertools.product(range(now[0], 0, -1), OTHER_TORCH):
        if (semantics, version) != now and _other_key(planned, semantics, version, names[version]) in existing:
            return f"torch {version}" + (f", semantics {semantics}" if semantics != now[0] else "")
    return None


def _other_key(planned: PlannedTrial, semantics: int, version: str, names: Mapping[str, str]) -> str:
    """The run key of the same trial under other versions."""
    sources = [
        [names.get(part, part) if isinstance(part, str) else part for part in source]
        for source in planned.spec["sources"]
    ]
    return digest(planned.spec | {"semantics": semantics, "torch": version, "sources": sources})


def _made_by(spec: CacheSpec, version: str) -> CacheSpec:
    """The cache of the same labels, made by another version of torch."""
    return replace(spec, labels=replace(spec.labels, numerics=spec.labels.numerics | {"torch": version}))


def _each(read: Callable[[str], T | None], run_keys: Iterable[str]) -> dict[str, T]:
    """What is there, by run key, read by a few threads."""
    run_keys = list(run_keys)
    with ThreadPoolExecutor(READERS) as pool:
        return {key: found for key, found in zip(run_keys, pool.map(read, run_keys), strict=True) if found is not None}


def _names(storage: Storage, folder: str) -> set[str]:
    """The run keys that have an object in a folder."""
    return {key.removeprefix(f"{folder}/").removesuffix(".json") for key in storage.keys(folder)}


def _result_key(run_key: str) -> str:
    return f"results/{run_key}.json"


def _failure_key(run_key: str) -> str:
    return f"failures/{run_key}.json"


def _stopped_folder(search_id: str) -> str:
    return f"searches/{search_id}/stopped"


def _read(storage: Storage, key: str) -> Result | None:
    data = storage.read(key)
    if data is None:
        return None
    try:
        value: Result = json.loads(data)
    except ValueError as error:
        raise DamagedError(f"{key} is damaged ({error}); delete it and its training will be done again") from error
    return value
