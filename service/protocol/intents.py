"""The vocabulary between the dialects and the use-cases: intents in, outcomes out.

Intents are what a client wants, parsed and free of syntax; outcomes are what came of it. Neither
knows a header name or a status.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from service.model import UNLIMITED, ConcatKind, Protocol, Quota, Upload, UploadId
from service.protocol.problems import Problem


@dataclass(frozen=True, slots=True)
class ChecksumClaim:
    """A client's claim about the body of one request, not about a block or the file.

    `digest` is raw bytes, of the algorithm's length.
    """

    algorithm: str
    digest: bytes


@dataclass(frozen=True, slots=True)
class Framing:
    """What the request says about its body before it comes."""

    #: Content-Length in bytes; None for a chunked body
    length: int | None
    chunked: bool = False
    #: trailer fields announced by `Trailer`, lower case
    trailers: frozenset[str] = frozenset()

    @property
    def empty(self) -> bool:
        return not self.chunked and not self.length


@dataclass(frozen=True, slots=True)
class Create:
    """Make an upload with the link; the body, if any, is its first bytes."""

    protocol: Protocol
    framing: Framing
    length: int | None = None
    deferred: bool = False
    #: raw `Upload-Metadata`, and what of it (or of other fields) names the file
    metadata: str | None = None
    filename: str | None = None
    media_type: str | None = None
    concat: str | None = None
    concat_kind: ConcatKind = ConcatKind.NONE
    partials: tuple[UploadId, ...] = ()
    checksum: ChecksumClaim | None = None
    checksum_trailer: bool = False


@dataclass(frozen=True, slots=True)
class Append:
    """Put the body at the offset."""

    upload_id: UploadId
    protocol: Protocol
    framing: Framing
    offset: int
    #: `Upload-Length`, for an upload whose length was deferred
    length: int | None = None
    checksum: ChecksumClaim | None = None
    checksum_trailer: bool = False


class Ending(StrEnum):
    """How a request body ended. Everything but WHOLE keeps what arrived (contract, section 5)."""

    WHOLE = "whole"
    #: FIN, RST or a broken encoding
    CUT = "cut"
    #: no byte for too long, or too few of them
    TIMEOUT = "timeout"
    #: a newer request took the upload over
    TAKEN_OVER = "taken_over"
    #: the service is stopping
    DRAINED = "drained"


@dataclass(frozen=True, slots=True)
class Created:
    """The upload exists. `replayed`: it did before, and the body was not read (T-05C)."""

    upload: Upload
    replayed: bool = False
    #: the body ran into trouble after the upload was made; the reply still names its address
    problem: Problem | None = None


@dataclass(frozen=True, slots=True)
class Appended:
    """What is committed now. `problem` when the body did not end as it should."""

    upload: Upload
    problem: Problem | None = None


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer as plain values; the web layer turns it into a response."""

    status: int
    headers: tuple[tuple[str, str], ...] = ()
    json: Mapping[str, object] | None = None
    reason: str | None = None
    #: the connection ends with this answer: the request's body was not read to its end
    close: bool = False


@dataclass(frozen=True, slots=True)
class Policy:
    """What the operator allows, as far as decisions need it. Bytes and seconds."""

    max_size: int | None
    block_size: int
    strong_hash: bool
    idle_seconds: float
    life_seconds: float
    tombstone_seconds: float
    max_partials: int = 64
    #: of each owner
    quota: Quota = UNLIMITED


@dataclass(frozen=True, slots=True)
class Discovery:
    """What OPTIONS announces, built from what is wired."""

    extensions: tuple[str, ...]
    checksum_algorithms: tuple[str, ...]
    max_size: int | None
    extra: Mapping[str, str] = field(default_factory=dict)
