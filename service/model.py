"""The things attachd knows, as frozen values.

Plain numbers are bytes; instants end in `_at` and are seconds since the epoch, UTC; ranges are
half-open `[start, end)`. Nothing here does I/O, reads a clock or draws a random number.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any, Final, NewType

UploadId = NewType("UploadId", str)
FileId = NewType("FileId", str)

#: 26 lower-case base32 characters carry 130 random bits.
UPLOAD_ID: Final = re.compile(r"u_[a-z2-7]{26}")
FILE_ID: Final = re.compile(r"f_[a-z2-7]{26}")


def parse_upload_id(text: str) -> UploadId | None:
    """The id if text is one, else None. The only way from client text to an UploadId."""
    return UploadId(text) if UPLOAD_ID.fullmatch(text) else None


def parse_file_id(text: str) -> FileId | None:
    """The id if text is one, else None. The only way from client text to a FileId."""
    return FileId(text) if FILE_ID.fullmatch(text) else None


class Protocol(StrEnum):
    """Which dialect created an upload; a metric label."""

    TUS = "tus"
    IETF = "ietf"
    PUT = "put"


class State(StrEnum):
    """Where an upload stands (contract, section 5).

    `receiving -> finishing -> ready`, or one of the three ends without a file.
    """

    RECEIVING = "receiving"
    FINISHING = "finishing"
    READY = "ready"
    FAILED = "failed"
    EXPIRED = "expired"
    TERMINATED = "terminated"

    @property
    def live(self) -> bool:
        """Whether clients may still ask for the offset and get a number."""
        return self in (State.RECEIVING, State.FINISHING, State.READY)


class ConcatKind(StrEnum):
    """tus 1.0.0, Concatenation: the part an upload plays."""

    NONE = "none"
    PARTIAL = "partial"
    FINAL = "final"


@dataclass(frozen=True, slots=True)
class Part:
    """A piece of an upload that storage holds: one entry of the ledger.

    On disk a part is a segment file, usually one for the whole upload; on S3 it is a part of a
    multipart upload or a tail object. `key` and `etag` mean something to the adapter only.
    """

    number: int
    start: int
    end: int
    key: str
    etag: str = ""
    digest: bytes = b""
    epoch: int = 0


@dataclass(frozen=True, slots=True)
class Block:
    """The digests of one finished hashing block, counted from 0."""

    number: int
    xxh128: bytes
    sha256: bytes | None = None


@dataclass(frozen=True, slots=True)
class Manifest:
    """The digests of a whole file (contract, section 6)."""

    size: int
    block_size: int
    root_algorithm: str
    root: bytes
    xxh128: tuple[bytes, ...]
    sha256: tuple[bytes, ...] | None = None
    sha256_root: bytes | None = None


@dataclass(frozen=True, slots=True)
class LinkTerms:
    """What a verified upload link allows; kept with the upload it made."""

    issuer: str
    jti: str
    uses: int = 1
    owner: str | None = None
    max_size: int | None = None
    size: int | None = None
    types: tuple[str, ...] = ()
    file_id: FileId | None = None
    sha256: str | None = None
    hold_seconds: int | None = None
    ttl_seconds: int | None = None
    ref: str | None = None
    meta: dict[str, Any] | None = None
    expires_at: int = 0

    @property
    def single_use(self) -> bool:
        """Whether a repeated creation is a replay of the first (T-05C)."""
        return self.uses == 1


@dataclass(frozen=True, slots=True)
class Upload:
    """A resource being filled: one row of the metadata store.

    `offset` counts committed bytes. It never falls, but for a `suspect` of which bytes are lost:
    one that a crash of the machine found unfinished and that has not been checked since.
    `length` is None while deferred.
    `metadata` and `concat` are the raw header values, echoed as they came.
    `problem` is the slug (and `problem_detail` the words) that ended a failed upload.
    """

    id: UploadId
    protocol: Protocol
    terms: LinkTerms
    file_id: FileId
    block_size: int
    strong_hash: bool
    created_at: float
    expires_at: float
    state: State = State.RECEIVING
    offset: int = 0
    length: int | None = None
    #: created with `Upload-Defer-Length`; stays true when the length becomes known (T-05D)
    deferred: bool = False
    metadata: str | None = None
    filename: str | None = None
    media_type: str | None = None
    concat: str | None = None
    concat_kind: ConcatKind = ConcatKind.NONE
    #: of a final: the partials in the order they are joined
    partials: tuple[UploadId, ...] = ()
    epoch: int = 0
    suspect: bool = False
    updated_at: float = 0.0
    problem: str | None = None
    problem_detail: str | None = None
    #: bytes that count against its owner's quota until it is a file or over; 0 without an owner
    reserved: int = 0
    #: whether a request held it when this was read
    leased: bool = field(default=False, compare=False)

    @property
    def complete(self) -> bool:
        """Whether everything promised is stored whole; a recorded fact, never inferred."""
        return self.state is State.READY

    @property
    def pending_final(self) -> bool:
        """Whether this is a final upload whose bytes are not joined yet (T-0C8)."""
        return self.concat_kind is ConcatKind.FINAL and self.state in (State.RECEIVING, State.FINISHING)

    def with_(self, **changes: Any) -> Upload:
        """A copy with some fields replaced."""
        return replace(self, **changes)


@dataclass(frozen=True, slots=True)
class LinkUse:
    """What one upload link (issuer, jti) has made so far. `version` is for compare-and-set.

    `uploads` names what counted as a use, oldest first; partials (tus concatenation) are counted
    and summed apart, because together they make one use (T-05F).
    """

    issuer: str
    jti: str
    expires_at: int
    uploads: tuple[UploadId, ...] = ()
    #: uses that became free again are gone from `uploads`; used counts those that did not
    partials: int = 0
    partial_bytes: int = 0
    version: int = 0


class Verdict(StrEnum):
    """What a virus scanner said of a file. One that is `infected` is held, and given to nobody."""

    CLEAN = "clean"
    INFECTED = "infected"
    #: larger than what the scanner takes
    SKIPPED_SIZE = "skipped_size"
    #: there was no scanner, or none that answered
    UNSCANNED = "unscanned"


@dataclass(frozen=True, slots=True)
class Quota:
    """What one owner may have: bytes of files and of uploads to come, and unfinished uploads."""

    #: the largest number that databases hold: no limit
    most_bytes: int = 2**63 - 1
    most_pending: int = 2**63 - 1


UNLIMITED: Final = Quota()


@dataclass(frozen=True, slots=True)
class File:
    """What an upload becomes when ready. Immutable bytes.

    `ref` is the reference that its link gave it. `expires_at` is when it ends as things are; once
    it has been claimed that is `lives_until`, which has no part of its link's `hold`.
    """

    id: FileId
    upload_id: UploadId
    key: str
    manifest: Manifest
    created_at: float
    issuer: str = ""
    owner: str | None = None
    sha256: str | None = None
    media_type: str | None = None
    sniffed_type: str | None = None
    filename: str | None = None
    ref: str | None = None
    expires_at: float | None = None
    lives_until: float | None = None
    deleted_at: float | None = None
    verdict: Verdict = Verdict.UNSCANNED


@dataclass(frozen=True, slots=True)
class Event:
    """An outbox row (contract, section 9): written in the transaction of the change it tells of."""

    id: str
    type: str
    subject: str
    created_at: float
    data: dict[str, Any] = field(default_factory=dict)
    #: whose it is to know of; no part of what is told
    issuer: str = ""
