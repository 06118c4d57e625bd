"""What happens without anybody asking: expiry, unfinished completions, tombstones, gauges.

Everything it does is also enforced or triggered at access, so a late sweep is never a wrong
answer; and every step is a compare-and-set, so two sweeps, or a sweep and a writer, cannot both
win (lesson E1).
"""

from __future__ import annotations

import asyncio
from typing import Final

import structlog

from service.clock import Clock
from service.files import Files
from service.metadata.base import MetadataError, MetadataStore
from service.metrics import Metrics
from service.protocol.intents import Policy
from service.settling import Settling
from service.storage.base import StorageError

log = structlog.get_logger(__name__)

#: rows looked at in one go
_BATCH: Final = 200
#: links and tokens may be off by this much
_LEEWAY_SECONDS: Final = 60.0


class Janitor:
    """Sweeps once when told to, or forever."""

    def __init__(
        self,
        metadata: MetadataStore,
        settling: Settling,
        files: Files,
        policy: Policy,
        clock: Clock,
        metrics: Metrics,
    ) -> None:
        self._metadata = metadata
        self._settling = settling
        self._files = files
        self._policy = policy
        self._clock = clock
        self._metrics = metrics

    async def run(self, interval_seconds: float) -> None:
        """A sweep now and after each interval, until cancelled. A failed one is tried again."""
        while True:
            try:
                await self.sweep()
            except (MetadataError, StorageError) as error:
                log.warning("sweep_failed", error=str(error))
            except Exception:
                log.exception("sweep_failed")
            await asyncio.sleep(interval_seconds)

    async def sweep(self) -> None:
        """What is due now is done."""
        now = self._clock.now()
        await self._settle()
        await self._expire_uploads(now)
        await self._expire_files(now)
        before = now - self._policy.tombstone_seconds
        while await self._metadata.purge(before=before, link_before=now - _LEEWAY_SECONDS, limit=_BATCH) >= _BATCH:
            pass
        self._metrics.totals(await self._metadata.totals())
        self._metrics.gc_succeeded(now)

    async def _settle(self) -> None:
        """Uploads whose completion a crash or a storage failure interrupted (lesson C1)."""
        waiting = (
            *await self._metadata.finishing_uploads(limit=_BATCH),
            *await self._metadata.waiting_finals(limit=_BATCH),
        )
        for upload in waiting:
            await self._settling.settle_quietly(upload.id)

    async def _expire_uploads(self, now: float) -> None:
        while batch := await self._metadata.expired_uploads(now=now, limit=_BATCH):
            gone = [upload for upload in batch if await self._settling.expire(upload, now)]
            self._metrics.gc_reclaimed(sum(upload.offset for upload in gone))
            if len(gone) < len(batch):
                # what a writer holds stays; the next sweep looks again
                break

    async def _expire_files(self, now: float) -> None:
        while batch := await self._metadata.expired_files(now=now, limit=_BATCH):
            for file in batch:
                await self._files.delete(file)
                self._metrics.gc_reclaimed(file.manifest.size)
