"""What happens without anybody asking: expiry, unfinished completions, orphans, tombstones, gauges.

Everything it does is also enforced or triggered at access, so a late sweep is never a wrong
answer; and every step is a compare-and-set, so two sweeps, or a sweep and a writer, cannot both
win (lesson E1). One thing that cannot be done keeps nothing else from being done: it is logged,
and the next sweep tries again.

Of the processes that share a database one sweeps, because more would only do the same again; when
it ends, another takes over (`duties`). Its gauges are those of all. A sweep by hand asks nobody.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from functools import partial
from typing import Final, Literal, Protocol, TypeAlias, TypeVar

import structlog

from service.clock import Clock
from service.duties import Duties
from service.files import Files
from service.leases import TERM_SECONDS
from service.metadata.base import MetadataError, MetadataStore
from service.metrics import Metrics
from service.model import File, Upload
from service.protocol.intents import Policy
from service.settling import Settling
from service.storage.base import StorageError

log = structlog.get_logger(__name__)

#: rows looked at in one go
_BATCH: Final = 200
#: links and tokens may be off by this much
LEEWAY_SECONDS: Final = 60.0
#: orphans are rare, and looking for them walks through all that storage holds
_ORPHANS_EVERY_SECONDS: Final = 3600.0
#: how long a sweep waits for what can take hours (joins, that walk) before it is over without
_PATIENCE_SECONDS: Final = 1.0
#: a wall clock that moved so much further than time did was set, or the machine slept
_JUMP_SECONDS: Final = 3600.0
#: the duties: to sweep; and the walk for orphans, which a take-over does not bring about again
_SWEEPS: Final = "sweeps"
_ORPHANS: Final = "orphans"

#: what a sweep removes: what expired, rows that remember an end, and bytes that no record needs,
#: unfinished (`leftover`) or finished (`orphan`)
Kind: TypeAlias = Literal["expired-upload", "expired-file", "tombstone", "leftover", "orphan"]

Row = TypeVar("Row", Upload, File)


class _List(Protocol[Row]):
    async def __call__(self, *, limit: int, after: Row | None) -> tuple[Row, ...]: ...


class _Steps:
    """Whether all steps so far went well; one that did not is logged and passed over."""

    failed = False

    @contextmanager
    def attempt(self, step: str, **what: str) -> Iterator[None]:
        """What is done inside may fail. `what` names the upload or file it is done to."""
        try:
            yield
        except Exception as error:
            self.failed = True
            expected = isinstance(error, MetadataError | StorageError)
            log.warning("sweep_step_failed", step=step, reason=str(error) or repr(error), **what, exc_info=not expected)


def _nobody(kind: Kind, count: int, size: int) -> None:
    """Nobody asks what was removed."""


async def _nothing() -> None:
    """Nothing else is to be done."""


class Janitor:
    """Sweeps once when told to, or forever.

    Args:
        removed: told what was removed: of which kind, how many, and how many bytes.
        event_seconds: how long events are kept; None: for ever.
        upkeep: what else is done with each sweep.
    """

    def __init__(
        self,
        metadata: MetadataStore,
        settling: Settling,
        files: Files,
        policy: Policy,
        clock: Clock,
        metrics: Metrics,
        removed: Callable[[Kind, int, int], None] = _nobody,
        event_seconds: float | None = None,
        *,
        upkeep: Callable[[], Awaitable[None]] = _nothing,
    ) -> None:
        self._metadata = metadata
        self._settling = settling
        self._files = files
        self._policy = policy
        self._clock = clock
        self._metrics = metrics
        self._removed = removed
        self._event_seconds = event_seconds
        self._upkeep = upkeep
        self._slow: asyncio.Task[_Steps] | None = None
        self._orphans_due = -math.inf

    async def run(self, interval_seconds: float, duties: Duties) -> None:
        """A sweep now and after each interval, while this process has the duty; until cancelled."""
        while True:
            async with duties.held(_SWEEPS) as lost:
                try:
                    await self._sweep_until(lost, interval_seconds, duties)
                finally:
                    await self.end()

    async def _sweep_until(self, lost: asyncio.Event, interval_seconds: float, duties: Duties) -> None:
        """After a jump of the wall clock nothing expires until holders had time to renew their
        leases by the new clock, and a clock that was set wrong a moment to be set right.
        """
        drift, calm_from = self._drift(), -math.inf
        while not lost.is_set():
            before, drift = drift, self._drift()
            if drift - before > _JUMP_SECONDS:
                log.warning("clock_jumped", seconds=round(drift - before))
                calm_from = self._clock.monotonic() + TERM_SECONDS
            expire = self._clock.monotonic() >= calm_from
            await self.sweep(expire=expire, patience_seconds=_PATIENCE_SECONDS, duties=duties)
            with suppress(TimeoutError):
                async with asyncio.timeout(interval_seconds):
                    await lost.wait()

    async def end(self) -> None:
        """Nothing goes on that a sweep began."""
        if self._slow is not None:
            self._slow.cancel()
            await asyncio.wait({self._slow})

    def _drift(self) -> float:
        return self._clock.now() - self._clock.monotonic()

    async def sweep(
        self, *, expire: bool = True, patience_seconds: float | None = None, duties: Duties | None = None
    ) -> bool:
        """What is due now is done, as far as it can be; whether all of it was.

        Args:
            expire: also what is due because of the time.
            patience_seconds: what takes longer goes on by itself, and no second time beside that;
                the sweep that sees it end well is the one that succeeded. None: as long as it takes.
            duties: orphans are left to whoever looked for them within the hour; None: only this janitor counts.
        """
        now = self._clock.now()
        steps = _Steps()
        # first, because it may be what gives the others room on a full disk
        if expire:
            with steps.attempt("expire_uploads"):
                await self._expire_uploads(now, steps)
            with steps.attempt("expire_files"):
                await self._expire_files(now, steps)
        if self._slow is not None and patience_seconds is None:
            # one that began before may have passed by what is due now
            await asyncio.wait({self._slow})
        if self._slow is None or self._slow.done():
            self._slow = asyncio.create_task(self._settle_and_reclaim(duties))
        ended, _ = await asyncio.wait({self._slow}, timeout=patience_seconds)
        settled = any(not task.cancelled() and not task.result().failed for task in ended)
        if expire:
            # last, because bytes of an ended upload are known by its row
            with steps.attempt("purge"):
                await self._purge(now)
            with steps.attempt("forget_events"):
                await self._forget_events(now)
        with steps.attempt("upkeep"):
            await self._upkeep()
        with steps.attempt("totals"):
            self._metrics.totals(await self._metadata.totals())
        well = settled and not steps.failed
        if expire and well:
            self._metrics.gc_succeeded(now)
        return well

    async def _expire_uploads(self, now: float, steps: _Steps) -> None:
        # again while there was one: partials expire after the final that names them (T-096)
        again = True
        while again:
            again = False
            async for upload in pages(partial(self._metadata.expired_uploads, now=now)):
                with steps.attempt("expire_upload", upload_id=upload.id):
                    # what a writer holds stays; the next sweep looks again
                    if await self._settling.expire(upload, now):
                        again = True
                        self._reclaimed("expired-upload", upload.offset)

    async def _expire_files(self, now: float, steps: _Steps) -> None:
        async for file in pages(partial(self._metadata.expired_files, now=now)):
            with steps.attempt("expire_file", file_id=file.id):
                if await self._files.delete(file, expired_before=now):
                    self._reclaimed("expired-file", file.manifest.size)

    def _reclaimed(self, kind: Kind, size: int) -> None:
        self._metrics.gc_reclaimed(size)
        self._removed(kind, 1, size)

    async def _purge(self, now: float) -> None:
        before = now - self._policy.tombstone_seconds
        forgotten = _BATCH
        while forgotten >= _BATCH:
            forgotten = await self._metadata.purge(before=before, link_before=now - LEEWAY_SECONDS, limit=_BATCH)
            self._removed("tombstone", forgotten, 0)

    async def _forget_events(self, now: float) -> None:
        forgotten = 0 if self._event_seconds is None else _BATCH
        while forgotten >= _BATCH:
            forgotten = await self._metadata.outbox.forget(before=now - (self._event_seconds or 0), limit=_BATCH)

    async def _settle_and_reclaim(self, duties: Duties | None) -> _Steps:
        steps = _Steps()
        # here, because on a disk that hangs it hangs as well
        with steps.attempt("free_bytes"):
            free = await self._files.free_bytes()
            if free is not None:
                self._metrics.storage_free(self._files.backend, free)
        with steps.attempt("settle_finishing"):
            await self._settle(self._metadata.finishing_uploads, steps)
        with steps.attempt("settle_finals"):
            await self._settle(self._metadata.waiting_finals, steps)
        if self._clock.monotonic() >= self._orphans_due:
            with steps.attempt("remove_orphans"):
                if duties is None or await duties.claim(_ORPHANS, _ORPHANS_EVERY_SECONDS):
                    self._orphans_due = self._clock.monotonic() + _ORPHANS_EVERY_SECONDS
                    await self._remove_orphans(steps)
        return steps

    async def _settle(self, waiting: _List[Upload], steps: _Steps) -> None:
        """Uploads whose completion a crash or a storage failure interrupted (lesson C1)."""
        async for upload in pages(waiting):
            with steps.attempt("settle", upload_id=upload.id):
                await self._settling.settle_left(upload)

    async def _remove_orphans(self, steps: _Steps) -> None:
        """What a crash or a storage failure kept from being removed in time."""
        left = 0
        try:
            async for orphan in self._files.orphans():
                held, unfinished = orphan.held, orphan.held.key is None
                left += unfinished
                if orphan.removable:
                    with steps.attempt("remove_orphan", upload_id=held.name):
                        await self._files.remove(held)
                        self._reclaimed("leftover" if unfinished else "orphan", held.size)
                        left -= unfinished
        finally:
            # also where not all could be listed: what was found is left
            self._metrics.multipart_orphans(left)


async def pages(ask: _List[Row]) -> AsyncIterator[Row]:
    """Each row of a list of the store's once, also behind those that stay on it."""
    last: Row | None = None
    while page := await ask(limit=_BATCH, after=last):
        for row in page:
            yield row
        last = page[-1]
