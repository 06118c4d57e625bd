"""All that an owner has goes: its files, its open uploads, and its links with them.

Asked for, it is a row in the database, written together with the revocation of the owner's links.
The process that took the request begins at once; whoever sweeps takes up what is left after a
kill. Each step is one that anybody may take twice, so two at the same job do no harm.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from functools import partial
from typing import Any, Final, Protocol, TypeVar

import structlog

from service.clock import Clock, new_job_id
from service.control_models import Erasure, OwnerUsage
from service.files import Files
from service.metadata.base import MetadataError, MetadataStore
from service.metadata.control import ControlStore, Job
from service.model import File, Quota, Upload
from service.protocol.problems import Refusal, refuse
from service.revocations import Revocations
from service.settling import Settling
from service.storage.base import Storage, StorageError

log = structlog.get_logger(__name__)

#: until then other processes may make uploads of links that were revoked
SETTLED_SECONDS = 1.0
#: how long the answer to a job, or to a repeated request, is kept
KEPT_SECONDS: Final = 24 * 3600.0
#: rows looked at in one go
_BATCH: Final = 200
_UNLIMITED: Final = Quota()

Row = TypeVar("Row", Upload, File)
Row_co = TypeVar("Row_co", bound=Upload | File, covariant=True)


class _List(Protocol[Row_co]):
    async def __call__(self, *, after: Any, limit: int) -> tuple[Row_co, ...]: ...


class Erasing:
    """Owners, for the issuer whose they are, and the jobs of one process."""

    def __init__(
        self,
        *,
        metadata: MetadataStore,
        control: ControlStore,
        storage: Storage,
        files: Files,
        settling: Settling,
        revocations: Revocations,
        clock: Clock,
        quota: Quota,
    ) -> None:
        self._metadata = metadata
        self._control = control
        self._storage = storage
        self._files = files
        self._settling = settling
        self._revocations = revocations
        self._clock = clock
        self._quota = quota
        self._running: dict[str, asyncio.Task[None]] = {}

    async def usage(self, issuer: str, owner: str) -> OwnerUsage:
        """Also of an owner that nobody knows: nothing."""
        usage, quota = await self._control.usage(issuer, owner), self._quota
        return OwnerUsage(
            owner=owner,
            files=usage.files,
            file_bytes=usage.file_bytes,
            pending_uploads=usage.pending,
            reserved_bytes=usage.reserved,
            quota_bytes=quota.most_bytes if quota.most_bytes != _UNLIMITED.most_bytes else None,
            quota_pending=quota.most_pending if quota.most_pending != _UNLIMITED.most_pending else None,
        )

    async def begin(self, issuer: str, owner: str) -> Erasure:
        """The job exists, and the owner's links up to now are good for nothing."""
        now = self._clock.now()
        revocation = self._revocations.of(issuer, "owner", owner, at=now)
        asked = Job(new_job_id(), issuer, owner, now)
        job = await self._control.begin_job(asked, revocation)
        self._revocations.hold(revocation)
        log.info("erasure_begun", job=job.id)
        # one that is there already was begun by somebody, who may have left bytes
        self._drive(job, again=job.id != asked.id)
        return await self._view(job)

    async def job(self, issuer: str, job_id: str) -> Erasure:
        """Raises Refusal: not-found; so are jobs a day after they ended."""
        job = await self._control.job(issuer, job_id)
        if job is None:
            raise refuse("not-found", "There is no such job.")
        return await self._view(job)

    async def _view(self, job: Job) -> Erasure:
        usage = await self._control.usage(job.issuer, job.owner)
        done = job.done_at is not None
        return Erasure(
            job_id=job.id,
            owner=job.owner,
            state="done" if done else "running",
            asked_at=int(job.asked_at),
            done_at=int(job.done_at) if job.done_at is not None else None,
            files_left=0 if done else usage.files,
            uploads_left=0 if done else usage.pending,
        )

    async def upkeep(self) -> None:
        """Jobs that nobody is at go on, and what is over is forgotten; for the janitor.

        Raises:
            MetadataError: worth a retry.
        """
        for job in await self._control.open_jobs(limit=_BATCH):
            self._drive(job, again=True)
        now = self._clock.now()
        before, forgotten = now - KEPT_SECONDS, _BATCH
        while forgotten >= _BATCH:
            forgotten = await self._control.forget(requests_before=before, jobs_before=before, now=now, limit=_BATCH)

    async def idle(self) -> None:
        """Returns once no job is under way here."""
        while self._running:
            await asyncio.wait(self._running.values())

    async def end(self) -> None:
        """No job goes on here; what is not done is taken up by whoever sweeps next."""
        for task in self._running.values():
            task.cancel()
        await self.idle()

    def _drive(self, job: Job, *, again: bool) -> None:
        if job.id not in self._running:
            task = self._running[job.id] = asyncio.create_task(self._erase(job, again=again))
            task.add_done_callback(lambda _: self._running.pop(job.id, None))

    async def _erase(self, job: Job, *, again: bool) -> None:
        """`again`: somebody was at it before, and may have left bytes of what is recorded as gone."""
        try:
            # asked for again meanwhile, it is for what there is now
            while (now_is := await self._control.job(job.issuer, job.id)) is not None and now_is.done_at is None:
                wait = now_is.asked_at + SETTLED_SECONDS - self._clock.now()
                await asyncio.sleep(min(max(wait, 0.0), SETTLED_SECONDS))
                if not (await self._erase_all(now_is) and (not again or await self._remove_left(now_is))):
                    return
                await self._control.end_job(now_is, now=self._clock.now())
            log.info("erasure_done", job=job.id)
        except MetadataError as error:
            log.warning("erasure_postponed", job=job.id, reason=str(error))
        except Exception:
            log.exception("erasure_failed", job=job.id)

    async def _erase_all(self, job: Job) -> bool:
        """Whether nothing is left of what there was when the job was asked for."""
        until, whole = job.asked_at + SETTLED_SECONDS, True
        async for upload in _pages(partial(self._control.open_uploads_of, job.issuer, job.owner)):
            if upload.created_at <= until:
                whole &= await self._terminate(upload)
        async for file in _pages(partial(self._control.files_of, job.issuer, owner=job.owner)):
            if file.created_at <= until or await self._made_before(file, until):
                whole &= await self._removed(partial(self._files.delete, file))
        return whole

    async def _remove_left(self, job: Job) -> bool:
        """Whether no byte is held of what ended and is still remembered.

        Not of what ended since the job was asked for alone: asked for anew, it has a later instant, and what
        it ended before that may have left bytes too.
        """
        ended = partial(self._control.ended_of, job.issuer, job.owner, since=0.0)
        deleted = partial(self._control.deleted_of, job.issuer, job.owner, since=0.0)
        whole = True
        async for upload in _pages(ended):
            whole &= await self._removed(partial(self._storage.discard, upload.id, finished=True))
        async for file in _pages(deleted):
            whole &= await self._removed(partial(self._storage.delete, file.key))
        return whole

    async def _terminate(self, upload: Upload) -> bool:
        try:
            await self._settling.terminate(upload)
        except Refusal as refusal:
            log.info("erasure_waits", upload_id=upload.id, reason=refusal.problem.slug)
            return refusal.problem.slug == "not-found"
        # an end stands whether or not its bytes could be removed; a job does not
        return await self._removed(partial(self._storage.discard, upload.id, finished=True))

    @staticmethod
    async def _removed(remove: Callable[[], Awaitable[object]]) -> bool:
        try:
            await remove()
        except StorageError as error:
            log.warning("erasure_waits", reason=str(error))
            return False
        return True

    async def _made_before(self, file: File, until: float) -> bool:
        """Whether its upload was one of those that were to end, and was faster."""
        upload = await self._metadata.upload(file.upload_id)
        return upload is None or upload.created_at <= until


async def _pages(ask: _List[Row]) -> AsyncIterator[Row]:
    """Each row of a list by id."""
    last = None
    while page := await ask(after=last, limit=_BATCH):
        last = page[-1].id
        for row in page:
            yield row
