"""The event feed: an issuer's events in the order they were written, from wherever its reader was."""

from __future__ import annotations

import asyncio
import math
from typing import Final

from service.clock import Clock
from service.control_models import EventInfo, EventPage
from service.events import payload_of
from service.metadata.base import MetadataStore
from service.metadata.control import ControlStore

#: rows looked at in one go, and how often for one answer: others' events are passed over
_BATCH: Final = 500
_BATCHES: Final = 20
#: how often it is looked for news while somebody waits; other processes write events too
_LOOK_SECONDS: Final = 0.5


class Feed:
    """Reads the outbox. However many wait, one of them looks whether there is anything new."""

    def __init__(self, metadata: MetadataStore, control: ControlStore, clock: Clock) -> None:
        self._metadata = metadata
        self._control = control
        self._clock = clock
        self._newest = 0
        self._looked_at = -math.inf
        self._looking = asyncio.Lock()

    async def page(self, issuer: str, *, after: int, limit: int, wait_seconds: float = 0) -> EventPage:
        """The issuer's events behind the cursor, `limit` at most, as soon as there is one, or none after the wait."""
        until = self._clock.monotonic() + wait_seconds
        while True:
            page, after = await self._read(issuer, after, limit)
            if page or self._clock.monotonic() >= until:
                return EventPage(events=page, next=str(after))
            await self._news(after, until)

    async def _news(self, after: int, until: float) -> None:
        """Returns a little later, once there is an event behind the cursor, or the time is over."""
        while (left := until - self._clock.monotonic()) > 0:
            await asyncio.sleep(min(left, _LOOK_SECONDS))
            async with self._looking:
                if self._clock.monotonic() - self._looked_at >= _LOOK_SECONDS / 2:
                    self._newest = await self._control.newest_event()
                    self._looked_at = self._clock.monotonic()
            if self._newest > after:
                return

    async def _read(self, issuer: str, after: int, limit: int) -> tuple[list[EventInfo], int]:
        """What is there now, and the cursor behind all that was looked at."""
        page: list[EventInfo] = []
        for _ in range(_BATCHES):
            found = await self._metadata.events(after=after, limit=_BATCH)
            for seq, event in found:
                after = seq
                if event.issuer == issuer:
                    page.append(EventInfo.model_validate(payload_of(event)))
                if len(page) == limit:
                    return page, after
            if len(found) < _BATCH:
                break
        return page, after
