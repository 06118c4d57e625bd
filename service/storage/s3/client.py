"""The boto3 client, and what its errors mean.

Retries are not botocore's: it sleeps in the calling thread, which can be neither stopped nor used
by another upload meanwhile. `calls` has them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Final, Literal

import boto3
from botocore import exceptions
from botocore.config import Config

from service.settings import Settings
from service.storage.base import StorageError, StorageFull, StorageShort, StorageUnavailable

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

#: connections that may be open at once: more than threads ever use
_CONNECTIONS: Final = 64
_CONNECT_SECONDS: Final = 5
#: silence of the store within one call
_READ_SECONDS: Final = 30
#: the same while it puts an object together, for which some stores copy all bytes and say nothing meanwhile
_ASSEMBLY_SECONDS: Final = 120


@dataclass(frozen=True, slots=True)
class S3Options:
    """Which bucket, and how it is reached. Credentials come from the usual AWS chain.

    Args:
        bucket: its name.
        endpoint: URL of the store; None: AWS's own for the region.
        public_endpoint: what presigned URLs begin with, where clients reach the store elsewhere.
        region: None: what the AWS configuration says.
        prefix: what all keys begin with; empty, or ends with `/`.
        addressing: whether the bucket is part of the path or of the host name.
    """

    bucket: str
    endpoint: str | None = None
    public_endpoint: str | None = None
    region: str | None = None
    prefix: str = ""
    addressing: Literal["auto", "path", "virtual"] = "auto"


def options_of(settings: Settings) -> S3Options:
    """Which bucket the settings name, and how it is reached."""
    return S3Options(
        bucket=settings.s3_bucket or "",
        endpoint=settings.s3_endpoint,
        public_endpoint=settings.s3_public_endpoint,
        region=settings.s3_region,
        prefix=settings.s3_prefix,
        addressing=settings.s3_addressing,
    )


def make_client(
    options: S3Options,
    *,
    sign_bodies: bool = True,
    public: bool = False,
    patient: bool = False,
    session: boto3.session.Session | None = None,
) -> S3Client:
    """A client; safe to use from several threads. Reads files and the environment: not on the loop.

    Args:
        sign_bodies: whether a body's SHA-256 is part of the signature, which costs more than all else.
        public: for URLs that clients will use.
        patient: for calls that make the store put an object together.
        session: to share between clients, which saves ten megabytes for each.
    """
    config = Config(
        # without it, custom endpoints get URLs of the signature before
        signature_version="s3v4",
        s3={"addressing_style": options.addressing, "payload_signing_enabled": sign_bodies},
        # stores that do not know checksum headers refuse them (lesson K3); we send our own where they work
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        retries={"total_max_attempts": 1, "mode": "standard"},
        connect_timeout=_CONNECT_SECONDS,
        read_timeout=_ASSEMBLY_SECONDS if patient else _READ_SECONDS,
        max_pool_connections=_CONNECTIONS,
        tcp_keepalive=True,
    )
    session = session or boto3.session.Session()
    endpoint = options.public_endpoint or options.endpoint if public else options.endpoint
    client = session.client(
        "s3",
        region_name=options.region or session.region_name or "us-east-1",
        endpoint_url=endpoint,
        config=config,
    )
    client.meta.events.register_last("before-call.s3", _send_at_once)
    return client


def _send_at_once(params: Mapping[str, Any], **_others: object) -> None:
    """A body is not announced and then waited with, unless it went out before and had to be sent again.

    That would take a round trip for each part, and botocore reads the answer to it byte by byte. The
    second time a store that refuses it shall be able to say so, which one that hangs up cannot.
    """
    if not getattr(params.get("body"), "begun", False):
        params["headers"].pop("Expect", None)


class StoreRefused(StorageUnavailable):
    """The store answers, and will not do it: wrong bucket, keys, rights or region. For an operator to mend."""


class StoreLacks(StoreRefused):
    """The store does not have the operation."""


@dataclass(frozen=True, slots=True)
class Fault:
    """Why a call failed, in our words.

    `retry`: the same call may succeed; `after_seconds`: the store said when.
    """

    kind: Literal["missing", "full", "throttled", "unavailable", "refused", "lacking"]
    code: str
    retry: bool
    after_seconds: float | None = None


#: what is not there (any more): an object, a multipart upload, a part of it as the ledger knows it
_MISSING: Final = frozenset({
    "NoSuchKey", "NoSuchUpload", "InvalidPart", "InvalidPartOrder", "InvalidRange", "EntityTooSmall",
})  # fmt: skip
#: whose answers have no body, and so no code of S3's
_BODILESS: Final = frozenset({"HeadObject", "HeadBucket"})
_FULL: Final = frozenset({"QuotaExceeded", "XMinioStorageFull", "InsufficientCapacity", "InsufficientStorage", "507"})
_THROTTLED: Final = frozenset({
    "503", "429", "SlowDown", "SlowDownRead", "SlowDownWrite", "ServiceUnavailable", "Throttling",
    "ThrottlingException", "RequestLimitExceeded", "RequestThrottled", "TooManyRequests", "BandwidthLimitExceeded",
})  # fmt: skip
#: refusals whose status may be 404
_REFUSED: Final = frozenset({"NoSuchBucket", "XAdminUserNotFound"})
#: refusals that are of the moment, or of a body that was damaged on its way
_PASSING: Final = frozenset({
    "RequestTimeout", "OperationAborted", "ConditionalRequestConflict", "BadDigest", "InvalidDigest", "IncompleteBody",
    "XAmzContentChecksumMismatch", "XAmzContentSHA256Mismatch",
})  # fmt: skip
_NO_CREDENTIALS: Final = (
    exceptions.NoCredentialsError,
    exceptions.PartialCredentialsError,
    exceptions.CredentialRetrievalError,
    exceptions.TokenRetrievalError,
)


def fault_of(error: Exception) -> Fault:
    """What an exception of botocore's means."""
    if isinstance(error, exceptions.ClientError):
        return _answered(error)
    name = type(error).__name__
    if isinstance(error, _NO_CREDENTIALS):
        return Fault("refused", name, retry=False)
    if isinstance(error, exceptions.ParamValidationError):
        return Fault("refused", name, retry=False)
    # no answer, or not all of one: refused connection, time-out, reset, a proxy's page
    return Fault("unavailable", name, retry=True)


def _answered(error: exceptions.ClientError) -> Fault:
    response: Any = error.response
    code = str(response.get("Error", {}).get("Code", ""))
    metadata = response.get("ResponseMetadata", {})
    status = int(metadata.get("HTTPStatusCode") or 0)
    if code in _FULL or status == 507:
        return Fault("full", code, retry=False)
    if code in _REFUSED:
        return Fault("refused", code, retry=False)
    if code in _MISSING or (status == 404 and error.operation_name in _BODILESS):
        return Fault("missing", code, retry=False)
    if status == 404:
        # not the store's word: a proxy or a router before it that does not know it at the moment
        return Fault("unavailable", code, retry=True)
    if code in _THROTTLED or status in (429, 503):
        return Fault("throttled", code, retry=True, after_seconds=_after(metadata.get("HTTPHeaders", {})))
    if status in (405, 501):
        return Fault("lacking", code, retry=False)
    if code in _PASSING or status >= 500:
        return Fault("unavailable", code, retry=True)
    return Fault("refused", code, retry=False)


def _after(headers: dict[str, str]) -> float | None:
    """Seconds that the store asks for (RFC 9110 10.2.3); None: it does not."""
    value = headers.get("retry-after", "")
    if value.isdecimal():
        return float(value)
    try:
        # by the clock of who said it
        wait = parsedate_to_datetime(value) - parsedate_to_datetime(headers.get("date", ""))
    except (TypeError, ValueError):
        return None
    return max(0.0, wait.total_seconds())


def translated(error: Exception, what: str) -> StorageError:
    """The port's error for one of botocore's. No key, bucket or host is in its words."""
    fault = fault_of(error)
    words = f"{what}: {fault.code or type(error).__name__}"
    match fault.kind:
        case "missing":
            return StorageShort(words)
        case "full":
            return StorageFull(words)
        case "refused":
            return StoreRefused(words)
        case "lacking":
            return StoreLacks(words)
        case _:
            return StorageUnavailable(words)


def answer_in(error: StorageError) -> Exception:
    """Botocore's error that it was translated from, for an operator who asks; tracebacks do not show it (lesson A5)."""
    cause = error.__cause__ or error.__context__
    return cause if isinstance(cause, Exception) else error
