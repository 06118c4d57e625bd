"""Every way a request can be refused: stable slug, constant title, status (contract, section 11).

A slug is never renamed or reused: it is the problem type, the log's `reason` and the metric label
at once. The status is the usual one; a dialect may render another (tus: 460).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

URN: Final = "urn:attachd:problem:"


@dataclass(frozen=True, slots=True)
class Kind:
    """A row of the table: what a slug means whoever raises it."""

    slug: str
    status: int
    title: str
    #: what a client does next: the same request may succeed later
    retry: bool = False


_KINDS: Final = (
    Kind("bad-link", 401, "The link is missing or not valid"),
    Kind("link-expired", 401, "The link has expired"),
    Kind("link-used", 403, "The link has been used"),
    Kind("wrong-scope", 403, "The link does not allow this"),
    Kind("origin-refused", 403, "Requests from this origin are not allowed"),
    Kind("final-upload", 403, "A final upload takes no bytes of its own"),
    Kind("too-large", 413, "Too many bytes"),
    Kind("type-refused", 403, "The link does not allow this media type"),
    Kind("infected", 403, "A virus was found in the file"),
    Kind("scan-failed", 403, "The file could not be looked through for viruses"),
    Kind("hook-refused", 403, "The backend refused the upload"),
    Kind("quota-exceeded", 413, "The owner's quota is used up"),
    Kind("not-found", 404, "No such resource"),
    Kind("method-not-allowed", 405, "This address does not serve that method"),
    Kind("gone", 410, "The resource is gone"),
    Kind("offset-mismatch", 409, "Upload-Offset is not the current offset", retry=True),
    Kind("length-mismatch", 400, "The length differs from the one declared"),
    Kind("bad-header", 400, "A header is missing or malformed"),
    Kind("bad-request", 400, "The request is not what this address takes"),
    Kind("key-reused", 422, "The Idempotency-Key belongs to another request"),
    Kind("cannot-sign", 403, "No key here can sign links"),
    Kind("bad-metadata", 400, "Upload-Metadata is malformed"),
    Kind("wrong-content-type", 415, "The Content-Type is not the one expected"),
    Kind("checksum-mismatch", 460, "The body does not match its checksum"),
    Kind("checksum-unsupported", 400, "The checksum algorithm is not supported"),
    Kind("version-unsupported", 412, "The protocol version is missing or not supported"),
    Kind("precondition-failed", 412, "A precondition does not hold"),
    Kind("range-not-satisfiable", 416, "The range is not satisfiable"),
    Kind("expectation-failed", 417, "The expectation cannot be met"),
    Kind("locked", 423, "Another request holds the upload", retry=True),
    Kind("not-ready", 503, "The file is not ready yet", retry=True),
    Kind("overloaded", 503, "The service is at its limit", retry=True),
    Kind("storage-full", 507, "The storage is full", retry=True),
    Kind("storage-unavailable", 503, "The storage does not answer", retry=True),
    Kind("hook-unavailable", 503, "The backend does not say whether it allows the upload", retry=True),
    Kind("draining", 503, "The service is stopping", retry=True),
    Kind("timeout", 503, "The body came too slowly", retry=True),
    Kind("internal", 500, "Something went wrong here", retry=True),
)
KINDS: Final = {kind.slug: kind for kind in _KINDS}


@dataclass(frozen=True, slots=True)
class Problem:
    """One refusal, ready to be rendered by a dialect.

    `detail` tells the client what to do next, without paths, keys or driver text.
    `close` says that the request body was not read, so the connection ends with the answer.
    """

    slug: str
    detail: str
    headers: tuple[tuple[str, str], ...] = ()
    status: int = 0
    close: bool = False
    #: members added to the JSON body
    members: dict[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        kind = KINDS[self.slug]
        if self.status == 0:
            object.__setattr__(self, "status", kind.status)

    @property
    def kind(self) -> Kind:
        return KINDS[self.slug]


class Refusal(Exception):
    """The request is refused; carries the problem to answer with."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(f"{problem.slug}: {problem.detail}")
        self.problem = problem


def refuse(
    slug: str,
    detail: str,
    *,
    headers: Iterable[tuple[str, str]] = (),
    status: int = 0,
    retry_after: int | None = None,
    close: bool = False,
    **members: object,
) -> Refusal:
    """A Refusal to raise. `retry_after` is in seconds."""
    extra = tuple(headers)
    if retry_after is not None:
        extra += (("Retry-After", str(retry_after)),)
    return Refusal(Problem(slug, detail, extra, status, close, members))
