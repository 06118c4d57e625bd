"""Who may write an upload, and how a newer request gets its turn.

The lease itself is a row in the metadata store with an epoch that rises each time it changes
hands; storage and every commit carry the epoch, so a holder that slept through its term can do no
harm (contract, section 5, rule 4). This module adds the manners: ask the holder to stop, wait for
it to commit what it has, then take. Within one process asking is a call; between processes it is
a mark in the row, which each process looks for in one query for all its leases. HEAD asks more
politely: only who is silent lets go, and who is not takes the mark away.

The owner string is random per process, so a restarted one is never mistaken for its predecessor
(lesson L4: no process ids, no lock files).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from typing import Final, TypeAlias

import structlog

from service.clock import Clock
from service.metadata.base import Asked, Conflict, Lease, LeaseHeld, MetadataError, MetadataStore, MetadataUnavailable
from service.metrics import Metrics
from service.model import Upload, UploadId
from service.protocol.problems import refuse

log = structlog.get_logger(__name__)

#: sees an upload, and raises what speaks against it
Judge: TypeAlias = Callable[[Upload], object]

#: a holder that does not renew for this long has died
TERM_SECONDS: Final = 10.0
#: how long a newcomer waits for the holder to stop (T-0D1)
PATIENCE_SECONDS: Final = 1.0
#: how often leases held here are looked after
BEAT_SECONDS: Final = 0.25
#: a writer that got no byte for this long makes way for HEAD (T-0D1)
SILENT_SECONDS: Final = 2.0
#: how long a writer may go on after it began, before a newer one gets its turn; well below `PATIENCE_SECONDS`
TURN_SECONDS: Final = 0.5
#: one that got no byte for this long has no turn to lose
_LIVELY_SECONDS: Final = 0.25
_RENEW_EVERY: Final = 12
#: how often one who asked another process looks whether it has let go
_LOOK_SECONDS: Final = BEAT_SECONDS / 5


class NotFree(Exception):
    """The upload is held, or not as plain as was hoped: look, decide, and ask again."""


class Holder:
    """A request that holds a lease in this process, or is about to."""

    def __init__(self, stop: Callable[[], None], silence: Callable[[], float] | None, arrived: float) -> None:
        self.stop = stop
        self._silence = silence
        #: by the clock of the event loop: when its request came
        self.arrived = arrived
        #: by the clock of the event loop
        self.began = 0.0
        #: of its lease
        self.epoch = -1
        #: whether the lease was given back by the holder's last step
        self.returned = False
        self.released = asyncio.Event()

    def silent_seconds(self) -> float:
        """How long ago it got its last byte; 0 for one that waits for none."""
        return 0.0 if self._silence is None else self._silence()

    def turn_seconds(self) -> float:
        """How long it may go on before it makes way."""
        if self._silence is None or self._silence() >= _LIVELY_SECONDS:
            return 0.0
        return max(0.0, self.began + TURN_SECONDS - asyncio.get_running_loop().time())


@dataclass(slots=True)
class _Queue:
    """Newcomers of one upload take their turns in order of arrival: the newest comes last and wins."""

    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    #: whether the one whose turn it is found the lease held
    held: bool = False


class Leases:
    """The leases of one process. `run` must be running while any is held."""

    def __init__(
        self,
        metadata: MetadataStore,
        clock: Clock,
        metrics: Metrics,
        process: str,
        *,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> None:
        self._metadata = metadata
        self._clock = clock
        self._metrics = metrics
        self._process = process
        self._patience_seconds = patience_seconds
        self._holders: dict[UploadId, Holder] = {}
        self._queues: dict[UploadId, _Queue] = {}
        self._returning: set[asyncio.Future[None]] = set()
        #: leases whose release failed
        self._unreturned: list[Lease] = []
        self._serial = 0

    @contextlib.asynccontextmanager
    async def hold(
        self,
        upload_id: UploadId,
        *,
        stop: Callable[[], None],
        silent_seconds: Callable[[], float] | None = None,
        judge: Judge | None = None,
        arrived: float | None = None,
    ) -> AsyncIterator[tuple[Lease, Upload]]:
        """The lease, and the upload as committed by whoever held it before.

        Args:
            stop: called once a newer request wants the upload; must make the holder finish soon.
            silent_seconds: of a writer, how long ago it got its last byte.
            judge: decides before anything changes, which saves looking at the upload first; see
                `MetadataStore.acquire_lease`. Nobody is asked to stop then.
            arrived: by the clock of the event loop, if the request came before it asks: of those of
                this process only older ones are asked to stop.

        Raises:
            NotFree: there is a judge, and somebody holds the upload, or it is not live.
            Refusal: locked (423), worth a retry, when the holder cannot be stopped in time (T-0D2), or came later.
            MetadataUnavailable: worth a retry; it did not answer in time, so nobody knows of a holder.
            Conflict: the upload is not live any more.
        """
        holder = Holder(stop, silent_seconds, asyncio.get_running_loop().time() if arrived is None else arrived)
        lease, upload = await self._acquire(upload_id, holder, judge)
        try:
            yield lease, upload
        finally:
            await asyncio.shield(self._release(lease, holder))

    def returned(self, lease: Lease) -> None:
        """The lease, held here, was given back by a step that said so (`Advance.releases`)."""
        holder = self._holders.get(lease.upload_id)
        # it may be a newer one's already: the lease was free from that step on
        if holder is not None and holder.epoch == lease.epoch:
            holder.returned = True

    def held_here(self, upload_id: UploadId) -> bool:
        """Whether a request of this process holds the upload."""
        return upload_id in self._holders

    async def _acquire(self, upload_id: UploadId, holder: Holder, judge: Judge | None) -> tuple[Lease, Upload]:
        began = self._clock.monotonic()
        self._serial += 1
        owner = f"{self._process}:{self._serial}"
        if judge is not None and (upload_id in self._holders or upload_id in self._queues):
            raise NotFree
        queue = self._queues.setdefault(upload_id, _Queue())
        try:
            async with asyncio.timeout(self._patience_seconds), queue.turn:
                taken, asked = await self._take_when_free(upload_id, owner, queue, judge, holder.arrived)
                holder.began = asyncio.get_running_loop().time()
                holder.epoch = taken[0].epoch
                self._holders[upload_id] = holder
        except TimeoutError:
            if not queue.held and upload_id not in self._holders:
                raise MetadataUnavailable("the lease could not be asked for in time") from None
            raise refuse("locked", "another request holds the upload; try again", retry_after=1, close=True) from None
        finally:
            if not queue.turn.locked() and upload_id not in self._holders:
                self._queues.pop(upload_id, None)
        self._metrics.lock_waited(self._clock.monotonic() - began)
        if asked:
            self._metrics.lock_taken_over()
        return taken

    async def _take_when_free(
        self, upload_id: UploadId, owner: str, queue: _Queue, judge: Judge | None, arrived: float
    ) -> tuple[tuple[Lease, Upload], bool]:
        """The lease, and whether a holder had to be asked for it."""
        queue.held = False
        while True:
            try:
                return await self._take(upload_id, owner, self._clock.now(), judge), queue.held
            except (LeaseHeld, Conflict) as error:
                if judge is not None:
                    raise NotFree from error
                if isinstance(error, Conflict):
                    raise
                queue.held = True
                await self._ask(upload_id, arrived)

    async def _take(self, upload_id: UploadId, owner: str, now: float, judge: Judge | None) -> tuple[Lease, Upload]:
        """The lease; if the caller gives up meanwhile, a lease that comes too late is given back."""
        taking = asyncio.ensure_future(
            self._metadata.acquire_lease(upload_id, owner, now=now, until=now + TERM_SECONDS, judge=judge)
        )
        try:
            return await asyncio.shield(taking)
        except asyncio.CancelledError:
            taking.add_done_callback(self._give_back)
            raise

    def _give_back(self, taking: asyncio.Future[tuple[Lease, Upload]]) -> None:
        if not taking.cancelled() and taking.exception() is None:
            returning = asyncio.ensure_future(self._return(taking.result()[0]))
            self._returning.add(returning)
            returning.add_done_callback(self._returning.discard)

    async def _ask(self, upload_id: UploadId, arrived: float) -> None:
        """Returns once it is worth trying again; the caller's time-out bounds it."""
        here = self._holders.get(upload_id)
        if here is not None:
            if here.arrived > arrived:
                raise refuse("locked", "a newer request took the upload over", retry_after=1, close=True)
            while (turn := here.turn_seconds()) and not here.released.is_set():
                await _within(min(turn, _LOOK_SECONDS), here.released)
            here.stop()
            await here.released.wait()
            return
        await self._metadata.ask_lease(upload_id, Asked.ANYHOW)
        await asyncio.sleep(_LOOK_SECONDS)

    async def _release(self, lease: Lease, holder: Holder) -> None:
        try:
            if not holder.returned:
                await self._return(lease)
        finally:
            if self._holders.get(lease.upload_id) is holder:
                del self._holders[lease.upload_id]
            holder.released.set()
            queue = self._queues.get(lease.upload_id)
            if queue is not None and not queue.turn.locked():
                self._queues.pop(lease.upload_id, None)

    async def _return(self, lease: Lease) -> None:
        """Free; or else tried again with each beat, which renews by process and would keep it alive for ever."""
        try:
            await self._metadata.release_lease(lease)
        except MetadataError:
            self._unreturned.append(lease)
            log.warning("lease_release_failed", upload_id=lease.upload_id)

    async def _return_late(self) -> None:
        late, self._unreturned = self._unreturned, []
        for lease in late:
            await self._return(lease)

    async def hush(self, upload: Upload) -> bool:
        """A writer that fell silent has committed and let go; a lively one is left alone (T-0D1, L3).

        Returns whether the committed state may have changed.

        Raises:
            Refusal: locked, when a silent writer cannot be stopped in time (T-0D2).
        """
        holder = self._holders.get(upload.id)
        if holder is not None:
            if holder.silent_seconds() < SILENT_SECONDS:
                return False
            holder.stop()
            await self._wait_released(holder)
            return True
        if not upload.leased or self._clock.now() - upload.updated_at < SILENT_SECONDS:
            return False
        return await self._hush_elsewhere(upload.id)

    async def _wait_released(self, holder: Holder) -> None:
        try:
            async with asyncio.timeout(self._patience_seconds):
                await holder.released.wait()
        except TimeoutError:
            raise refuse("locked", "the upload is busy; ask again", retry_after=1) from None

    async def _hush_elsewhere(self, upload_id: UploadId) -> bool:
        deadline = self._clock.monotonic() + self._patience_seconds
        asked: Lease | None = None
        while True:
            lease = await self._metadata.lease(upload_id)
            if lease is None or lease.until <= self._clock.now():
                return asked is not None
            if asked is None:
                asked = lease
                await self._metadata.ask_lease(upload_id, Asked.IF_SILENT)
            elif lease.epoch != asked.epoch:
                # it has gone on to somebody who has only just begun
                return True
            elif lease.asked is Asked.NOT:
                return False
            if self._clock.monotonic() >= deadline:
                raise refuse("locked", "the upload is busy; ask again", retry_after=1)
            await asyncio.sleep(_LOOK_SECONDS)

    async def _answer(self, upload_id: UploadId, asked: Asked) -> None:
        holder = self._holders.get(upload_id)
        if holder is None:
            return
        if asked is Asked.ANYHOW:
            # else at one of the next beats
            if holder.turn_seconds() < BEAT_SECONDS / 2:
                holder.stop()
        elif holder.silent_seconds() >= SILENT_SECONDS:
            holder.stop()
        else:
            await self._metadata.keep_lease(upload_id, self._process)

    async def run(self) -> None:
        """Renews what is held here and passes on what others ask for. Runs until cancelled."""
        beat = 0
        while True:
            await asyncio.sleep(BEAT_SECONDS)
            beat += 1
            await self._return_late()
            if not self._holders:
                continue
            try:
                if beat % _RENEW_EVERY == 0:
                    await self._metadata.renew_leases(self._process, until=self._clock.now() + TERM_SECONDS)
                for upload_id, asked in await self._metadata.asked_leases(self._process):
                    await self._answer(upload_id, asked)
            except MetadataError:
                log.warning("lease_beat_failed")


async def _within(seconds: float, event: asyncio.Event) -> None:
    """Returns once it is set, or so much later."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await event.wait()
