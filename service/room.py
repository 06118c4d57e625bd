"""Whether there is room for another file beside what open uploads were promised (lesson D5)."""

from __future__ import annotations

from typing import Final

from service.clock import Clock
from service.metadata.base import MetadataStore
from service.protocol.intents import Policy
from service.protocol.problems import Refusal, refuse
from service.receiving import storage_problem
from service.storage.base import Storage, StorageError

#: what open uploads were promised is asked for only where the room left is under this many largest uploads
_AMPLE: Final = 16
#: how long an answer is good for, and how much must be left by it beside what is asked for since
_KNOWN_SECONDS: Final = 1.0
_PLENTY_BYTES: Final = 8 * 2**30


class Room:
    """Asked before each creation; asks storage and the records once a second while there is plenty."""

    def __init__(self, metadata: MetadataStore, storage: Storage, policy: Policy, clock: Clock) -> None:
        self._metadata = metadata
        self._storage = storage
        self._policy = policy
        self._clock = clock
        #: what was left, less what was asked for since; None: there is no limit
        self._left: int | None = 0
        self._known_until = float("-inf")

    async def check(self, length: int | None) -> None:
        """Returns if a file of that length, or one of unknown length, can begin.

        Raises:
            Refusal: storage-full, storage-unavailable; worth a retry.
        """
        wanted = length or 0
        if self._clock.monotonic() >= self._known_until or (
            self._left is not None and self._left - wanted < _PLENTY_BYTES
        ):
            await self._look(wanted)
        if self._left is None:
            return
        if self._left < wanted:
            raise refuse("storage-full", "there is no room for a file of this length", retry_after=60, close=True)
        self._left -= wanted

    async def _look(self, wanted: int) -> None:
        try:
            free = await self._storage.free_bytes()
        except StorageError as error:
            raise Refusal(storage_problem(error)) from error
        if free is not None:
            ample = wanted + _AMPLE * (self._policy.max_size or 2**32)
            promised = 0 if free >= ample else await self._metadata.promised_bytes()
            # without any room at all nothing can begin, of whatever length
            free = free - promised if free > 0 else -1
        self._left, self._known_until = free, self._clock.monotonic() + _KNOWN_SECONDS
