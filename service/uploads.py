"""What happens to an upload, in which order: create, append, inspect, terminate.

Each method checks everything before it touches the body, changes state only through the metadata
store's compare-and-set, and answers from what was committed. Steps that must run on although the
client has gone are tasks of their own (`_drive`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from functools import partial
from typing import Any, Final, TypeVar

import structlog

from service.changes import Changes
from service.clock import Clock, new_file_id, new_upload_id
from service.events import EventMaker
from service.files import Files
from service.finishing import Finisher
from service.leases import Leases
from service.links import VerifiedUpload
from service.metadata import base as metadata_base
from service.metadata.base import Conflict, FileIdTaken, MetadataError, MetadataStore
from service.metrics import Metrics
from service.model import ConcatKind, LinkTerms, LinkUse, State, Upload, UploadId
from service.protocol.decide import (
    Intake,
    decide_append,
    decide_create,
    decide_final,
    decide_use,
    limit_of,
    overdue,
    refuse_ended,
    stored_problem,
)
from service.protocol.intents import Append, Appended, Create, Created, Ending, Policy
from service.protocol.problems import Problem, Refusal, refuse
from service.protocol.tus import parse_trailer
from service.receiving import NO_CLAIMS, Body, Claims, Receiver, storage_problem
from service.storage.base import Storage, StorageError

log = structlog.get_logger(__name__)
T = TypeVar("T")

#: a final upload answers 201 at the latest after this, assembled or not (T-0CG)
FINAL_PATIENCE_SECONDS: Final = 0.5
#: a link raced by more creations than this is told to try again
_CREATE_TRIES: Final = 8
#: reserve what open uploads promised only where the room left is under this many largest uploads
_AMPLE: Final = 16


class Uploads:
    """The use-cases of uploads, for one process."""

    def __init__(
        self,
        *,
        metadata: MetadataStore,
        storage: Storage,
        leases: Leases,
        receiver: Receiver,
        finisher: Finisher,
        policy: Policy,
        clock: Clock,
        metrics: Metrics,
        changes: Changes,
        events: EventMaker,
        files: Files,
    ) -> None:
        self._metadata = metadata
        self._storage = storage
        self._leases = leases
        self._receiver = receiver
        self._finisher = finisher
        self._policy = policy
        self._clock = clock
        self._metrics = metrics
        self._changes = changes
        self._events = events
        self._files = files
        self._tasks: set[asyncio.Task[Any]] = set()

    # --- create -----------------------------------------------------------------------------

    async def create(self, intent: Create, verified: VerifiedUpload, body: Body) -> Created:
        """The link's upload: new, or the one that this link made before (T-05C).

        Raises:
            Refusal: what `decide_create`, `decide_use` and `decide_final` raise; link-expired;
                storage-full; what refuses the whole file, if the body was all of it.
        """
        upload, replayed = await self._claim(intent, verified)
        if replayed:
            return Created(await self._replayed(upload), replayed=True)
        self._metrics.upload_created(upload.protocol)
        log.info("upload_created", upload_id=upload.id, length=upload.length, kid=verified.kid, jti=verified.jti_hash)
        if intent.concat_kind is ConcatKind.FINAL:
            return Created(await self._assemble(upload))
        if intent.framing.empty and upload.length != 0:
            return Created(upload)
        intake = decide_create(intent, verified.terms, self._policy)
        upload, problem = await self._drive(self._receive(upload, lambda _: intake, body, _claims(intent)))
        if problem is not None and intake.whole and not upload.offset:
            await self._undo(upload, problem)
            raise Refusal(problem)
        self._raise_if_refused(upload)
        return Created(upload, problem=problem)

    async def _replayed(self, upload: Upload) -> Upload:
        """What the link's upload is now, once whoever wrote it has committed and stopped (T-0D1)."""
        if upload.pending_final or upload.complete:
            return upload
        try:
            upload = await self._drive(self._settle(upload.id))
        except Conflict:
            upload = await self._fresh(upload.id)
        except (StorageError, MetadataError) as error:
            log.warning("finish_postponed", upload_id=upload.id, error=str(error))
            raise refuse("locked", "all bytes are in; the file is being stored", retry_after=1, close=True) from None
        self._raise_if_refused(upload)
        refuse_ended(upload, self._clock.now())
        return upload

    async def _claim(self, intent: Create, verified: VerifiedUpload) -> tuple[Upload, bool]:
        """A new upload counted against the link, or the earlier one. Compare-and-set on the link."""
        terms = verified.terms
        use: LinkUse | None = None
        for _ in range(_CREATE_TRIES):
            use = await self._metadata.link_use(terms.issuer, terms.jti)
            made = await self._metadata.uploads(use.uploads) if use and use.uploads else {}
            now = self._clock.now()
            earlier = decide_use(intent, terms, use, made, self._policy, now)
            if earlier is not None:
                return earlier, True
            if verified.expired:
                raise refuse("link-expired", "the link has expired; ask for a new one", close=True)
            decide_create(intent, terms, self._policy)
            await self._forget_overdue(made.values(), now)
            length = await self._final_length(intent, terms) if intent.partials else intent.length
            await self._check_room(length)
            try:
                return await self._insert(intent, terms, use, length), False
            except Conflict:
                continue
            except FileIdTaken:
                raise refuse("link-used", "the file of this link exists already", close=True) from None
        raise refuse("locked", "the link is being used by other requests", retry_after=1, close=True)

    async def _insert(self, intent: Create, terms: LinkTerms, use: LinkUse | None, length: int | None) -> Upload:
        now = self._clock.now()
        part = intent.concat_kind is ConcatKind.PARTIAL
        upload = Upload(
            id=new_upload_id(),
            protocol=intent.protocol,
            terms=terms,
            file_id=new_file_id() if part or terms.file_id is None else terms.file_id,
            block_size=self._policy.block_size,
            strong_hash=self._policy.strong_hash,
            created_at=now,
            updated_at=now,
            expires_at=now + min(self._policy.idle_seconds, self._policy.life_seconds),
            length=length,
            deferred=intent.deferred,
            metadata=intent.metadata,
            filename=intent.filename,
            media_type=intent.media_type,
            concat=intent.concat,
            concat_kind=intent.concat_kind,
            partials=intent.partials,
        )
        before = use or LinkUse(terms.issuer, terms.jti, terms.expires_at)
        after = LinkUse(
            terms.issuer,
            terms.jti,
            terms.expires_at,
            uploads=before.uploads if part else (*self._counting(before, terms), upload.id),
            partials=before.partials + part,
            partial_bytes=before.partial_bytes + (length or 0 if part else 0),
            version=before.version,
        )
        await self._metadata.create_upload(upload, after, events=[self._events.of_upload("created", upload, now)])
        return upload

    @staticmethod
    def _counting(use: LinkUse, terms: LinkTerms) -> tuple[UploadId, ...]:
        """A single-use link that is free again has only its newest upload."""
        return () if terms.single_use else use.uploads

    async def _forget_overdue(self, made: Any, now: float) -> None:
        """An upload that expired before the sweeper came ends now, so that the link is free (T-05E)."""
        for upload in made:
            if overdue(upload, now):
                await self.expire(upload, now)

    async def _final_length(self, intent: Create, terms: LinkTerms) -> int | None:
        found = await self._metadata.uploads(intent.partials)
        found = {partial: await self._spared(upload) for partial, upload in found.items()}
        partials = [found.get(partial) for partial in intent.partials]
        length = decide_final(partials, terms.issuer, limit_of(terms, self._policy), self._clock.now())
        if length is not None and terms.size is not None and length != terms.size:
            raise refuse("length-mismatch", f"the link is for exactly {terms.size} bytes", status=403)
        return length

    async def _check_room(self, length: int | None) -> None:
        """Refuses what cannot fit beside what open uploads were promised (lesson D5)."""
        try:
            free = await self._storage.free_bytes()
        except StorageError as error:
            raise Refusal(storage_problem(error)) from error
        if free is None:
            return
        wanted = length or 0
        ample = wanted + _AMPLE * (self._policy.max_size or 2**32)
        promised = 0 if free >= ample else await self._metadata.promised_bytes()
        if free - promised < wanted or free <= 0:
            raise refuse("storage-full", "there is no room for a file of this length", retry_after=60, close=True)

    async def _undo(self, upload: Upload, problem: Problem) -> None:
        """A creation whose body did not match its checksum leaves no upload, and the link is free (T-068)."""
        try:
            await self._finisher.fail(upload, problem, epoch=upload.epoch, free_link=True)
        except Conflict:
            log.info("upload_undo_overtaken", upload_id=upload.id)

    async def _assemble(self, final: Upload) -> Upload:
        """Joining goes on by itself if it takes longer than a proxy waits (T-0CG)."""
        task = self._spawn(self._settle(final.id))
        await asyncio.wait({task}, timeout=FINAL_PATIENCE_SECONDS)
        if task.done() and task.exception() is None:
            self._raise_if_refused(task.result())
            return task.result()
        return await self._fresh(final.id)

    # --- append -----------------------------------------------------------------------------

    async def append(self, intent: Append, body: Body) -> Appended:
        """The body is at the offset, as far as it came; a newer request takes over from an older.

        Raises:
            Refusal: what `decide_append` raises; not-found; locked; what refuses the whole file.
        """
        upload = await self._fresh(intent.upload_id)
        if upload.state is State.FINISHING:
            self._go_on(upload)
        self._decide(intent, upload)
        upload, problem = await self._drive(self._receive(upload, partial(self._decide, intent), body, _claims(intent)))
        self._raise_if_refused(upload)
        return Appended(upload, problem)

    def _decide(self, intent: Append, upload: Upload) -> Intake | None:
        return decide_append(intent, upload, self._policy, self._clock.now())

    async def _receive(
        self, upload: Upload, decide: Callable[[Upload], Intake | None], body: Body, claims: Claims
    ) -> tuple[Upload, Problem | None]:
        """Under the lease: decide again on what is committed now, take the body, finish."""
        stop = partial(body.stop, Ending.TAKEN_OVER)
        try:
            async with self._leases.hold(upload.id, stop=stop, silent_seconds=body.silent_seconds) as (lease, now_is):
                intake = decide(await self._spared(now_is))
                if intake is None:
                    return now_is, None
                self._count_resumed(now_is)
                after, problem = await self._receiver.receive(now_is, lease, intake, body, claims)
                return await self._finish(after, lease, problem)
        except Conflict:
            current = await self._fresh(upload.id)
            refuse_ended(current, self._clock.now())
            raise refuse("locked", "the upload changed hands; ask for the offset", retry_after=1, close=True) from None

    async def _finish(
        self, upload: Upload, lease: metadata_base.Lease, problem: Problem | None
    ) -> tuple[Upload, Problem | None]:
        if upload.state is not State.FINISHING:
            return upload, problem
        try:
            upload = await self._finisher.finish(upload, lease)
        except (StorageError, MetadataError) as error:
            # recorded as finishing: the next request or the janitor goes on (lesson C1)
            log.warning("finish_postponed", upload_id=upload.id, error=str(error))
            failed = error if isinstance(error, StorageError) else StorageError()
            return upload, storage_problem(failed)
        if upload.concat_kind is ConcatKind.PARTIAL and upload.complete:
            self._nudge_finals(upload.id)
        return upload, problem

    def _count_resumed(self, upload: Upload) -> None:
        if upload.offset:
            self._metrics.upload_resumed(self._clock.now() - upload.updated_at)

    # --- inspect, terminate -----------------------------------------------------------------

    async def inspect(self, upload_id: UploadId) -> Upload:
        """The upload as committed, for HEAD: a silent writer has let go first (T-0D1).

        Raises:
            Refusal: not-found, gone, locked (also while `finishing`, T-02C).
        """
        upload = await self._fresh(upload_id)
        refuse_ended(upload, self._clock.now())
        if upload.pending_final or upload.state is State.FINISHING:
            self._go_on(upload)
        if upload.pending_final:
            return upload
        if upload.state is State.FINISHING:
            raise refuse("locked", "all bytes are in; the file is being stored", retry_after=1)
        if upload.state is State.RECEIVING and await self._leases.hush(upload):
            return await self.inspect(upload_id)
        return upload

    async def status(self, upload_id: UploadId, wait_seconds: float = 0) -> Upload:
        """The upload as committed, for GET: takes no lock, disturbs nobody (T-0D4).

        Args:
            wait_seconds: hold the answer until the state changes, at most this long.

        Raises:
            Refusal: not-found, gone.
        """
        deadline = self._clock.monotonic() + wait_seconds
        with self._changes.watch(upload_id) as watch:
            first = upload = await self._fresh(upload_id)
            while True:
                if upload.state in (State.RECEIVING, State.FINISHING):
                    refuse_ended(upload, self._clock.now())
                left = deadline - self._clock.monotonic()
                if left <= 0 or upload.state is not first.state or upload.state not in _MOVING:
                    break
                await watch.wait(min(left, 1.0))
                upload = await self._fresh(upload_id)
        refuse_ended(upload, self._clock.now())
        return upload

    async def made_by(self, terms: LinkTerms) -> Upload | None:
        """The live upload that a single-use link made (T-02D), partials left out."""
        use = await self._metadata.link_use(terms.issuer, terms.jti)
        if use is None or not use.uploads or not terms.single_use:
            return None
        upload = await self._metadata.upload(use.uploads[-1])
        if upload is None:
            return None
        refuse_ended(upload, self._clock.now())
        return upload

    async def terminate(self, upload_id: UploadId) -> None:
        """The upload, and the file it made, are gone; a running writer was stopped (T-0B0 to T-0B5).

        Raises:
            Refusal: not-found (unknown or terminated before), gone, locked.
        """
        upload = await self._fresh(upload_id)
        if upload.state is State.TERMINATED:
            raise refuse("not-found", "the upload was terminated before")
        refuse_ended(upload, self._clock.now())
        await self._drive(self._terminate(upload))

    async def _terminate(self, upload: Upload) -> None:
        try:
            async with self._leases.hold(upload.id, stop=_no_stop) as (lease, held):
                now = self._clock.now()
                await self._files.delete_of(held)
                ending = metadata_base.Ending(
                    State.TERMINATED, now, events=[self._events.of_upload("terminated", held, now)]
                )
                await self._metadata.end_upload(held.id, epoch=lease.epoch, ending=ending)
                await self._storage.discard(held.id)
        except Conflict:
            raise refuse("not-found", "the upload was terminated before") from None
        log.info("upload_terminated", upload_id=upload.id)
        self._tell(upload)
        if upload.concat_kind is ConcatKind.PARTIAL:
            self._nudge_finals(upload.id)

    async def expire(self, upload: Upload, now: float) -> bool:
        """The upload is expired and its bytes gone, unless it moved on or a writer holds it (T-095)."""
        ending = metadata_base.Ending(
            State.EXPIRED, now, free_link=True, events=[self._events.of_upload("expired", upload, now)]
        )
        try:
            await self._metadata.end_upload(
                upload.id,
                epoch=upload.epoch,
                ending=ending,
                expected=(State.RECEIVING, State.READY) if upload.concat_kind is ConcatKind.PARTIAL else _OPEN,
                unexpired_before=now,
            )
        except Conflict:
            return False
        await self._storage.discard(upload.id)
        log.info("upload_expired", upload_id=upload.id, offset=upload.offset)
        self._tell(upload)
        if upload.concat_kind is ConcatKind.PARTIAL:
            self._nudge_finals(upload.id)
        return True

    # --- what goes on without a client ------------------------------------------------------

    async def settle(self, upload_id: UploadId) -> None:
        """One step towards `ready` for an upload that waits for nobody: for the janitor."""
        await self._settle(upload_id)

    async def _settle(self, upload_id: UploadId) -> Upload:
        async with self._leases.hold(upload_id, stop=_no_stop) as (lease, upload):
            upload = await self._finisher.ready_final(upload, lease)
            return await self._finisher.finish(upload, lease)

    def _go_on(self, upload: Upload) -> None:
        if not self._leases.held_here(upload.id):
            self._spawn(self._settle_quietly(upload.id))

    def _nudge_finals(self, partial_id: UploadId) -> None:
        self._spawn(self._settle_finals(partial_id))

    async def _settle_finals(self, partial_id: UploadId) -> None:
        for final in await self._metadata.pending_finals(partial_id):
            await self._settle_quietly(final)

    async def _settle_quietly(self, upload_id: UploadId) -> None:
        """Somebody else at it, or storage away: the next request or the janitor comes again."""
        try:
            await self._settle(upload_id)
        except (Refusal, StorageError, MetadataError) as error:
            log.info("settle_postponed", upload_id=upload_id, error=str(error))

    async def drain(self) -> None:
        """Waits for what runs without a client; leaves nothing half done that is not recorded."""
        while self._tasks:
            await asyncio.wait(set(self._tasks))

    # --- small things -----------------------------------------------------------------------

    async def _fresh(self, upload_id: UploadId) -> Upload:
        upload = await self._metadata.upload(upload_id)
        if upload is None:
            raise refuse("not-found", "no such upload", close=True)
        return await self._measured(upload) if upload.pending_final else await self._spared(upload)

    async def _measured(self, final: Upload) -> Upload:
        """A pending final has a length as soon as each of its partials has one (T-0C8)."""
        found = await self._metadata.uploads(final.partials) if final.length is None else {}
        lengths = [found[partial].length for partial in final.partials if partial in found]
        known = [length for length in lengths if length is not None]
        return final.with_(length=sum(known)) if found and len(known) == len(final.partials) else final

    async def _spared(self, upload: Upload) -> Upload:
        """A partial lives at least as long as the pending finals that name it (T-096)."""
        if upload.concat_kind is not ConcatKind.PARTIAL or not overdue(upload, self._clock.now()):
            return upload
        finals = await self._metadata.uploads(await self._metadata.pending_finals(upload.id))
        return upload.with_(expires_at=max([upload.expires_at, *(final.expires_at for final in finals.values())]))

    @staticmethod
    def _raise_if_refused(upload: Upload) -> None:
        """The request that brought the last byte hears why there is no file; later ones get 410."""
        if upload.state is State.FAILED:
            raise Refusal(stored_problem(upload))

    def _tell(self, upload: Upload) -> None:
        self._changes.changed(upload.id)
        self._changes.changed(upload.file_id)

    def _spawn(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            # whoever still waits for the task gets it too; nobody may, if the client is gone
            log.debug("task_failed", error=repr(task.exception()))

    async def _drive(self, work: Coroutine[Any, Any, T]) -> T:
        """Runs to its end even if the request is cancelled meanwhile."""
        return await asyncio.shield(self._spawn(work))


_MOVING: Final = (State.RECEIVING, State.FINISHING)
_OPEN: Final = (State.RECEIVING,)


def _claims(intent: Create | Append) -> Claims:
    if intent.checksum is None and not intent.checksum_trailer:
        return NO_CLAIMS
    return Claims(intent.checksum, parse_trailer if intent.checksum_trailer else None)


def _no_stop() -> None:
    """A short step: a newcomer waits for it, or is told to come again."""
