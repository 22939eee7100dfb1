"""What is sent to a cluster: one experiment file, checked as far as that needs no knowledge of learning."""

import hashlib
import json
import re
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml

from cluster.jobs import PREFIX, Job, JobsError, Order

PIPELINE = ("python", "-m", "pipeline")
SENT_VERBS = ("sweep", "cache", "train", "pack", "report", "verify")
"""Those of the pipeline that take an experiment file and work on the storage."""
MOST_BYTES = 1 << 20
"""Nobody writes an experiment that large; data is not sent, it lies where the cluster's machines see it."""
_PATHS = {"storage", "path", "test_path", "weights"}
"""Fields of an experiment that name a place."""


def read_order(path: str, *, verb: str = SENT_VERBS[0], further: Sequence[str] = ()) -> Order:
    """Read and check an experiment file; `further` are arguments of the pipeline's command line."""
    file = Path(path)
    try:
        text = file.read_bytes()
        if len(text) > MOST_BYTES:
            raise JobsError(f"{path} has {len(text)} bytes; an experiment file has {MOST_BYTES} at most")
        fields = yaml.safe_load(text.decode())
    except (OSError, UnicodeDecodeError) as error:
        raise JobsError(f"{path}: the experiment file cannot be read: {error}") from error
    except yaml.YAMLError as error:
        raise JobsError(f"{path}: this is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(fields, dict):
        raise JobsError(f"{path}: the file has to hold fields such as `storage:` and `dataset:`")
    _check_paths(path, dict(places(fields)) | changed_places(further))
    words = [*PIPELINE, verb, f"./{file.name}", *further]
    digest = hashlib.sha256(json.dumps(words).encode() + text).hexdigest()[:10]
    plain = re.sub(r"[^a-z0-9]+", "-", file.stem.lower()).strip("-")[:40]
    name = "-".join(part for part in (f"{PREFIX}{verb}", plain, digest) if part)
    return Order(verb=verb, file=file.name, text=text, command=shlex.join(words), name=name)


def run_of(order: str, there: Sequence[Job]) -> tuple[str, bool]:
    """What an order's run is called on a cluster that knows these jobs, and whether it is there and has not ended.

    A name can be used once on a cluster, so the runs that follow are numbered.
    """
    runs = {1 if job.name == order else int(job.name.rpartition("-")[2]): job for job in there if _is_run(order, job)}
    alive = [number for number, job in runs.items() if job.state.alive]
    number = max(alive) if alive else max(runs, default=0) + 1
    return order if number == 1 else f"{order}-{number}", bool(alive)


def _is_run(order: str, job: Job) -> bool:
    return re.fullmatch(rf"{re.escape(order)}(-\d+)?", job.name) is not None


def places(fields: Any, at: str = "") -> Iterator[tuple[str, str]]:
    """Every place that an experiment names, by the field that names it."""
    if not isinstance(fields, dict):
        return
    for name, value in fields.items():
        here = f"{at}.{name}" if at else str(name)
        if here == "laptop":  # what the file asks for on a smaller machine than a cluster
            continue
        if name in _PATHS and isinstance(value, str):
            yield here, value
        yield from places(value, here)


def changed_places(further: Sequence[str]) -> dict[str, str]:
    """Those that --set changes."""
    changes = (word.removeprefix("--set=").partition("=") for word in further if "=" in word)
    return {field: value for field, _, value in changes if field.rpartition(".")[2] in _PATHS}


def _check_paths(path: str, named: dict[str, str]) -> None:
    """A relative path would be one of the folder that the job gets on the head, which goes with the cluster."""
    for field, value in named.items():
        is_name = field.endswith("weights") and "/" not in value and not Path(value).suffix  # such as `package`
        if not (is_name or value.startswith(("/", "s3:")) or "://" in value):
            todo = "s3://bucket/prefix, or a folder that all nodes see" if field == "storage" else "a path from / on"
            raise JobsError(f"{path}: {field} is {value!r}, a place of this machine; for a cluster write {todo}")
