"""Events as JSON lines on stderr, where SSKT_LOG=json asks for them; without it people are told by plain lines alone.

Ray keeps the stderr of every worker in a file of its own, and that of a driver in the log of its job.
"""

import json
import logging
import math
import os
import platform
import sys
from datetime import UTC, datetime
from functools import cache
from typing import Any

from cluster.metrics import work

VARIABLE = "SSKT_LOG"


class LogError(ValueError):
    """A kind of log that does not exist."""


class JsonLines(logging.Formatter):
    """One line of JSON for each record: when, how grave, what, for which work, where, and the fields of the event."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        said = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            **work()._asdict(),
            "node": platform.node(),
            "pid": record.process,
            **{name: _plain(value) for name, value in getattr(record, "fields", {}).items()},
        }
        return json.dumps(said)


def event(name: str, *, level: int = logging.INFO, **fields: Any) -> None:
    """Log that something happened."""
    if as_json():
        _logger().log(level, name, extra={"fields": fields})


def as_json() -> bool:
    """Whether JSON lines are wanted, in place of those for people."""
    return os.environ.get(VARIABLE, "") == "json"


def check_choice() -> None:
    """Refuse a kind of log that does not exist."""
    chosen = os.environ.get(VARIABLE, "")
    if chosen not in ("", "json"):
        raise LogError(f"{VARIABLE} is {chosen!r}; it has to be json, or not set")


@cache
def _logger() -> logging.Logger:
    logger, handler = logging.getLogger("sskt.events"), logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False
    return logger


def _plain(value: Any) -> Any:
    """A value that JSON has; it knows no infinity."""
    if isinstance(value, float):
        return round(value, 6) if math.isfinite(value) else None
    return value if isinstance(value, int | None) else str(value)
