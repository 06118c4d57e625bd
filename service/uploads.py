"""What a client does with an upload, in which order: create, append, inspect, terminate.

Each method checks everything before it touches the body, changes state only through the metadata
store's compare-and-set, and answers from what was committed. Steps that must run on although the
client has gone are tasks of their own (`Tasks.drive`). What a link makes is in `claiming`, what
happens without a client in `settling`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Final, TypeVar

import structlog

from service.at_once import AtOnce
from service.changes import Changes
from service.claiming import Claiming
from service.clock import Clock
from service.finishing import LOST, Finisher
from service.leases import Judge, Leases, NotFree
from service.links import VerifiedUpload
from service.lookup import Lookup
from service.metadata.base import Conflict, Lease, MetadataError, MetadataStore, MetadataUnavailable
from service.metrics import Metrics
from service.model import ConcatKind, LinkTerms, State, Upload, UploadId
from service.onward import Onward
from service.protocol.decide import (
    Intake,
    decide_append,
    decide_create,
    overdue,
    refuse_ended,
    refuse_suspect,
    stored_problem,
)
from service.protocol.intents import Append, Appended, Create, Created, Ending, Policy
from service.protocol.problems import Problem, Refusal, refuse
from service.protocol.tus import parse_trailer
from service.receiving import NO_CLAIMS, Body, Claims, Received, Receiver, storage_problem
from service.settling import Settling
from service.storage.base import StorageError, StorageShort
from service.tasks import Tasks

log = structlog.get_logger(__name__)

#: a request waits so long for its file to be scanned; proxies wait a minute
SCAN_PATIENCE_SECONDS: Final = 20.0
#: a final upload answers 201 at the latest after this, assembled or not (T-0CG)
FINAL_PATIENCE_SECONDS: Final = 0.5
_REMEMBERED: Final = 4096
_MOVING: Final = (State.RECEIVING, State.FINISHING)
_BEING_SCANNED: Final = Problem("locked", "all bytes are in; the file is being scanned", (("Retry-After", "1"),))
Settled = TypeVar("Settled", Created, Appended)


class Uploads:
    """The use-cases of uploads, for one process."""

    def __init__(
        self,
        *,
        metadata: MetadataStore,
        leases: Leases,
        lookup: Lookup,
        at_once: AtOnce | None,
        claiming: Claiming,
        onward: Onward,
        receiver: Receiver,
        finisher: Finisher,
        settling: Settling,
        policy: Policy,
        clock: Clock,
        metrics: Metrics,
        changes: Changes,
        tasks: Tasks,
        scans: bool = False,
        hurry: Callable[[UploadId], None] | None = None,
    ) -> None:
        """`at_once`: None where something is to be asked between the last byte and `ready`.
        `scans`: whether files are scanned before they are ready.
        `hurry`: has a suspect checked; None where storage loses nothing in a crash.
        """
        self._metadata = metadata
        self._leases = leases
        self._lookup = lookup
        self._at_once = at_once
        self._claiming = claiming
        self._onward = onward
        self._receiver = receiver
        self._finisher = finisher
        self._settling = settling
        self._policy = policy
        self._clock = clock
        self._metrics = metrics
        self._changes = changes
        self._tasks = tasks
        self._scans = scans
        self._hurry = hurry
        #: uploads whose last request here ended whole, oldest first; for the count of resumptions only
        self._whole: dict[UploadId, None] = {}

    # --- create -----------------------------------------------------------------------------

    async def create(self, intent: Create, verified: VerifiedUpload, body: Body) -> Created:
        """The link's upload: new, or the one that this link made before (T-05C).

        Raises:
            Refusal: what `decide_create`, `decide_use` and `decide_final` raise; link-expired;
                storage-full; what refuses the whole file, if the body was all of it.
        """
        if self._at_once is not None:
            made = await self._at_once.create(intent, verified, body)
            if made is not None:
                return Created(made)
        upload, replayed = await self._claiming.claim(intent, verified)
        if replayed and body.waited:
            # whoever made it came later, while we waited for our body
            raise refuse("locked", "a newer request has made the upload; ask again", retry_after=1, close=True)
        if replayed:
            return Created(await self._replayed(upload), replayed=True)
        self._metrics.upload_created(upload.protocol)
        log.info("upload_created", upload_id=upload.id, length=upload.length, kid=verified.kid, jti=verified.jti_hash)
        if intent.concat_kind is ConcatKind.FINAL:
            return Created(await self._assemble(upload))
        if upload.state is State.FINISHING:
            # an empty one; the answer names its address also while it is being scanned (`settled`)
            return Created(upload if self._scans else await self._replayed(upload))
        if intent.framing.empty and upload.length != 0:
            return Created(upload)
        intake = decide_create(intent, verified.terms, self._policy)
        upload, problem = await self._tasks.drive(
            self._receive(upload.id, partial(_first, intake), body, _claims(intent))
        )
        if problem is not None and intake.whole and not upload.offset:
            await self._undo(upload, problem)
            raise Refusal(problem)
        self._raise_if_refused(upload)
        return Created(upload, problem=problem)

    async def _replayed(self, upload: Upload) -> Upload:
        """What the link's upload is now, once whoever wrote it has committed and stopped (T-0D1)."""
        self._refuse_suspect(upload)
        if upload.pending_final or upload.complete:
            return upload
        try:
            upload = await self._settle(upload)
        except Conflict:
            upload = await self._lookup.upload(upload.id)
        except (StorageError, MetadataError) as error:
            log.warning("finish_postponed", upload_id=upload.id, error=str(error))
            raise refuse("locked", "all bytes are in; the file is being stored", retry_after=1, close=True) from None
        self._raise_if_refused(upload)
        refuse_ended(upload, self._clock.now())
        return upload

    async def _settle(self, upload: Upload) -> Upload:
        """As `Settling.settle`; what takes longer than a client waits goes on by itself. Raises Refusal: locked."""
        task = self._tasks.spawn(self._settling.settle(upload.id))
        await asyncio.wait({task}, timeout=SCAN_PATIENCE_SECONDS if self._scans else None)
        if not task.done():
            raise Refusal(replace(_BEING_SCANNED, close=True))
        return task.result()

    async def settled(self, outcome: Settled) -> Settled:
        """The outcome, once a file whose last byte came is scanned; if that takes long, it is told that it is not yet.

        For after the body: what a client waits for here holds no place among the transfers.

        Raises:
            Refusal: what refuses the whole file; gone.
        """
        upload = outcome.upload
        if not self._scans or upload.state is not State.FINISHING or upload.pending_final or outcome.problem:
            return outcome
        task = self._tasks.spawn(self._settling.settle(upload.id))
        await asyncio.wait({task}, timeout=SCAN_PATIENCE_SECONDS)
        if task.done() and isinstance(error := task.exception(), Refusal):
            # a hook that does not answer, or another request at the upload
            return replace(outcome, problem=error.problem)
        upload = await self._lookup.upload(upload.id)
        self._raise_if_refused(upload)
        refuse_ended(upload, self._clock.now())
        return replace(outcome, upload=upload, problem=None if upload.complete else _BEING_SCANNED)

    async def _undo(self, upload: Upload, problem: Problem) -> None:
        """A creation whose body did not match its checksum leaves no upload, and the link is free (T-068)."""
        try:
            await self._finisher.fail(upload, problem, epoch=upload.epoch, free_link=True)
        except Conflict:
            log.info("upload_undo_overtaken", upload_id=upload.id)

    async def _assemble(self, final: Upload) -> Upload:
        """Joining goes on by itself if it takes longer than a proxy waits (T-0CG)."""
        task = self._tasks.spawn(self._settling.settle(final.id))
        await asyncio.wait({task}, timeout=FINAL_PATIENCE_SECONDS)
        if task.done() and task.exception() is None:
            self._raise_if_refused(task.result())
            return task.result()
        return await self._lookup.upload(final.id)

    # --- append -----------------------------------------------------------------------------

    async def append(self, intent: Append, body: Body) -> Appended:
        """The body is at the offset, as far as it came; a newer request takes over from an older.

        Raises:
            Refusal: what `decide_append` raises; not-found; locked; what refuses the whole file.
        """
        arrived = asyncio.get_running_loop().time()
        gone_on = await self._onward.append(intent, body)
        if gone_on is not None:
            self._remember(gone_on, whole=True)
            return Appended(gone_on)
        upload, problem = await self._tasks.drive(self._append(intent, body, arrived))
        self._raise_if_refused(upload)
        return Appended(upload, problem)

    async def _append(self, intent: Append, body: Body, arrived: float) -> tuple[Upload, Problem | None]:
        decide, claims = partial(self._decide, intent), _claims(intent)
        try:
            # as a rule nobody else is there
            judge = partial(self._judge, intent)
            return await self._receive(intent.upload_id, decide, body, claims, judge=judge, arrived=arrived)
        except NotFree:
            upload = await self._lookup.upload(intent.upload_id)
        except MetadataUnavailable:
            # to refuse takes a look only, and that there may be
            decide(await self._lookup.upload(intent.upload_id))
            raise
        self._refuse_suspect(upload)
        if upload.state is State.FINISHING:
            self._settling.go_on(upload)
        decide(upload)
        return await self._receive(upload.id, decide, body, claims, arrived=arrived)

    def _judge(self, intent: Append, upload: Upload) -> None:
        """Refuses what `_decide` does. Raises NotFree: it takes more than a look. Called in a thread."""
        spared = upload.concat_kind is ConcatKind.PARTIAL and overdue(upload, self._clock.now())
        if upload.state is not State.RECEIVING or upload.suspect or upload.pending_final or spared:
            raise NotFree
        self._decide(intent, upload)

    def _decide(self, intent: Append, upload: Upload) -> Intake | None:
        return decide_append(intent, upload, self._policy, self._clock.now())

    async def _receive(
        self,
        upload_id: UploadId,
        decide: Callable[[Upload], Intake | None],
        body: Body,
        claims: Claims,
        *,
        judge: Judge | None = None,
        arrived: float | None = None,
    ) -> tuple[Upload, Problem | None]:
        """Under the lease: decide on what is committed now, take the body, finish. Raises NotFree: see `hold`."""
        stop = partial(body.stop, Ending.TAKEN_OVER)
        held = self._leases.hold(upload_id, stop=stop, silent_seconds=body.silent_seconds, judge=judge, arrived=arrived)
        try:
            async with held as (lease, now_is):
                intake = decide(await self._lookup.spared(now_is))
                if intake is None:
                    return now_is, None
                self._count_resumed(now_is)
                received = await self._receive_held(now_is, lease, intake, body, claims)
                if received.released:
                    self._leases.returned(lease)
                self._remember(received.upload, whole=received.problem is None)
                upload, problem = await self._finish(received, lease)
                if received.upload.state is State.FINISHING and upload.state is not State.FINISHING:
                    # published or ended, by which the lease is free
                    self._leases.returned(lease)
                return upload, problem
        except Conflict:
            current = await self._lookup.upload(upload_id)
            refuse_ended(current, self._clock.now())
            raise refuse("locked", "the upload changed hands; ask for the offset", retry_after=1, close=True) from None

    async def _receive_held(self, upload: Upload, lease: Lease, intake: Intake, body: Body, claims: Claims) -> Received:
        try:
            return await self._receiver.receive(upload, lease, intake, body, claims)
        except StorageShort:
            # what was acknowledged is not there any more: never a wrong offset, but an end (lesson C2)
            log.exception("upload_lost", upload_id=upload.id)
            await self._finisher.fail(upload, LOST, epoch=lease.epoch, free_link=True)
            raise Refusal(Problem("gone", LOST.detail, close=True)) from None

    async def _finish(self, received: Received, lease: Lease) -> tuple[Upload, Problem | None]:
        upload, problem = received.upload, received.problem
        if upload.state is not State.FINISHING or (self._scans and upload.concat_kind is not ConcatKind.PARTIAL):
            # a scan is none of the request's that brought the last byte: see `settled`
            return upload, problem
        try:
            upload = await self._finisher.finish(
                upload, lease, received.head, ledger=received.ledger, blocks=received.blocks
            )
        except (StorageError, MetadataError) as error:
            # recorded as finishing: the next request or the janitor goes on (lesson C1)
            log.warning("finish_postponed", upload_id=upload.id, error=str(error))
            failed = error if isinstance(error, StorageError) else StorageError()
            return upload, storage_problem(failed)
        except Refusal as refused:
            # nobody said whether there may be a file: recorded as finishing as well
            return upload, refused.problem
        if upload.concat_kind is ConcatKind.PARTIAL and upload.complete:
            self._settling.moved(upload)
        return upload, problem

    def _count_resumed(self, upload: Upload) -> None:
        """A next chunk is no resumption; a request after one that was cut, or after a restart, is."""
        if upload.offset and upload.id not in self._whole:
            self._metrics.upload_resumed(self._clock.now() - upload.updated_at)

    def _remember(self, upload: Upload, *, whole: bool) -> None:
        self._whole.pop(upload.id, None)
        if whole and upload.state is State.RECEIVING:
            self._whole[upload.id] = None
            if len(self._whole) > _REMEMBERED:
                del self._whole[next(iter(self._whole))]

    # --- inspect, terminate -----------------------------------------------------------------

    async def inspect(self, upload_id: UploadId) -> Upload:
        """The upload as committed, for HEAD: a silent writer has let go first (T-0D1).

        Raises:
            Refusal: not-found, gone, locked (also while `finishing`, T-02C).
        """
        upload = await self._lookup.upload(upload_id)
        refuse_ended(upload, self._clock.now())
        self._refuse_suspect(upload)
        full = upload.state is State.FINISHING or (upload.state is State.RECEIVING and upload.length == 0)
        if full or upload.pending_final:
            self._settling.go_on(upload)
        if upload.pending_final:
            return upload
        if full:
            raise refuse("locked", "all bytes are in; the file is being stored", retry_after=1)
        if upload.state is State.RECEIVING and await self._leases.hush(upload):
            return await self.inspect(upload_id)
        return upload

    async def status(self, upload_id: UploadId, wait_seconds: float = 0) -> Upload:
        """The upload as committed, for GET: takes no lock, disturbs nobody (T-0D4).

        Args:
            wait_seconds: hold the answer until the state changes, at most this long.

        Raises:
            Refusal: not-found, gone, locked (suspect).
        """
        deadline = self._clock.monotonic() + wait_seconds
        with self._changes.watch(upload_id) as watch:
            first = upload = await self._lookup.upload(upload_id)
            self._refuse_suspect(upload)
            while True:
                if upload.state in (State.RECEIVING, State.FINISHING):
                    refuse_ended(upload, self._clock.now())
                left = deadline - self._clock.monotonic()
                if left <= 0 or upload.state is not first.state or upload.state not in _MOVING:
                    break
                await watch.wait(min(left, 1.0))
                upload = await self._lookup.upload(upload_id)
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
        upload = await self._lookup.upload(upload_id)
        if upload.state is State.TERMINATED:
            raise refuse("not-found", "the upload was terminated before")
        refuse_ended(upload, self._clock.now())
        await self._tasks.drive(self._settling.terminate(upload))

    # --- small things -----------------------------------------------------------------------

    def _refuse_suspect(self, upload: Upload) -> None:
        """Raises Refusal: locked; and the suspect has its turn to be checked."""
        if upload.suspect and self._hurry is not None:
            self._hurry(upload.id)
        refuse_suspect(upload)

    @staticmethod
    def _raise_if_refused(upload: Upload) -> None:
        """The request that brought the last byte hears why there is no file; later ones get 410."""
        if upload.state is State.FAILED:
            raise Refusal(stored_problem(upload))


def _first(intake: Intake, upload: Upload) -> Intake:
    """The creation's own body comes first, or a repeated creation has taken over meanwhile."""
    if upload.state is not State.RECEIVING or upload.offset:
        raise refuse("locked", "a newer request took the upload over", retry_after=1, close=True)
    return intake


def _claims(intent: Create | Append) -> Claims:
    if intent.checksum is None and not intent.checksum_trailer:
        return NO_CLAIMS
    return Claims(intent.checksum, parse_trailer if intent.checksum_trailer else None)
