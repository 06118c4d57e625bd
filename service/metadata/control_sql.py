"""The ControlStore over SQL: the half of `sql.SqlMetadata` that the control API uses, on the same two threads."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Sequence
from functools import partial
from typing import TypeVar

from sqlalchemy import Connection

from service.metadata import controlling, owning
from service.metadata.control import Job, Refs, Repeatable, Revocation, Usage
from service.model import Event, File, FileId, State, Upload, UploadId

T = TypeVar("T")


class SqlControl(ABC):
    """The methods are those of ControlStore."""

    @abstractmethod
    async def _write(self, work: Callable[[Connection], T], *, durable: bool = False) -> T: ...

    @abstractmethod
    async def _tell(self, outbox: Sequence[Event], work: Callable[[Connection], T], *, durable: bool = False) -> T: ...

    @abstractmethod
    async def _read(self, work: Callable[[Connection], T]) -> T: ...

    async def refs(self, file_ids: Collection[FileId]) -> dict[FileId, Refs]:
        return await self._read(partial(controlling.refs, file_ids=file_ids))

    async def claim_file(self, file_id: FileId, ref: str, *, now: float) -> File:
        # a claim that is forgotten is a file that is lost
        return await self._write(partial(controlling.claim_file, file_id=file_id, ref=ref, now=now), durable=True)

    async def release_file(self, file_id: FileId, ref: str, *, now: float, events: Sequence[Event] = ()) -> File:
        work = partial(controlling.release_file, file_id=file_id, ref=ref, now=now, outbox=events)
        return await self._tell(events, work, durable=True)

    async def files_of(
        self, issuer: str, *, owner: str | None = None, ref: str | None = None, after: FileId | None, limit: int
    ) -> tuple[File, ...]:
        work = partial(controlling.files_of, issuer=issuer, owner=owner, ref=ref, after=after, limit=limit)
        return await self._read(work)

    async def uploads_in(
        self, issuer: str, state: State, *, after: tuple[float, UploadId] | None, limit: int
    ) -> tuple[Upload, ...]:
        return await self._read(partial(controlling.uploads_in, issuer=issuer, state=state, after=after, limit=limit))

    async def open_uploads_of(
        self, issuer: str, owner: str, *, after: UploadId | None, limit: int
    ) -> tuple[Upload, ...]:
        work = partial(controlling.open_uploads_of, issuer=issuer, owner=owner, after=after, limit=limit)
        return await self._read(work)

    async def ended_of(
        self, issuer: str, owner: str, *, since: float, after: UploadId | None, limit: int
    ) -> tuple[Upload, ...]:
        work = partial(controlling.ended_of, issuer=issuer, owner=owner, since=since, after=after, limit=limit)
        return await self._read(work)

    async def deleted_of(
        self, issuer: str, owner: str, *, since: float, after: FileId | None, limit: int
    ) -> tuple[File, ...]:
        work = partial(controlling.deleted_of, issuer=issuer, owner=owner, since=since, after=after, limit=limit)
        return await self._read(work)

    async def usage(self, issuer: str, owner: str) -> Usage:
        return await self._read(partial(owning.usage, issuer=issuer, owner=owner))

    async def miscounted(self) -> dict[tuple[str, str], tuple[Usage, Usage]]:
        return await self._read(owning.miscounted)

    async def recount(self) -> int:
        return await self._write(owning.recount)

    async def begin_job(self, job: Job, revocation: Revocation) -> Job:
        return await self._write(partial(controlling.begin_job, job=job, revocation=revocation), durable=True)

    async def job(self, issuer: str, job_id: str) -> Job | None:
        return await self._read(partial(controlling.job, issuer=issuer, job_id=job_id))

    async def open_jobs(self, *, limit: int) -> tuple[Job, ...]:
        return await self._read(partial(controlling.open_jobs, limit=limit))

    async def end_job(self, job: Job, *, now: float) -> None:
        await self._write(partial(controlling.end_job, job=job, now=now))

    async def revoke(self, revocation: Revocation) -> None:
        await self._write(partial(controlling.revoke, revocation=revocation), durable=True)

    async def revocations(self, *, after: int) -> tuple[tuple[int, Revocation], ...]:
        return await self._read(partial(controlling.revoked, after=after))

    async def newest_event(self) -> int:
        return await self._read(controlling.newest_event)

    async def remember(self, asked: Repeatable, *, forget_before: float) -> Repeatable:
        return await self._write(partial(controlling.remember, asked=asked, forget_before=forget_before))

    async def forget(self, *, requests_before: float, jobs_before: float, now: float, limit: int) -> int:
        work = partial(
            controlling.forget, requests_before=requests_before, jobs_before=jobs_before, now=now, limit=limit
        )
        return await self._write(work)
