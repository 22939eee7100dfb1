"""What requests to a bucket cost and how they fail: every attempt is counted where botocore tells of it."""

import logging
import time
from typing import Any

from cluster.logs import event
from cluster.metrics import count, observe

_BEGAN, _FAILED = "sskt-began", "sskt-failed"
"""Names in a request's context, which goes along from attempt to attempt."""


def watch(client: Any) -> None:
    """Count all requests of a client from now on."""
    client.meta.events.register("before-send.s3", _begin)
    client.meta.events.register("response-received.s3", _end)


def spoilt(attempt: int) -> None:
    """Count an answer that broke off, or whose bytes are not those that were written: it is asked for again."""
    count("sskt_s3_errors", operation="GetObject", code="spoilt")
    _retried("GetObject", attempt=attempt + 1, code="spoilt")


def _retried(operation: str, *, attempt: int, code: str) -> None:
    """Count an attempt that repeats one that failed."""
    count("sskt_s3_retries", operation=operation)
    event("storage_retry", level=logging.WARNING, operation=operation, attempt=attempt, code=code)


def _begin(request: Any, event_name: str, **_: Any) -> None:
    operation, context = event_name.rpartition(".")[2], request.context
    count("sskt_s3_requests", operation=operation)
    sent = int(request.headers.get("Content-Length", 0))
    if sent:
        count("sskt_s3_bytes", sent, direction="sent")
    attempt = context.get("retries", {}).get("attempt", 1)
    if attempt > 1 and _FAILED not in context:  # of an answer that broke off only the parser knows
        count("sskt_s3_errors", operation=operation, code="spoilt")
    if attempt > 1:
        _retried(operation, attempt=attempt, code=context.pop(_FAILED, "spoilt"))
    context[_BEGAN] = time.perf_counter()


def _end(event_name: str, context: dict[str, Any], response_dict: Any, exception: Exception | None, **_: Any) -> None:
    operation = event_name.rpartition(".")[2]
    observe("sskt_s3_seconds", time.perf_counter() - context.pop(_BEGAN), operation=operation)
    code = _code(response_dict, exception)
    if code:
        count("sskt_s3_errors", operation=operation, code=code)
        context[_FAILED] = code
    if response_dict is not None:
        received = int(response_dict["headers"].get("Content-Length", 0))
        if received and operation != "HeadObject":
            count("sskt_s3_bytes", received, direction="received")


def _code(answer: dict[str, Any] | None, exception: Exception | None) -> str:
    """A status, or what kept an answer from coming; both have few values. Nothing where all went well."""
    if answer is None:
        return type(exception).__name__
    return str(answer["status_code"]) if answer["status_code"] >= 400 else ""
