"""What a failed call of the doctor's, or of a start, says, and what its operator can do about it.

A store's answer is a code; where none came, the exception's type tells what was in the way. The
words name the setting, the variable of the AWS chain or the right that is missing.
"""

from __future__ import annotations

from typing import Any, Final
from urllib.parse import urlsplit

from botocore import exceptions

from service.storage.s3.client import Fault, fault_of

_CREDENTIALS: Final = (
    "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or give the machine a role (the usual AWS chain)"
)
_UNKNOWN_KEY: Final = f"the store does not know the access key: {_CREDENTIALS}"
_REGION: Final = "set ATTACHD_S3_REGION to the region of the bucket"
_CLOCK: Final = "set this machine's clock by NTP"
_RENEW: Final = "the temporary credentials have ended: renew AWS_SESSION_TOKEN and the keys that came with it"
_FULL: Final = "the store is full, or the account's quota is used up: make room"
_BUSY: Final = "the store asks for patience: run doctor again, and ask its operator if it stays so"
_AILING: Final = "the store, or a proxy before it, cannot at the moment: run doctor again, and ask its operator"

#: of refusals; all else is told by the kind of the fault
_BY_CODE: Final = {
    "NoSuchBucket": "create the bucket, or correct ATTACHD_S3_BUCKET or ATTACHD_S3_ENDPOINT",
    "InvalidBucketName": "correct ATTACHD_S3_BUCKET",
    "InvalidAccessKeyId": _UNKNOWN_KEY,
    "XAdminUserNotFound": _UNKNOWN_KEY,
    "SignatureDoesNotMatch": (
        "correct AWS_SECRET_ACCESS_KEY; if it is right, ATTACHD_S3_REGION is not, or a proxy changes Host or the path"
    ),
    "InvalidToken": _RENEW,
    "ExpiredToken": _RENEW,
    "TokenRefreshRequired": _RENEW,
    "RequestTimeTooSkewed": _CLOCK,
    "AuthorizationHeaderMalformed": _REGION,
    "PermanentRedirect": f"{_REGION}, or ATTACHD_S3_ENDPOINT to its address",
    "301": f"{_REGION}, or ATTACHD_S3_ENDPOINT to its address",
    "IllegalLocationConstraintException": _REGION,
}
_DENIED: Final = frozenset({"AccessDenied", "AllAccessDisabled", "Forbidden", "403", "Unauthorized", "401"})
_BY_KIND: Final[dict[str, str]] = {"full": _FULL, "throttled": _BUSY, "unavailable": _AILING}
#: by S3's name of the operation
_RIGHTS: Final = {
    "HeadBucket": "s3:ListBucket",
    "ListObjectsV2": "s3:ListBucket",
    "HeadObject": "s3:GetObject",
    "GetObject": "s3:GetObject",
    "DeleteObject": "s3:DeleteObject",
    "AbortMultipartUpload": "s3:AbortMultipartUpload",
}
#: no call will do better than the one that failed so
_FOR_GOOD: Final = frozenset({
    "NoSuchBucket", "InvalidBucketName", "InvalidAccessKeyId", "XAdminUserNotFound", "SignatureDoesNotMatch",
    "InvalidToken", "ExpiredToken", "TokenRefreshRequired", "RequestTimeTooSkewed", "AuthorizationHeaderMalformed",
    "PermanentRedirect", "301", "IllegalLocationConstraintException",
})  # fmt: skip
#: bad requests that say nothing of the body: its connection was slow, or was cut
_CUT_SHORT: Final = frozenset({"RequestTimeout", "IncompleteBody"})
_MOST_WORDS: Final = 160
OTHER_STORE: Final = "the store does not do as S3 does: use another, or another version of it"


class Wrong(Exception):
    """The store answered, but not as S3 does. `found` says how, `advice` what to do."""

    def __init__(self, found: str, advice: str) -> None:
        super().__init__(found)
        self.found = found
        self.advice = advice


def code_of(error: Exception) -> str:
    """The store's code, "" where it gave no answer."""
    if not isinstance(error, exceptions.ClientError):
        return ""
    response: Any = error.response
    return str(response.get("Error", {}).get("Code", ""))


def denied(error: Exception) -> bool:
    """Whether it is a matter of rights."""
    return code_of(error) in _DENIED


def for_good(error: Exception) -> bool:
    """Whether every other call would fail too."""
    return not isinstance(error, exceptions.ClientError | Wrong) or code_of(error) in _FOR_GOOD


def about_checksum(error: Exception) -> bool:
    """Whether the store refuses the body for its checksum, or for having one: not who sent it, nor for the moment."""
    if not isinstance(error, exceptions.ClientError):
        return False
    response: Any = error.response
    bad = response.get("ResponseMetadata", {}).get("HTTPStatusCode") in (400, 501)
    return bad and code_of(error) not in _DENIED | _FOR_GOOD | _CUT_SHORT


def head_alone(error: Exception) -> Wrong:
    """What it means that the bucket is refused to HEAD, and can be listed."""
    return Wrong(f"HEAD of the bucket: {code_of(error)}", "allow HEAD in the proxy before the store")


def why(error: Exception, *, bucket: str) -> str:
    """What was found and what to do, in one line; the right is that of the call that failed."""
    right = _RIGHTS.get(getattr(error, "operation_name", ""), "s3:PutObject")
    return " -> ".join(explain(error, bucket=bucket, right=right))


def explain(error: Exception, *, bucket: str, right: str) -> tuple[str, str]:
    """What was found, and what to do.

    Args:
        bucket: name of the bucket.
        right: the IAM action that the call needs.
    """
    if isinstance(error, Wrong):
        return error.found, error.advice
    if isinstance(error, exceptions.ClientError):
        return _answered(error, bucket, right)
    if isinstance(error, exceptions.BotoCoreError | OSError | ValueError):
        return _unanswered(error, bucket)
    return one_line(f"an answer that cannot be read ({type(error).__name__}: {error})"), OTHER_STORE


def _answered(error: exceptions.ClientError, bucket: str, right: str) -> tuple[str, str]:
    response: Any = error.response
    code, message = code_of(error), str(response.get("Error", {}).get("Message", ""))
    found = one_line(f"{code}: {message}" if message and message != code else code)
    fault: Fault = fault_of(error)
    if code in _DENIED:
        return found, f"allow {right} on the bucket {bucket}"
    if fault.kind == "lacking":
        return found, f"the store lacks what {right} allows on AWS, which attachd needs: use another store"
    if code.startswith("KMS."):
        return found, "allow kms:GenerateDataKey and kms:Decrypt on the key that encrypts the bucket"
    if code == "SignatureDoesNotMatch" and "region" in message.lower():
        return found, _REGION
    if fault.kind in _BY_KIND:
        return found, _BY_KIND[fault.kind]
    headers = response.get("ResponseMetadata", {}).get("HTTPHeaders", {})
    region = response.get("Error", {}).get("Region") or headers.get("x-amz-bucket-region")
    advice = _BY_CODE.get(code, f"look this code up in the store's documents; attachd needs {right}")
    return found, f"{advice} ({one_line(str(region))})" if advice.startswith(_REGION) and region else advice


def _unanswered(error: Exception, bucket: str) -> tuple[str, str]:
    found = one_line(f"{type(error).__name__}: {error}")
    if isinstance(error, exceptions.NoCredentialsError | exceptions.PartialCredentialsError):
        return found, _CREDENTIALS
    if isinstance(error, exceptions.CredentialRetrievalError | exceptions.TokenRetrievalError):
        return found, f"the AWS chain gives no credentials: {_CREDENTIALS}"
    if isinstance(error, exceptions.ProfileNotFound):
        return found, "correct AWS_PROFILE"
    if isinstance(error, exceptions.SSLError):
        advice = "set AWS_CA_BUNDLE to the store's authority, or correct https:// in ATTACHD_S3_ENDPOINT"
        # a wildcard certificate covers no name with dots in it
        return found, f"{advice}; ATTACHD_S3_ADDRESSING=path for a bucket with dots" if "." in bucket else advice
    cause: Any = getattr(error, "kwargs", {})
    host = urlsplit(str(cause.get("endpoint_url", ""))).hostname or ""
    if host.startswith(f"{bucket}.") and "Resol" in type(cause.get("error")).__name__:
        return found, f"the name {host} does not resolve: set ATTACHD_S3_ADDRESSING=path"
    return found, "correct ATTACHD_S3_ENDPOINT, and let this machine reach it: DNS, firewall, proxy (HTTPS_PROXY)"


def one_line(text: str) -> str:
    """The text without what would move a terminal's cursor, cut to the length of a line or two."""
    plain = " ".join("".join(letter if letter.isprintable() else " " for letter in text).split())
    return plain if len(plain) <= _MOST_WORDS else f"{plain[:_MOST_WORDS]}..."
