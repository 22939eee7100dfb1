"""The clients of an S3-compatible server, for each process its own, and what their failures mean.

Endpoint, region and credentials are found in the standard places of AWS: the environment, ~/.aws, roles.
"""

import os
import random
import time
from datetime import datetime
from functools import cache, partial
from threading import Lock
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import boto3
from botocore import exceptions as failures
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from cluster.s3_watch import watch
from cluster.stored import StorageError


class Patience(NamedTuple):
    """How long a request is tried."""

    seconds: float
    """What fails on the way, or with a 5xx, is asked again for so long, after 0-1, 0-2, 0-4 ... seconds."""
    connect_seconds: float
    """How long an attempt waits for a connection."""
    answer_seconds: float
    """And for the next byte of an answer."""
    longest_pause: float = 8


PATIENT = Patience(seconds=180, connect_seconds=5, answer_seconds=30)
"""Servers that restart or are cut off for a minute or two stop no run."""
HASTY = Patience(seconds=1, connect_seconds=2, answer_seconds=2, longest_pause=0.2)
"""For the first look at a storage: a wrong address or key shows before anything is begun."""
PASSING = (429, 500, 502, 503, 504)
"""The numbers of refusals that mean: not now."""
CONNECTIONS = 16

CUT_SHORT = (failures.IncompleteReadError, failures.ResponseStreamingError, failures.ReadTimeoutError)
"""What reading an answer's body raises where it breaks off; only its head is asked for again by the client itself."""
_CREDENTIALS = (
    failures.NoCredentialsError,
    failures.PartialCredentialsError,
    failures.CredentialRetrievalError,
    failures.TokenRetrievalError,
    failures.ProfileNotFound,
    failures.SSOError,
)
_UNREACHABLE = (failures.ConnectionError, failures.HTTPClientError)
_WANTED_RIGHTS = "GetObject, PutObject, DeleteObject and AbortMultipartUpload below it, and ListBucket on the bucket"
_CODES = {"403": "AccessDenied", "404": "NoSuchBucket", "301": "PermanentRedirect", "AllAccessDisabled": "AccessDenied"}
"""Other names of the same; answers to HEAD have no name, only a number."""
_REASONS = {
    "NoSuchBucket": "there is no such bucket; make it, or correct the name",
    "AccessDenied": f"access is denied; the credentials need {_WANTED_RIGHTS}",
    "InvalidAccessKeyId": "the server does not know the access key; check AWS_ACCESS_KEY_ID or AWS_PROFILE",
    "SignatureDoesNotMatch": "the server refuses the secret key; check AWS_SECRET_ACCESS_KEY or AWS_PROFILE",
    "ExpiredToken": "the credentials have expired; renew them",
    "RequestTimeTooSkewed": "this machine's clock is wrong; set it",
    "PermanentRedirect": "the bucket lies in another region; set AWS_REGION",
    "AuthorizationHeaderMalformed": "the bucket lies in another region; set AWS_REGION",
    "InvalidToken": "the server does not know AWS_SESSION_TOKEN; renew the credentials, or unset it",
}


_MAKING = Lock()


def client(*, hasty: bool = False) -> Any:
    """A client of this process: it serves all threads, and no forked process uses its parent's connections."""
    with _MAKING:
        return _made_client(os.getpid(), HASTY if hasty else PATIENT)


@cache
def _made_client(process: int, patience: Patience) -> Any:
    config = Config(
        # No mode of its own has patience: they count attempts, or give up when a process's have failed 35 times in all.
        retries={"mode": "standard", "total_max_attempts": 1},
        connect_timeout=patience.connect_seconds,
        read_timeout=patience.answer_seconds,
        max_pool_connections=CONNECTIONS,
        # We send checksums of our own, in headers; boto3's trailing ones are refused by older servers.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    try:
        made = boto3.session.Session(region_name=os.environ.get("AWS_REGION")).client("s3", config=config)
    except BotoCoreError:
        raise
    except ValueError as error:
        raise StorageError("AWS_ENDPOINT_URL is no address; it has to be https://host or http://host:port") from error
    made.meta.events.register_first("needs-retry.s3", partial(_pause, patience))
    watch(made)
    return made


def _pause(
    patience: Patience, *, attempts: int, response: Any, caught_exception: Any, request_dict: Any, **_: Any
) -> float | None:
    """How long to wait before a request is made again; None where it is over."""
    if not _passes(response, caught_exception, method=request_dict["method"]):
        return None
    now = time.monotonic()
    since = request_dict["context"].setdefault("failing since", now)
    if now - since >= patience.seconds:
        return None
    return random.random() * min(patience.longest_pause, 2 ** (attempts - 1))  # noqa: S311 (no secret)


def _passes(response: Any, error: Exception | None, *, method: str) -> bool:
    """Whether what went wrong, if anything did, may be right when asked again."""
    if error is not None:
        return isinstance(error, (*_UNREACHABLE, *CUT_SHORT))
    answer, said = response
    refused = said.get("Error", {})
    return answer.status_code in PASSING or refused.get("Code") == "RequestTimeout" or _breaks_off(answer, method)


def _breaks_off(answer: Any, method: str) -> bool:
    """Whether the reason of a refusal is not all there, which botocore takes for one without a name.

    Of an object whoever reads it finds out.
    """
    told = answer.headers.get("Content-Length")
    return method != "HEAD" and answer.status_code >= 300 and told is not None and len(answer.content) < int(told)


def credentials() -> tuple[str, float | None] | None:
    """Where this process finds its credentials, and when they expire (seconds since 1970) unless renewed by themselves.

    None where it finds none. The credentials themselves are not looked at.
    """
    try:
        found = boto3.session.Session().get_credentials()
    except BotoCoreError:
        return None
    if found is None:
        return None
    ending = os.environ.get("AWS_CREDENTIAL_EXPIRATION") if found.method == "env" else None
    return found.method, datetime.fromisoformat(ending).timestamp() if ending else None


def reason(error: Exception) -> str:
    """Why a request failed, and what to do about it; never a credential."""
    if isinstance(error, ClientError):
        return _refusal(error)
    if isinstance(error, _CREDENTIALS):
        return (
            f"no credentials ({type(error).__name__}); set AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    if isinstance(error, _UNREACHABLE):
        where = urlsplit(client().meta.endpoint_url)
        address = f"{where.scheme}://{where.hostname}" + (f":{where.port}" if where.port else "")
        return f"{address} does not answer ({type(error).__name__}); check AWS_ENDPOINT_URL, the network, the server"
    return " ".join(str(error).split())


def _refusal(error: ClientError) -> str:
    code = _CODES.get(code_of(error), code_of(error))
    said = " ".join(error.response["Error"].get("Message", "").split())
    if "kms:" in said:
        return f"{code}: {said}; the credentials need kms:GenerateDataKey and kms:Decrypt on the key"
    if code in _REASONS:
        return _REASONS[code]
    if is_busy(error):
        tried = error.response["ResponseMetadata"].get("RetryAttempts", 0) + 1
        hint = "; does AWS_ENDPOINT_URL lead to S3?" if code.isdecimal() else ""
        return f"the server failed {tried} times ({code}); the same command goes on from what is finished{hint}"
    return f"{code}: {said}"


def is_busy(error: ClientError) -> bool:
    """Whether the server could not do what it was asked, this time."""
    return status_of(error) >= 500 or status_of(error) == 429


def code_of(error: ClientError) -> str:
    """The name a server gives to its refusal."""
    return str(error.response["Error"]["Code"])


def status_of(error: ClientError) -> int:
    """The number a server gives to its refusal."""
    return int(error.response["ResponseMetadata"]["HTTPStatusCode"])
