"""One trial of each kind of call, on a real bucket.

Everything is below one random name, and `clean` removes all of it, whatever was interrupted.
Nothing goes through the adapter: what is tried is the store, not our retries.
"""

from __future__ import annotations

import contextlib
import functools
import math
import re
import secrets
import statistics
import time
import urllib.error
import urllib.request
from base64 import b64encode
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Final, TypeVar
from urllib.parse import urlsplit

from botocore.exceptions import ClientError

from service import hashing
from service.storage.parts import LEAST_PART_BYTES
from service.storage.s3.advice import (
    OTHER_STORE,
    Wrong,
    about_checksum,
    code_of,
    denied,
    for_good,
    head_alone,
    one_line,
)
from service.storage.s3.calls import SHOWN
from service.storage.s3.client import S3Options

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

T = TypeVar("T")

_DAY_SECONDS: Final = 86400
_SKEW_WARN_SECONDS: Final = 60.0
#: S3 refuses signatures whose time is 15 minutes off; long before, presigned URLs end early
_SKEW_FAIL_SECONDS: Final = 300.0
_URL_SECONDS: Final = 60
_DISPOSITION: Final = 'attachment; filename="doctor.txt"'
_PROXY: Final = "leave ATTACHD_DOWNLOAD_MODE at proxy"
_PUBLIC: Final = (
    "set ATTACHD_S3_PUBLIC_ENDPOINT to the address that clients use, and let what is there keep Host and path; "
    f"or {_PROXY}"
)


@dataclass(frozen=True, slots=True)
class Check:
    """What one check found. `ok` None: it was skipped. `advice`: what to do; where it is ok, that is a warning."""

    name: str
    ok: bool | None
    found: str
    advice: str = ""


class Trials:
    """Each method but `clean` is one trial: what it found, or an exception; each may use what those before it made.

    Args:
        public: for presigned URLs.
        upload_life: seconds that an unfinished upload may live.
    """

    def __init__(self, client: S3Client, public: S3Client, options: S3Options, *, upload_life: float) -> None:
        self._client = client
        self._public = public
        self._options = options
        self._bucket = options.bucket
        self._upload_life = upload_life
        self.base = f"{options.prefix}doctor-{secrets.token_hex(8)}/"
        #: what there may be to remove: keys of objects, keys and ids of multipart uploads
        self._keys: set[str] = set()
        self._multiparts: set[tuple[str, str]] = set()
        #: keys of multipart uploads whose ids were not told (yet)
        self._begun: set[str] = set()
        self._small = b"attachd doctor\n" + secrets.token_bytes(4096)
        #: one whole part and a small last one
        self._large = secrets.token_bytes(LEAST_PART_BYTES) + b"the last part is smaller"
        self._joined = False
        self._seconds: list[float] = []

    def clean(self) -> int:
        """Nothing of the probe is left; how much could not be removed."""
        for key in self._begun:
            with contextlib.suppress(Exception):
                page = self._client.list_multipart_uploads(Bucket=self._bucket, Prefix=key)
                self._multiparts.update((entry["Key"], entry["UploadId"]) for entry in page.get("Uploads", []))
        removals: list[Callable[[], object]] = [
            functools.partial(self._client.abort_multipart_upload, Bucket=self._bucket, Key=key, UploadId=multipart)
            for key, multipart in self._multiparts
        ]
        removals += [functools.partial(self._client.delete_object, Bucket=self._bucket, Key=key) for key in self._keys]
        left = 0
        for tried, remove in enumerate(removals):
            try:
                remove()
            except Exception as error:  # noqa: BLE001 - the others are removed all the same
                if for_good(error):
                    return left + len(removals) - tried
                left += code_of(error) != "NoSuchUpload"
        return left

    # --- the calls ----------------------------------------------------------------------------

    def _timed(self, call: Callable[[], T]) -> T:
        began = time.monotonic()
        result = call()
        self._seconds.append(time.monotonic() - began)
        return result

    def _write(self, name: str, body: bytes, **extra: Any) -> Any:
        key = self.base + name
        # before the call: a lost answer may leave an object as well
        self._keys.add(key)
        try:
            return self._timed(lambda: self._client.put_object(Bucket=self._bucket, Key=key, Body=body, **extra))
        except ClientError as error:
            if denied(error):
                self._keys.discard(key)
            raise

    def _read(self, name: str, part: str | None = None) -> tuple[bytes, Any]:
        extra: Any = {} if part is None else {"Range": part}

        def call() -> tuple[bytes, Any]:
            answer = self._client.get_object(Bucket=self._bucket, Key=self.base + name, **extra)
            with answer["Body"] as body:
                return body.read(), answer

        return self._timed(call)

    def _begin(self, name: str, **extra: Any) -> tuple[str, str]:
        key = self.base + name
        self._begun.add(key)
        made = self._client.create_multipart_upload(Bucket=self._bucket, Key=key, **extra)["UploadId"]
        self._multiparts.add((key, made))
        self._begun.discard(key)
        return key, made

    def _send(self, key: str, multipart: str, number: int, body: bytes, **extra: Any) -> str:
        return self._client.upload_part(
            Bucket=self._bucket, Key=key, UploadId=multipart, PartNumber=number, Body=body, **extra
        )["ETag"]

    def _finish(self, key: str, multipart: str, tags: list[dict[str, str]]) -> int:
        """The parts are one object; its size."""
        parts: Any = [{"PartNumber": number, **tag} for number, tag in enumerate(tags, 1)]
        self._keys.add(key)
        self._client.complete_multipart_upload(
            Bucket=self._bucket, Key=key, UploadId=multipart, MultipartUpload={"Parts": parts}
        )
        self._multiparts.discard((key, multipart))
        return self._client.head_object(Bucket=self._bucket, Key=key)["ContentLength"]

    # --- the checks ---------------------------------------------------------------------------

    def bucket(self) -> str:
        try:
            self._client.head_bucket(Bucket=self._bucket)
        except ClientError as error:
            # the answer to HEAD has no body, so its reason is only a number
            self._client.list_objects_v2(Bucket=self._bucket, Prefix=self.base, MaxKeys=1)
            raise head_alone(error) from error
        return f"{self._bucket} at {self._client.meta.endpoint_url}"

    def clock(self) -> str | Check:
        began = time.time()
        try:
            date = _headers(self._client.head_bucket(Bucket=self._bucket)).get("date")
        except ClientError as error:
            date = _headers(error.response).get("date")
        if date is None:
            return Check("clock", None, "the store does not tell its time")
        skew = parsedate_to_datetime(date).timestamp() - (began + time.time()) / 2
        found = f"the store's is {abs(skew):.0f} s {'ahead of' if skew > 0 else 'behind'} this machine's"
        if abs(skew) > _SKEW_FAIL_SECONDS:
            return Check("clock", False, found, "set both clocks by NTP: the store will refuse requests")
        if abs(skew) > _SKEW_WARN_SECONDS:
            return Check("clock", True, found, "set both clocks by NTP")
        return "less than a minute from the store's"

    def put(self) -> str:
        # as the adapter puts them: `presign` looks at it
        self._write("small", self._small, **SHOWN)
        return f"{len(self._small)} bytes"

    def get(self) -> str:
        body, _ = self._read("small")
        if body != self._small:
            raise Wrong("other bytes came back than were stored", OTHER_STORE)
        return "the same bytes"

    def range(self) -> str:
        body, answer = self._read("small", "bytes=5-9")
        status = answer["ResponseMetadata"]["HTTPStatusCode"]
        if status != 206 or body != self._small[5:10]:
            raise Wrong(f"bytes 5 to 9 were asked for; {status} with {len(body)} bytes came", OTHER_STORE)
        return "206, the bytes asked for"

    def checksum(self) -> str:
        """Whether a CRC-32C that comes with a body is checked (lesson K3). If not, attachd does without."""
        none = "attachd sends none then: TLS or the signature protects what is on its way"
        try:
            self._write("checked", self._small, ChecksumCRC32C=_crc(self._small))
            key, multipart = self._begin("checked", ChecksumAlgorithm="CRC32C")
            tag = self._send(key, multipart, 1, self._small, ChecksumCRC32C=_crc(self._small))
            self._finish(key, multipart, [{"ETag": tag, "ChecksumCRC32C": _crc(self._small)}])
        except ClientError as error:
            if not about_checksum(error):
                raise
            return f"a right CRC-32C is refused ({code_of(error)}); {none}"
        try:
            self._write("wrong", self._small, ChecksumCRC32C=_crc(self._small[1:]))
        except ClientError as error:
            if not about_checksum(error):
                raise
            return f"CRC-32C is checked ({code_of(error)} for a wrong one)"
        return f"a wrong CRC-32C is not noticed; {none}"

    def multipart(self) -> str:
        key, multipart = self._begin("file")
        cut = LEAST_PART_BYTES
        tags = [
            self._send(key, multipart, 1, self._large[:cut]),
            self._send(key, multipart, 2, self._large[cut:]),
        ]
        size = self._finish(key, multipart, [{"ETag": tag} for tag in tags])
        if size != len(self._large):
            raise Wrong(f"two parts of {len(self._large)} bytes made an object of {size}", OTHER_STORE)
        body, _ = self._read("file", f"bytes={cut - 5}-{cut + 4}")
        if body != self._large[cut - 5 : cut + 5]:
            raise Wrong("the joined parts are other bytes than were sent", OTHER_STORE)
        self._joined = True
        return f"two parts are one object of {size} bytes"

    def copy(self) -> str | Check:
        if not self._joined:
            return Check("copy", None, "there is no object to copy from, as multipart failed")
        key, multipart = self._begin("copy")
        copied = self._client.upload_part_copy(
            Bucket=self._bucket,
            Key=key,
            UploadId=multipart,
            PartNumber=1,
            CopySource={"Bucket": self._bucket, "Key": f"{self.base}file"},
            CopySourceRange=f"bytes=10-{LEAST_PART_BYTES + 9}",
        )["CopyPartResult"]
        size = self._finish(key, multipart, [{"ETag": copied["ETag"]}])
        body, _ = self._read("copy", "bytes=0-9")
        if size != LEAST_PART_BYTES or body != self._large[10:20]:
            raise Wrong(f"a range of {LEAST_PART_BYTES} bytes became {size}, or other ones", OTHER_STORE)
        return "a range of an object became a part"

    def abort(self) -> str:
        key, multipart = self._begin("aborted")
        self._send(key, multipart, 1, self._small)
        self._client.abort_multipart_upload(Bucket=self._bucket, Key=key, UploadId=multipart)
        try:
            self._send(key, multipart, 1, self._small)
        except ClientError as error:
            if denied(error):
                raise
            self._multiparts.discard((key, multipart))
            return "an aborted multipart upload is gone"
        raise Wrong("an aborted multipart upload takes another part", OTHER_STORE)

    def list(self) -> str:
        key = f"{self.base}small"
        page = self._timed(lambda: self._client.list_objects_v2(Bucket=self._bucket, Prefix=self.base))
        if {entry["Key"]: entry["Size"] for entry in page.get("Contents", [])}.get(key) != len(self._small):
            raise Wrong("an object that was just stored is not listed with its size", OTHER_STORE)
        return "objects are listed"

    def list_multiparts(self) -> str:
        key, multipart = self._begin("open")
        page = self._client.list_multipart_uploads(Bucket=self._bucket, Prefix=key)
        if (key, multipart) not in {(entry["Key"], entry["UploadId"]) for entry in page.get("Uploads", [])}:
            raise Wrong("an open multipart upload is not listed by its key", OTHER_STORE)
        return "unfinished multipart uploads are listed"

    def presign(self) -> str:
        """As a client would: without credentials, and at the address that it will be given."""
        url = self._public.generate_presigned_url(
            "get_object",
            Params={
                "Bucket": self._bucket,
                "Key": f"{self.base}small",
                "ResponseContentDisposition": _DISPOSITION,
                "ResponseContentType": "text/plain",
            },
            ExpiresIn=_URL_SECONDS,
        )
        host = urlsplit(url).netloc
        try:
            with urllib.request.urlopen(url, timeout=_URL_SECONDS) as answer:  # noqa: S310 - http or https, as set
                body, headers = answer.read(len(self._small) + 1), answer.headers
        except urllib.error.HTTPError as error:
            with error:
                found = re.search(rb"<Code>([A-Za-z.]+)</Code>", error.read(10_000))
            code = f" {found[1].decode()}" if found else ""
            raise Wrong(f"{host} answers {error.code}{code} to a presigned URL", _PUBLIC) from None
        except OSError as error:
            raise Wrong(one_line(f"no answer from {host}: {getattr(error, 'reason', error)}"), _PUBLIC) from None
        if body != self._small:
            raise Wrong(f"{host} sends other bytes for a presigned URL", _PUBLIC)
        shown = headers.get("Content-Disposition", "")
        if not shown.startswith("attachment"):
            raise Wrong("no Content-Disposition comes with a presigned URL: files would open in the browser", _PROXY)
        if shown != _DISPOSITION:
            lost = "response-content-disposition is not honoured: files would be saved without their names and types"
            return f"{host} serves a presigned URL; {lost}; {_PROXY}"
        return f"{host} serves a presigned URL, with the name it is given"

    def delete(self) -> str:
        key = f"{self.base}small"
        self._timed(lambda: self._client.delete_object(Bucket=self._bucket, Key=key))
        try:
            self._client.head_object(Bucket=self._bucket, Key=key)
        except ClientError:
            # 404, or 403 where what is not there may not be known
            return "a deleted object is gone"
        raise Wrong("a deleted object is still there", OTHER_STORE)

    def abort_rule(self) -> str | Check:
        """What the bucket's own rules would take from under an upload, or from a finished file."""
        try:
            rules = self._client.get_bucket_lifecycle_configuration(Bucket=self._bucket).get("Rules", [])
        except ClientError as error:
            if code_of(error) != "NoSuchLifecycleConfiguration":
                raise
            rules = []
        life = math.ceil(self._upload_life / _DAY_SECONDS)
        warnings = []
        for rule in filter(self._concerned, rules):
            days: Any = rule.get("AbortIncompleteMultipartUpload", {}).get("DaysAfterInitiation")
            if days is not None and days < life:
                warnings.append(
                    (
                        f"a rule aborts multipart uploads after {days} d, before ATTACHD_UPLOAD_LIFE is over",
                        f"let it wait {life + 1} d",
                    )
                )
            expiration: Any = rule.get("Expiration", {})
            if "Days" in expiration or "Date" in expiration:
                warnings.append(("a rule deletes objects: files would be lost", "take the rule off this prefix"))
        if warnings:
            found, advice = zip(*warnings, strict=True)
            return Check("abort-rule", True, "; ".join(found), "; ".join(advice))
        return "no rule of the bucket is in the way"

    def _concerned(self, rule: Any) -> bool:
        """Whether the rule is in force for keys below the prefix."""
        chosen = rule.get("Filter", {})
        both = chosen.get("And", {})
        if rule.get("Status") != "Enabled" or "Tag" in chosen or both.get("Tags"):
            return False
        prefix = str(rule.get("Prefix") or chosen.get("Prefix") or both.get("Prefix") or "")
        return self._options.prefix.startswith(prefix) or prefix.startswith(self._options.prefix)

    def latency(self) -> str | Check:
        if not self._seconds:
            return Check("latency", None, "no call succeeded")
        return f"{statistics.median(self._seconds) * 1000:.1f} ms, the median of {len(self._seconds)} small calls"


def _headers(answer: Any) -> Mapping[str, str]:
    headers: Mapping[str, str] = answer["ResponseMetadata"]["HTTPHeaders"]
    return headers


def _crc(body: bytes) -> str:
    crc = hashing.checksum("crc32c")
    crc.update(memoryview(body))
    return b64encode(crc.digest()).decode("ascii")
