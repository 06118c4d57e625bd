"""The event feed: an issuer's events in the order they were written, from wherever its reader was."""

from __future__ import annotations

import asyncio
from typing import Final

from service.clock import Clock
from service.control_models import EventInfo, EventPage
from service.events import event_json
from service.metadata.base import MetadataStore

#: rows looked at in one go, and how often for one answer: others' events are passed over
_BATCH: Final = 500
_BATCHES: Final = 20
#: how often a waiting reader is looked after; other processes write events too
_POLL_SECONDS: Final = 0.5


class Feed:
    """Reads the outbox."""

    def __init__(self, metadata: MetadataStore, clock: Clock, *, poll_seconds: float = _POLL_SECONDS) -> None:
        self._metadata = metadata
        self._clock = clock
        self._poll_seconds = poll_seconds

    async def page(self, issuer: str, *, after: int, limit: int, wait_seconds: float = 0) -> EventPage:
        """The issuer's events behind the cursor, `limit` at most, as soon as there is one, or none after the wait."""
        until = self._clock.monotonic() + wait_seconds
        while True:
            page, after = await self._look(issuer, after, limit)
            left = until - self._clock.monotonic()
            if page or left <= 0:
                return EventPage(events=page, next=str(after))
            await asyncio.sleep(min(left, self._poll_seconds))

    async def _look(self, issuer: str, after: int, limit: int) -> tuple[list[EventInfo], int]:
        """What is there now, and the cursor behind all that was looked at."""
        page: list[EventInfo] = []
        for _ in range(_BATCHES):
            found = await self._metadata.events(after=after, limit=min(_BATCH, limit))
            for seq, event in found:
                after = seq
                if event.issuer == issuer:
                    page.append(EventInfo(**event_json(event)))
                if len(page) == limit:
                    return page, after
            if len(found) < min(_BATCH, limit):
                break
        return page, after
