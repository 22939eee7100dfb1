"""Results: one immutable JSON object per run key; and why a training failed, until it succeeds."""

import json
from typing import Any

from cluster.storage import Storage
from pipeline.canonical import canonical
from sskt.errors import DamagedError

Result = dict[str, Any]


def read_result(storage: Storage, run_key: str) -> Result | None:
    """Return the finished result of a training, or None."""
    return _read(storage, _result_key(run_key))


def write_result(storage: Storage, run_key: str, result: Result) -> None:
    """Record a finished training. If another process finished the same one first, its result stands."""
    storage.create(_result_key(run_key), canonical(result).encode())
    storage.delete(_failure_key(run_key))


def read_failure(storage: Storage, run_key: str) -> str | None:
    """Return why a training failed when it was last tried, or None."""
    failure = _read(storage, _failure_key(run_key))
    return None if failure is None else str(failure["reason"])


def write_failure(storage: Storage, run_key: str, reason: str) -> None:
    """Record why a training failed."""
    storage.write(_failure_key(run_key), canonical({"run_key": run_key, "reason": reason}).encode())


def _result_key(run_key: str) -> str:
    return f"results/{run_key}.json"


def _failure_key(run_key: str) -> str:
    return f"failures/{run_key}.json"


def _read(storage: Storage, key: str) -> Result | None:
    data = storage.read(key)
    if data is None:
        return None
    try:
        value: Result = json.loads(data)
    except ValueError as error:
        raise DamagedError(f"{key} is damaged ({error}); delete it and its training will be done again") from error
    return value
