"""Body buffers from one pool with one limit (invariant 8: bounded memory).

Each buffer is a mapping of its own, not a piece of the heap: where two sizes come and go in any order a
heap grows to twice what was ever in use, and stays so. The first touch of a fresh one costs twenty times
what it costs to fill one that was used before, so those that are free are kept for the next bodies, and
go back to the system once nobody has wanted them for a while.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from functools import partial
from mmap import MAP_PRIVATE, mmap
from typing import Final

#: what storage likes to be handed at once
BUFFER_BYTES: Final = 2**20
#: what a small body, or any body in hard times, gets
SMALL_BYTES: Final = 64 * 2**10
#: of all that are free, bytes that are kept however long nobody wants them
KEPT_BYTES: Final = 16 * BUFFER_BYTES
#: how long more than that is kept, at least; twice as long at most
_IDLE_SECONDS: Final = 10.0

Buffer = mmap


class BufferPool:
    """Hands out buffers of two sizes while the limit lasts; what it keeps for the next counts against that too."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        self._large = _Free(BUFFER_BYTES)
        self._small = _Free(SMALL_BYTES)
        #: oldest first, with what each wants
        self._waiters: deque[tuple[asyncio.Future[Buffer], int]] = deque()

    @property
    def free_bytes(self) -> int:
        """Memory that is held beside what is used."""
        return self._large.bytes + self._small.bytes

    @property
    def tight(self) -> bool:
        """Half the limit is in use: bodies get small buffers."""
        return self.used_bytes * 2 >= self.limit_bytes

    @property
    def exhausted(self) -> bool:
        """Not even a small buffer is left: a new transfer is refused."""
        return self.used_bytes + SMALL_BYTES > self.limit_bytes

    def take_now(self, wanted: int) -> Buffer | None:
        """A buffer for about `wanted` bytes if there is one and nobody waits for it. Give it back."""
        return None if self._waiters else self._cut(wanted)

    async def take(self, wanted: int) -> Buffer:
        """The same as soon as the limit allows, in order of arrival."""
        buffer = self.take_now(wanted)
        if buffer is not None:
            return buffer
        waiter: asyncio.Future[Buffer] = asyncio.get_running_loop().create_future()
        self._waiters.append((waiter, wanted))
        try:
            return await waiter
        except asyncio.CancelledError:
            if not waiter.cancelled():
                # it had been served, and nobody is there to use it
                self.give(waiter.result())
            raise

    def give(self, buffer: Buffer) -> None:
        """The buffer is not used any more; all are served that it, or the room it leaves, is enough for."""
        self.used_bytes -= len(buffer)
        self._put(buffer)
        self._serve()

    def part_with(self, buffer: Buffer) -> Callable[[], None]:
        """The buffer counts against a limit of somebody else's now, who calls what is returned, once, after its use."""
        self.used_bytes -= len(buffer)
        self._serve()
        return partial(self._put, buffer)

    def _put(self, buffer: Buffer) -> None:
        if self.used_bytes + self.free_bytes + len(buffer) <= self.limit_bytes:
            (self._large if len(buffer) == BUFFER_BYTES else self._small).put(buffer)

    def _serve(self) -> None:
        while self._waiters:
            waiter, wanted = self._waiters[0]
            if not waiter.done():
                try:
                    served = self._cut(wanted)
                except OSError as error:
                    # the system has none to give; the waiter's trouble, and not of whoever gave one back
                    waiter.set_exception(error)
                    continue
                if served is None:
                    break
                waiter.set_result(served)
            self._waiters.popleft()

    def give_back(self) -> None:
        """What was free all the time since this was last called goes back to the system, but for a few."""
        kept = KEPT_BYTES
        for free in (self._large, self._small):
            kept -= free.shed(kept)

    async def run(self) -> None:
        """Gives back what nobody wants. Runs until cancelled."""
        while True:
            await asyncio.sleep(_IDLE_SECONDS)
            self.give_back()

    def _cut(self, wanted: int) -> Buffer | None:
        size = SMALL_BYTES if wanted <= SMALL_BYTES or self.tight else BUFFER_BYTES
        if self.used_bytes + size > self.limit_bytes:
            size = SMALL_BYTES
        if self.used_bytes + size > self.limit_bytes:
            return None
        free, others = (self._large, self._small) if size == BUFFER_BYTES else (self._small, self._large)
        buffer = free.take()
        if buffer is None:
            # there is room beside what is used, so only free ones of the other size can be in the way
            while self.used_bytes + size + others.bytes > self.limit_bytes:
                others.drop()
            buffer = mmap(-1, size, flags=MAP_PRIVATE)
        self.used_bytes += size
        return buffer


class _Free:
    """Free buffers of one size. The last one to come goes first: it may still be in the processor's cache."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._buffers: deque[Buffer] = deque()
        #: so many have not been touched since `shed`
        self._idle = 0

    @property
    def bytes(self) -> int:
        return len(self._buffers) * self._size

    def take(self) -> Buffer | None:
        if not self._buffers:
            return None
        buffer = self._buffers.pop()
        self._idle = min(self._idle, len(self._buffers))
        return buffer

    def put(self, buffer: Buffer) -> None:
        self._buffers.append(buffer)

    def drop(self) -> None:
        """The one that was free the longest is unmapped, once nothing refers to it any more."""
        self._buffers.popleft()
        self._idle = max(0, self._idle - 1)

    def shed(self, kept_bytes: int) -> int:
        """Drops what was free since the last call, down to so much; how much of that is left."""
        while self._idle and self.bytes > kept_bytes:
            self.drop()
        self._idle = len(self._buffers)
        return min(self.bytes, kept_bytes)
