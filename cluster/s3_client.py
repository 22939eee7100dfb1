"""The client of an S3-compatible server, one for a process, and what its failures mean.

Endpoint, region and credentials are found in the standard places of AWS: the environment, ~/.aws, roles.
"""

import os
from datetime import datetime
from functools import cache
from threading import Lock
from typing import Any
from urllib.parse import urlsplit

import boto3
from botocore import exceptions as failures
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from cluster.stored import StorageError

ATTEMPTS = 7
"""Of each request: what fails on the way, or with a 5xx, is asked again after 0-1, 0-2, 0-4 ... 0-32 seconds."""
CONNECT_SECONDS, ANSWER_SECONDS = 5, 30
"""How long one attempt waits for a connection, and for the next byte of an answer."""
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
}


_MAKING = Lock()


def client() -> Any:
    """The client of this process: it serves all threads, and no forked process uses its parent's connections."""
    with _MAKING:
        return _made_client(os.getpid())


@cache
def _made_client(process: int) -> Any:
    config = Config(
        # The other modes give up at once when the requests of a process have failed 35 times in all.
        retries={"mode": "legacy", "total_max_attempts": ATTEMPTS},
        connect_timeout=CONNECT_SECONDS,
        read_timeout=ANSWER_SECONDS,
        max_pool_connections=CONNECTIONS,
        # We send checksums of our own, in headers; boto3's trailing ones are refused by older servers.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    try:
        return boto3.session.Session(region_name=os.environ.get("AWS_REGION")).client("s3", config=config)
    except BotoCoreError:
        raise
    except ValueError as error:
        raise StorageError("AWS_ENDPOINT_URL is no address; it has to be https://host or http://host:port") from error


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
    if code in _REASONS:
        return _REASONS[code]
    if status_of(error) >= 500 or status_of(error) == 429:
        return f"the server failed {ATTEMPTS} times ({code}); the same command goes on from what is finished"
    return f"{code}: {' '.join(error.response['Error'].get('Message', '').split())}"


def code_of(error: ClientError) -> str:
    """The name a server gives to its refusal."""
    return str(error.response["Error"]["Code"])


def status_of(error: ClientError) -> int:
    """The number a server gives to its refusal."""
    return int(error.response["ResponseMetadata"]["HTTPStatusCode"])
