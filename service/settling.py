"""What moves uploads on without, or against, their client: finishing, finals, expiry, termination."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import structlog

from service.clock import Clock
from service.events import EventMaker
from service.files import Files, discard_all
from service.finishing import Finisher
from service.leases import Leases
from service.metadata.base import Conflict, Ending, MetadataError, MetadataStore
from service.model import ConcatKind, State, Upload, UploadId
from service.protocol.decide import refuse_suspect
from service.protocol.problems import Refusal, refuse
from service.storage.base import Storage, StorageError
from service.tasks import Tasks

log = structlog.get_logger(__name__)

_OPEN: Final = (State.RECEIVING,)
_OPEN_OR_PARTIAL: Final = (State.RECEIVING, State.READY)


class Settling:
    """Each step is idempotent and guarded by the lease or a compare-and-set: anyone may take it, twice."""

    def __init__(
        self,
        *,
        metadata: MetadataStore,
        storage: Storage,
        leases: Leases,
        finisher: Finisher,
        files: Files,
        clock: Clock,
        events: EventMaker,
        tasks: Tasks,
        changed: Callable[[str], None],
    ) -> None:
        self._metadata = metadata
        self._storage = storage
        self._leases = leases
        self._finisher = finisher
        self._files = files
        self._clock = clock
        self._events = events
        self._tasks = tasks
        self._changed = changed

    async def settle(self, upload_id: UploadId) -> Upload:
        """The upload, one step further if it waits for nobody's bytes. A running writer commits and stops first.

        Raises:
            Refusal: locked; hook-unavailable. Conflict: not live. StorageError, MetadataError: worth a retry.
        """
        async with self._leases.hold(upload_id, stop=no_stop) as (lease, upload):
            refuse_suspect(upload)
            upload = await self._finisher.ready(upload, lease)
            return await self._finisher.finish(upload, lease)

    async def settle_quietly(self, upload_id: UploadId) -> None:
        """As `settle`; somebody else at it, or storage away: the next request or the janitor comes again."""
        try:
            await self.settle(upload_id)
        except (Refusal, StorageError, MetadataError) as error:
            log.info("settle_postponed", upload_id=upload_id, error=str(error))
        except Exception:
            # one that cannot be settled at all must not keep others that come after it
            log.exception("settle_failed", upload_id=upload_id)

    async def settle_left(self, upload: Upload) -> None:
        """As `settle`, unless somebody is at it, it is suspect, or it has ended meanwhile.

        Raises:
            StorageError, MetadataUnavailable: worth a retry.
        """
        if upload.suspect or self._leases.held_here(upload.id):
            return
        try:
            await self.settle(upload.id)
        except (Refusal, Conflict) as error:
            log.info("settle_postponed", upload_id=upload.id, error=str(error))

    def go_on(self, upload: Upload) -> None:
        """Settles by itself, unless it is suspect or a request here is at it."""
        if not upload.suspect and not self._leases.held_here(upload.id):
            self._tasks.spawn(self._go_on(upload))

    async def _go_on(self, upload: Upload) -> None:
        # asking often for a final that waits for bytes takes no lease
        if upload.state is State.FINISHING or not await self._finisher.waits(upload):
            await self.settle_quietly(upload.id)

    def checked(self, upload: Upload) -> None:
        """The upload is suspect no more: it goes on by itself if it can, and whoever waits looks again."""
        self._changed(upload.id)
        if upload.state is State.FINISHING:
            self.go_on(upload)

    def moved(self, upload: Upload) -> None:
        """The upload became ready or ended: whoever waits looks again, and so do finals made of it."""
        self._changed(upload.id)
        self._changed(upload.file_id)
        if upload.concat_kind is ConcatKind.PARTIAL:
            self._tasks.spawn(self._settle_finals(upload.id))

    async def _settle_finals(self, partial_id: UploadId) -> None:
        for final in await self._metadata.pending_finals(partial_id):
            await self.settle_quietly(final)

    async def terminate(self, upload: Upload) -> None:
        """The upload, and the file it made, are gone; a running writer was stopped (T-0B0 to T-0B5).

        Raises:
            Refusal: not-found (terminated meanwhile), locked.
        """
        try:
            async with self._leases.hold(upload.id, stop=no_stop) as (lease, held):
                now = self._clock.now()
                await self._files.forget_of(held)
                ending = Ending(State.TERMINATED, now, events=[self._events.of_upload("terminated", held, now)])
                await self._metadata.end_upload(held.id, epoch=lease.epoch, ending=ending)
                await discard_all(self._storage, held.id)
        except Conflict:
            raise refuse("not-found", "the upload was terminated before") from None
        log.info("upload_terminated", upload_id=upload.id)
        self.moved(upload)

    async def expire(self, upload: Upload, now: float) -> bool:
        """The upload is expired and its bytes gone, unless it moved on or a writer holds it (T-095).

        Raises:
            StorageError: worth a retry; the upload is expired, its bytes are an orphan.
        """
        ending = Ending(State.EXPIRED, now, free_link=True, events=[self._events.of_upload("expired", upload, now)])
        try:
            await self._metadata.end_upload(
                upload.id,
                epoch=upload.epoch,
                ending=ending,
                expected=_OPEN_OR_PARTIAL if upload.concat_kind is ConcatKind.PARTIAL else _OPEN,
                unexpired_before=now,
            )
        except Conflict:
            return False
        log.info("upload_expired", upload_id=upload.id, offset=upload.offset)
        self.moved(upload)
        # what a partial left may be a finished object, and none of them ever was a file
        await self._storage.discard(upload.id, finished=True)
        return True


def no_stop() -> None:
    """A short step: a newcomer waits for it, or is told to come again."""
