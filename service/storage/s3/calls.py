"""Every call to the store, one method each: in a thread, counted, and tried again where that helps.

A call that failed for a passing reason is made again after a while that doubles, with full
jitter, and never before the store said (`Retry-After`); the waiting holds no thread and ends at
once when the task is cancelled. Every call can be made twice: those that make something new leave at worst an
orphan that is found by its key.
"""

from __future__ import annotations

import asyncio
import copy
import functools
import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Final, TypeVar, cast

import boto3
from botocore.exceptions import BotoCoreError, ClientError
from urllib3.exceptions import HTTPError

from service.clock import Clock
from service.storage.base import Fence, StorageShort
from service.storage.s3 import naming
from service.storage.s3.advice import head_alone
from service.storage.s3.chunks import Chunks, crc32c_of
from service.storage.s3.client import (
    Fault,
    S3Options,
    StoreLacks,
    StoreRefused,
    answer_in,
    fault_of,
    make_client,
    translated,
)
from service.storage.threads import Threads

if TYPE_CHECKING:
    from mypy_boto3_s3 import S3Client

T = TypeVar("T")

#: told of every attempt: S3's name of the operation, how it ended, seconds
Watch = Callable[[str, str, float], None]

_ATTEMPTS: Final = 6
#: a call is not tried again after so long, so that clients hear of an outage while they still listen
_PATIENCE_SECONDS: Final = 45.0
_FIRST_WAIT_SECONDS: Final = 0.2
_LONGEST_WAIT_SECONDS: Final = 10.0
#: what a store says of an object that is fetched without attachd's word on it (lesson G3)
SHOWN: Final[Any] = {"ContentType": "application/octet-stream", "ContentDisposition": "attachment"}
_FAILURES: Final = (BotoCoreError, ClientError, HTTPError, OSError)
_OUTCOMES: Final[Mapping[str, str]] = {
    "missing": "short",
    "full": "full",
    "throttled": "throttled",
    "unavailable": "unavailable",
    "refused": "error",
    "lacking": "error",
}


@dataclass(frozen=True, slots=True)
class Listed:
    """An object or an unfinished multipart upload (`multipart_id`), with its key below the prefix."""

    key: str
    changed_at: float
    size: int = 0
    multipart_id: str | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """Some of a listing; `more` goes on after it; `at` is the store's clock."""

    found: tuple[Listed, ...]
    more: Mapping[str, str] | None
    at: float


@dataclass(frozen=True, slots=True)
class _Clients:
    """Of one session; `sender` is for calls with a body, `assembler` for those that make the store put an object
    together, `public` for URLs that clients will use.
    """

    session: boto3.session.Session
    any: S3Client
    sender: S3Client
    assembler: S3Client
    public: S3Client


class Calls:
    """The store's operations below one prefix of one bucket."""

    def __init__(self, options: S3Options, clock: Clock, watch: Watch, *, threads: int) -> None:
        self._options = options
        self._bucket: Final = options.bucket
        self._clock = clock
        self._watch = watch
        self._senders = Threads(threads, "attachd-s3-send")
        self._readers = Threads(threads, "attachd-s3-read")
        self._others = Threads(threads, "attachd-s3")
        #: of a call that asks for no other number
        self.attempts = _ATTEMPTS
        self._made: _Clients | None = None
        #: whether the store checks the CRC-32C that comes with a body
        self.checksums = False

    def connect(self, *, checksums: bool) -> None:
        """Makes the clients. Blocks: reads the AWS configuration. Raises BotoCoreError, ValueError: it is wrong."""
        self.checksums = checksums
        # what TLS or a checksum protects on its way need not be hashed for the signature too
        secure = (self._options.endpoint or "https:").startswith("https:")
        session = self._made.session if self._made else boto3.session.Session()
        make = functools.partial(make_client, self._options, session=session)
        sender = make(sign_bodies=not (secure or checksums))
        self._made = _Clients(session, make(), sender, make(patient=True), make(public=True))

    def once(self) -> Calls:
        """The same calls as they are now, tried once where nothing else is asked for."""
        view = copy.copy(self)
        view.attempts = 1
        return view

    def close(self) -> None:
        """No more calls; the running ones end by themselves."""
        for threads in (self._senders, self._readers, self._others):
            threads.close()
        if self._made is not None:
            for client in (self._made.any, self._made.sender, self._made.assembler, self._made.public):
                client.close()

    # --- one call -----------------------------------------------------------------------------

    async def run(
        self,
        operation: str,
        call: Callable[[], T],
        *,
        threads: Threads | None = None,
        attempts: int | None = None,
        fence: Fence | None = None,
    ) -> T:
        """What the call returns. Raises StorageError, and what the fence does."""
        attempt, first = 0, self._clock.monotonic()
        while True:
            attempt += 1
            if fence is not None:
                await fence()
            began = self._clock.monotonic()
            outcome = "cancelled"
            try:
                result = await (threads or self._others).run(call)
                outcome = "ok"
            except _FAILURES as error:
                fault = fault_of(error)
                outcome = _OUTCOMES[fault.kind]
                wait = _wait_seconds(attempt, fault)
                # whoever is to come back after that is better told now
                late = self._clock.monotonic() - first + (fault.after_seconds or 0) > _PATIENCE_SECONDS
                if not fault.retry or attempt == (attempts or self.attempts) or late:
                    # no traceback may show what the store or botocore say: it names endpoint and key (lesson A5)
                    raise translated(error, operation) from None
            else:
                return result
            finally:
                self._watch(operation, outcome, self._clock.monotonic() - began)
            await asyncio.sleep(wait)

    def _key(self, key: str) -> str:
        return self._options.prefix + key

    @property
    def _clients(self) -> _Clients:
        if self._made is None:
            raise RuntimeError("the storage has not been opened")
        return self._made

    @property
    def _any(self) -> S3Client:
        return self._clients.any

    # --- the bucket ---------------------------------------------------------------------------

    async def head_bucket(self) -> None:
        """Returns if the bucket can be reached; tried once. A refusal is in the store's own words."""
        try:
            await self.run("head_bucket", lambda: self._any.head_bucket(Bucket=self._bucket), attempts=1)
        except (StorageShort, StoreRefused) as error:
            refused = error
        else:
            return
        # the answer to HEAD has no body, so its reason is only a number
        await self.run(
            "list_objects",
            lambda: self._any.list_objects_v2(Bucket=self._bucket, Prefix=self._options.prefix, MaxKeys=1),
            attempts=1,
        )
        raise StoreRefused(str(refused)) from head_alone(answer_in(refused))

    # --- objects ------------------------------------------------------------------------------

    async def put(
        self, key: str, data: bytes | Chunks, *, checksum: str | None = None, attempts: int | None = None
    ) -> str:
        """The object is there, whole; its ETag.

        Args:
            checksum: CRC-32C in base64; None: computed, if the store checks it.
        """

        def call() -> str:
            extra = {"ChecksumCRC32C": checksum} if checksum else self._checksum(data, checked=self.checksums)
            return self._clients.sender.put_object(
                Bucket=self._bucket, Key=self._key(key), Body=_body(data), **SHOWN, **cast(Any, extra)
            )["ETag"]

        return await self.run("put_object", call, threads=self._senders, attempts=attempts)

    @staticmethod
    def _checksum(data: bytes | Chunks, *, checked: bool) -> dict[str, Any]:
        return {"ChecksumCRC32C": crc32c_of(data)} if checked else {}

    async def get(self, key: str, start: int, end: int) -> bytes:
        """Bytes [start, end) of the object, end > start. Raises StorageShort: they are not there."""

        def call() -> bytes:
            found = self._any.get_object(Bucket=self._bucket, Key=self._key(key), Range=f"bytes={start}-{end - 1}")
            with found["Body"] as body:
                return body.read()

        data = await self.run("get_object", call, threads=self._readers)
        if len(data) != end - start:
            raise StorageShort(f"get_object: {len(data)} bytes of {end - start}")
        return data

    async def whole(self, key: str) -> bytes | None:
        """All of a small object; None: there is none, in the store's own words."""

        def call() -> bytes:
            found = self._any.get_object(Bucket=self._bucket, Key=self._key(key))
            with found["Body"] as body:
                return body.read()

        try:
            return await self.run("get_object", call, threads=self._readers)
        except StorageShort:
            return None

    async def size(self, key: str, *, sure: bool = True) -> int | None:
        """The object's size; None: there is none.

        Args:
            sure: None is the store's own word, for a call more; else it may be a router's before it.
        """
        try:
            found = await self.run(
                "head_object", lambda: self._any.head_object(Bucket=self._bucket, Key=self._key(key))
            )
        except StorageShort:
            return await self._size_in_words(key) if sure else None
        return found["ContentLength"]

    async def _size_in_words(self, key: str) -> int | None:
        """As `size`. A 404 to HEAD may be anybody's; what is lost for good must be so in the store's own words."""

        def call() -> int:
            found = self._any.get_object(Bucket=self._bucket, Key=self._key(key))
            found["Body"].close()
            return found["ContentLength"]

        try:
            return await self.run("get_object", call, threads=self._readers)
        except StorageShort:
            return None

    async def delete(self, key: str) -> None:
        """The object is not there."""
        await self.run("delete_object", lambda: self._any.delete_object(Bucket=self._bucket, Key=self._key(key)))

    # --- multipart uploads --------------------------------------------------------------------

    async def create_multipart(self, key: str, *, checked: bool) -> str:
        """The id of a new multipart upload, all of whose parts come with a checksum, or none."""
        extra: Any = {"ChecksumAlgorithm": "CRC32C"} if checked else {}
        made = await self.run(
            "create_multipart_upload",
            lambda: self._any.create_multipart_upload(Bucket=self._bucket, Key=self._key(key), **SHOWN, **extra),
        )
        return made["UploadId"]

    async def upload_part(
        self,
        key: str,
        multipart_id: str,
        number: int,
        data: bytes | Chunks,
        *,
        checked: bool,
        fence: Fence | None = None,
    ) -> str:
        """The store holds the part; what `complete_multipart` needs to name it.

        Args:
            fence: asked before each attempt.
        """

        def call() -> str:
            extra = self._checksum(data, checked=checked)
            made = self._clients.sender.upload_part(
                Bucket=self._bucket,
                Key=self._key(key),
                UploadId=multipart_id,
                PartNumber=number,
                Body=_body(data),
                **extra,
            )
            return naming.part_tag(made["ETag"], extra.get("ChecksumCRC32C"))

        return await self.run("upload_part", call, threads=self._senders, fence=fence)

    async def copy_part(self, key: str, multipart_id: str, number: int, source: str, start: int, end: int) -> str:
        """As `upload_part`, with bytes [start, end) of another object, copied by the store."""

        def call() -> str:
            made = self._clients.assembler.upload_part_copy(
                Bucket=self._bucket,
                Key=self._key(key),
                UploadId=multipart_id,
                PartNumber=number,
                CopySource={"Bucket": self._bucket, "Key": self._key(source)},
                CopySourceRange=f"bytes={start}-{end - 1}",
            )["CopyPartResult"]
            return made["ETag"]

        return await self.run("upload_part_copy", call)

    async def complete_multipart(self, key: str, multipart_id: str, parts: Mapping[int, str], *, attempts: int) -> None:
        """The parts, by number, are one object.

        Raises:
            StorageShort: the multipart upload or a part as named is not there; it may be complete already.
        """
        listed: Any = [{"PartNumber": number, **naming.named_part(tag)} for number, tag in sorted(parts.items())]
        await self.run(
            "complete_multipart_upload",
            lambda: self._clients.assembler.complete_multipart_upload(
                Bucket=self._bucket, Key=self._key(key), UploadId=multipart_id, MultipartUpload={"Parts": listed}
            ),
            attempts=attempts,
        )

    async def abort_multipart(self, key: str, multipart_id: str, *, attempts: int | None = None) -> None:
        """The multipart upload and its parts are gone."""
        try:
            await self.run(
                "abort_multipart_upload",
                lambda: self._any.abort_multipart_upload(
                    Bucket=self._bucket, Key=self._key(key), UploadId=multipart_id
                ),
                attempts=attempts,
            )
        except StorageShort:
            return

    # --- listings -----------------------------------------------------------------------------

    async def objects(self, start: str, more: Mapping[str, str] | None = None) -> Page:
        """Objects whose keys begin with start, in order of keys."""
        arguments: Any = {"Bucket": self._bucket, "Prefix": self._key(start), **(more or {})}
        page = await self.run("list_objects", lambda: self._any.list_objects_v2(**arguments), threads=self._readers)
        found = [
            Listed(entry["Key"].removeprefix(self._options.prefix), entry["LastModified"].timestamp(), entry["Size"])
            for entry in page.get("Contents", [])
        ]
        token = page.get("NextContinuationToken") if page.get("IsTruncated") else None
        return Page(tuple(found), {"ContinuationToken": token} if token else None, self._store_clock(page))

    async def multiparts(self, start: str, more: Mapping[str, str] | None = None) -> Page:
        """Unfinished multipart uploads whose keys begin with start.

        Some stores list only those of a whole key. Those that list none leave them to a rule of the bucket.
        """
        arguments: Any = {"Bucket": self._bucket, "Prefix": self._key(start), **(more or {})}
        try:
            page = await self.run(
                "list_multipart_uploads", lambda: self._any.list_multipart_uploads(**arguments), threads=self._readers
            )
        except StoreLacks:
            return Page((), None, self._clock.now())
        found = [
            Listed(
                entry["Key"].removeprefix(self._options.prefix),
                entry["Initiated"].timestamp() if isinstance(entry.get("Initiated"), datetime) else 0.0,
                multipart_id=entry["UploadId"],
            )
            for entry in page.get("Uploads", [])
        ]
        next_page: dict[str, str] | None = None
        if page.get("IsTruncated") and page.get("NextKeyMarker"):
            next_page = {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page.get("NextUploadIdMarker", "")}
        return Page(tuple(found), next_page, self._store_clock(page))

    async def parts(self, key: str, multipart_id: str) -> dict[int, tuple[str, int]]:
        """ETag and size of each part of a multipart upload, by number. Raises StorageShort: there is no such one."""
        found: dict[int, tuple[str, int]] = {}
        more: dict[str, Any] = {}
        while True:
            arguments: Any = {"Bucket": self._bucket, "Key": self._key(key), "UploadId": multipart_id, **more}
            ask = functools.partial(self._any.list_parts, **arguments)
            page = await self.run("list_parts", ask, threads=self._readers)
            found |= {entry["PartNumber"]: (entry["ETag"], entry["Size"]) for entry in page.get("Parts", [])}
            last = max(found, default=0)
            if not page.get("IsTruncated") or more.get("PartNumberMarker") == last:
                return found
            more = {"PartNumberMarker": last}

    def _store_clock(self, page: Mapping[str, Any]) -> float:
        date = page["ResponseMetadata"]["HTTPHeaders"].get("date")
        return parsedate_to_datetime(date).timestamp() if date else self._clock.now()

    # --- presigned ----------------------------------------------------------------------------

    async def signed_url(self, key: str, *, seconds: int, content_type: str, disposition: str) -> str:
        """A URL of the store from which the object can be fetched for so long."""
        parameters = {
            "Bucket": self._bucket,
            "Key": self._key(key),
            "ResponseContentType": content_type,
            "ResponseContentDisposition": disposition,
        }
        public = self._clients.public

        def call() -> str:
            return str(public.generate_presigned_url("get_object", Params=parameters, ExpiresIn=seconds))

        # in a thread: credentials may have to be fetched anew
        try:
            return await self._others.run(call)
        except _FAILURES as error:
            raise translated(error, "presign") from None


def _body(data: bytes | Chunks) -> Any:
    """The data as botocore sends it, from its start."""
    if isinstance(data, Chunks):
        data.seek(0)
    return data


def _wait_seconds(attempt: int, fault: Fault) -> float:
    longest = min(_LONGEST_WAIT_SECONDS, _FIRST_WAIT_SECONDS * 2**attempt)
    # full jitter, so that those that failed together do not come back together
    jittered = random.uniform(0, longest)  # noqa: S311 - no secret
    return max(jittered, fault.after_seconds or 0.0)
