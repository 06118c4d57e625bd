"""What one process at a time does for all that share the database (lesson E1).

A duty is a row with a term. Whoever has it renews it long before the term runs out, and gives it
back when it stops; whoever has not looks again a few times in each term. So after a kill another
process is at it a term later at the latest, and after an orderly stop at its next look.

A process that slept past its term may go on for a moment beside the next one. A duty spares work
and noise, therefore, and nothing that has it may rely on being alone.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

import structlog

from service.clock import Clock
from service.metadata.base import MetadataError, MetadataStore

log = structlog.get_logger(__name__)

#: whoever does not renew for this long has died
TERM_SECONDS: Final = 15.0
#: how often a duty is renewed, and looked for by those who have it not
LOOK_SECONDS = 5.0


class Duties:
    """The duties of one process.

    Args:
        process: random per process, so that a restarted one is never mistaken for its predecessor.
    """

    def __init__(self, metadata: MetadataStore, clock: Clock, process: str) -> None:
        self._metadata = metadata
        self._clock = clock
        self._process = process

    @asynccontextmanager
    async def held(self, name: str) -> AsyncIterator[asyncio.Event]:
        """Entered once the duty is this process's, which can take for ever; given back at the end.

        The event is set once another process has it.
        """
        try:
            while not await self._take(name):  # noqa: ASYNC110 - the event would be in another process
                await asyncio.sleep(LOOK_SECONDS)
            log.info("duty_taken", duty=name)
            lost = asyncio.Event()
            keeping = asyncio.create_task(self._keep(name, lost))
            try:
                yield lost
            finally:
                keeping.cancel()
                await asyncio.wait({keeping})
        finally:
            # also where a stop came just as it was taken
            await self._give_back(name)

    async def claim(self, name: str, seconds: float) -> bool:
        """Whether nobody claimed it in the so many seconds before; for what is done now and then, and not renewed.

        Raises:
            MetadataError: worth a retry.
        """
        now = self._clock.now()
        return await self._metadata.take_duty(name, secrets.token_hex(8), now=now, until=now + seconds)

    async def _keep(self, name: str, lost: asyncio.Event) -> None:
        while not lost.is_set():
            await asyncio.sleep(LOOK_SECONDS)
            try:
                if not await self._renew(name):
                    log.warning("duty_lost", duty=name)
                    lost.set()
            except MetadataError as error:
                # whoever takes it meanwhile is found at the next try
                log.warning("duty_unknown", duty=name, reason=str(error))

    async def _take(self, name: str) -> bool:
        try:
            return await self._renew(name)
        except MetadataError as error:
            log.warning("duty_unknown", duty=name, reason=str(error))
            return False

    async def _renew(self, name: str) -> bool:
        now = self._clock.now()
        return await self._metadata.take_duty(name, self._process, now=now, until=now + TERM_SECONDS)

    async def _give_back(self, name: str) -> None:
        try:
            await self._metadata.give_back_duty(name, self._process)
        except MetadataError as error:
            log.warning("duty_kept", duty=name, reason=str(error))
