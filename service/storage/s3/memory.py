"""One limit for all bytes that wait in memory to be stored, or were fetched for a reader (lesson D2).

Memory is taken with bytes in hand, never ahead of them, so that a slow client holds no more than
it has sent (lesson D1). Whoever wants more than is left waits in order of arrival. If nothing that
is held is on its way to the store, whoever gathers the most is asked to store what it has.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict, deque
from typing import Final, Protocol

from service.storage.s3.chunks import Chunks


class Gatherer(Protocol):
    """Holds bytes that nothing moves yet."""

    @property
    def gathered(self) -> int:
        """Bytes that `spill` would move."""
        ...

    def spill(self) -> None:
        """What is gathered starts on its way to the store; its memory comes back when it is there, or at once."""
        ...


class Memory:
    """Bytes taken and given back, in one event loop."""

    #: share of the limit that recently stored tails may use while nobody else wants it
    _KEPT: Final = 4

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.used = 0
        #: of `used`: on the way to the store, and so given back soon
        self._leaving = 0
        self._waiting: deque[tuple[asyncio.Future[None], int]] = deque()
        self._gatherers: set[Gatherer] = set()
        self._kept: OrderedDict[str, bytes | Chunks] = OrderedDict()
        self._kept_bytes = 0

    def join(self, gatherer: Gatherer) -> None:
        """The gatherer may be asked to spill."""
        self._gatherers.add(gatherer)

    def withdraw(self, gatherer: Gatherer) -> None:
        """It is not asked any more."""
        self._gatherers.discard(gatherer)

    def try_take(self, size: int, *, spare: int = 0) -> bool:
        """So many bytes are taken, if they are there and nobody waits.

        Args:
            spare: bytes that must be left to be taken after that, for what is more urgent.
        """
        if spare and self.used - self._kept_bytes + size + spare > self.limit:
            return False
        if self._waiting or not self._make_room(size):
            return False
        self.used += size
        return True

    async def take(self, size: int) -> None:
        """So many bytes are taken. More than the limit are, once nothing else is: an upload may be of larger times."""
        if self.try_take(size):
            return
        waiting: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting.append((waiting, size))
        self._relieve()
        try:
            await waiting
        except asyncio.CancelledError:
            if waiting.done() and not waiting.cancelled():
                self.give(size)
            else:
                self._serve()
            raise

    def give(self, size: int, *, leaving: bool = False) -> None:
        """Bytes are not held any more."""
        self.used -= size
        if leaving:
            self._leaving -= size
        self._serve()

    def leave(self, size: int) -> None:
        """Bytes that are held are on their way to the store."""
        self._leaving += size

    def look_again(self) -> None:
        """More may be gathered than when somebody last had to wait."""
        if self._waiting:
            self._relieve()

    def _serve(self) -> None:
        while self._waiting:
            waiting, size = self._waiting[0]
            if not waiting.done():
                if not self._make_room(size):
                    self._relieve()
                    return
                self.used += size
                waiting.set_result(None)
            self._waiting.popleft()

    def _make_room(self, size: int) -> bool:
        while self.used + size > self.limit and self._kept:
            self._forget_oldest()
        return self.used + size <= max(self.limit, size)

    def _relieve(self) -> None:
        """Enough is leaving for whoever waits first, or as much as can."""
        # one that spilled for good has been served from already, so the first may be another now
        while self._waiting and self._leaving < self._waiting[0][1]:
            fullest = max(self._gatherers, key=lambda gatherer: gatherer.gathered, default=None)
            if fullest is None or not fullest.gathered:
                return
            fullest.spill()

    # --- tails that were just stored ----------------------------------------------------------

    def keep(self, key: str, data: bytes | Chunks) -> bool:
        """The bytes of an immutable object are at hand as long as nobody needs the room. Whether they are at all."""
        size = len(data)
        if size > self.limit // self._KEPT or self._waiting or self.used + size > self.limit:
            return False
        while self._kept_bytes + size > self.limit // self._KEPT:
            self._forget_oldest()
        self.forget(key)
        self._kept[key] = data
        self._kept_bytes += size
        self.used += size
        return True

    def kept(self, key: str) -> bytes | Chunks | None:
        """The bytes of the object, if they are at hand."""
        data = self._kept.get(key)
        if data is not None:
            self._kept.move_to_end(key)
        return data

    def forget(self, key: str) -> None:
        """The object's bytes are not at hand any more."""
        data = self._kept.pop(key, None)
        if data is not None:
            self._kept_bytes -= len(data)
            self.used -= len(data)

    def forget_all(self, start: str) -> None:
        """As `forget`, for all whose keys begin so."""
        for key in [key for key in self._kept if key.startswith(start)]:
            self.forget(key)

    def _forget_oldest(self) -> None:
        self.forget(next(iter(self._kept)))
