"""The ControlStore port: what the control API keeps beside uploads and files, in the same database.

The promises of `base` hold here too: one short transaction each, a Conflict where what the caller
expected no longer holds, instants as arguments. What an issuer may not see is not there for it:
every method that looks something up for one is given the issuer.

What an owner has is counted in the transactions that change it, so a quota holds however many
creations race: `create_upload` reserves, and the end of an upload or a file gives back.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal, Protocol, TypeAlias

from service.model import Event, File, FileId, State, Upload, UploadId

#: references of a file that are listed; there may be more
MOST_REFS: Final = 1000

#: what a revocation names
Named: TypeAlias = Literal["jti", "owner", "file"]


@dataclass(frozen=True, slots=True)
class Usage:
    """What one owner has."""

    files: int = 0
    #: of its files
    file_bytes: int = 0
    #: unfinished uploads
    pending: int = 0
    #: bytes that uploads may still become, or are without being a file
    reserved: int = 0


@dataclass(frozen=True, slots=True)
class Refs:
    """The references of a file: so many, and the first of them in the order of their text."""

    count: int = 0
    listed: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Job:
    """The erasure of an owner: of what it had at an instant. Done once `done_at` is set."""

    id: str
    issuer: str
    owner: str
    asked_at: float
    done_at: float | None = None


@dataclass(frozen=True, slots=True)
class Revocation:
    """Tokens of an issuer that are good for nothing: of a jti, or of an owner or file issued until then."""

    issuer: str
    named: Named
    value: str
    #: tokens with `iat` up to this instant; those of a jti all are
    issued_before: float
    #: no such token can be alive after that
    until: float


@dataclass(frozen=True, slots=True)
class Repeatable:
    """A request with an `Idempotency-Key`, and what was decided for it. To carry that out twice is to do so once."""

    issuer: str
    key: str
    #: of what was asked
    digest: str
    created_at: float
    plan: Mapping[str, Any] = field(default_factory=dict)


class ControlStore(Protocol):
    """See the module for the contract."""

    # references
    async def refs(self, file_ids: Collection[FileId]) -> dict[FileId, Refs]:
        """Of each of the files."""
        ...

    async def claim_file(self, file_id: FileId, ref: str, *, now: float) -> File:
        """The file has the reference, and its `hold` ends it no more. A second time changes nothing.

        Raises:
            Conflict: there is no such file, or it is deleted or past its time.
        """
        ...

    async def release_file(self, file_id: FileId, ref: str, *, now: float, events: Sequence[Event] = ()) -> File:
        """The file has the reference no more; if that was its last one it is deleted, and only then the events exist.

        A reference that it has not changes nothing. Survives a crash of the machine, as `delete_file` does.

        Raises:
            Conflict: there is no such file.
        """
        ...

    # pages, by id unless said otherwise; `after` is the last of the page before
    async def files_of(
        self, issuer: str, *, owner: str | None = None, ref: str | None = None, after: FileId | None, limit: int
    ) -> tuple[File, ...]:
        """Files not deleted."""
        ...

    async def uploads_in(
        self, issuer: str, state: State, *, after: tuple[float, UploadId] | None, limit: int
    ) -> tuple[Upload, ...]:
        """By the instant that `instant_of` has of each: one that moves on meanwhile may come twice."""
        ...

    async def open_uploads_of(
        self, issuer: str, owner: str, *, after: UploadId | None, limit: int
    ) -> tuple[Upload, ...]:
        """Those in `receiving` and `finishing`, and ready partials."""
        ...

    async def ended_of(
        self, issuer: str, owner: str, *, since: float, after: UploadId | None, limit: int
    ) -> tuple[Upload, ...]:
        """Those that were terminated at the instant or later."""
        ...

    async def deleted_of(
        self, issuer: str, owner: str, *, since: float, after: FileId | None, limit: int
    ) -> tuple[File, ...]:
        """Files that were deleted at the instant or later."""
        ...

    # owners
    async def usage(self, issuer: str, owner: str) -> Usage: ...

    async def miscounted(self) -> dict[tuple[str, str], tuple[Usage, Usage]]:
        """Owners (issuer, owner) whose counters are not what their rows come to: counted, and right. None, ever."""
        ...

    async def recount(self) -> int:
        """All counters are what the rows come to; how many were not."""
        ...

    # erasure
    async def begin_job(self, job: Job, revocation: Revocation) -> Job:
        """The job and the revocation exist; an unfinished job of the owner becomes this one but for its id."""
        ...

    async def job(self, issuer: str, job_id: str) -> Job | None: ...

    async def open_jobs(self, *, limit: int) -> tuple[Job, ...]:
        """Those that are not done, oldest first."""
        ...

    async def end_job(self, job: Job, *, now: float) -> None:
        """The job is done, unless it was asked for anew; and an owner that has nothing is forgotten."""
        ...

    # revocations
    async def revoke(self, revocation: Revocation) -> None: ...

    async def revocations(self, *, after: int) -> tuple[tuple[int, Revocation], ...]:
        """Those with a number above `after`, by number; it rises with each."""
        ...

    # events
    async def newest_event(self) -> int:
        """The highest sequence number of an event; 0: there is none."""
        ...

    # repeated requests
    async def remember(self, asked: Repeatable, *, forget_before: float) -> Repeatable:
        """The request as it was first asked with that key: this one, unless there is one made after `forget_before`."""
        ...

    async def forget(self, *, requests_before: float, jobs_before: float, now: float, limit: int) -> int:
        """Requests and jobs done before an instant, and revocations whose time is over, are gone; how many."""
        ...


def instant_of(upload: Upload) -> float:
    """Where the upload stands in the pages of `uploads_in`."""
    return upload.expires_at if upload.state is State.RECEIVING else upload.updated_at
