"""Body buffers from one pool with one limit (invariant 8: bounded memory)."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Final

#: what storage likes to be handed at once
BUFFER_BYTES: Final = 2**20
#: what a small body, or any body in hard times, gets
SMALL_BYTES: Final = 64 * 2**10
_KEEP: Final = 16


class BufferPool:
    """Hands out buffers of two sizes while the limit lasts; keeps some of the large ones for the next."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.used_bytes = 0
        self._free: list[bytearray] = []
        #: oldest first, with what each wants
        self._waiters: deque[tuple[asyncio.Future[bytearray], int]] = deque()

    @property
    def tight(self) -> bool:
        """Half the limit is in use: bodies get small buffers."""
        return self.used_bytes * 2 >= self.limit_bytes

    @property
    def exhausted(self) -> bool:
        """Not even a small buffer is left: a new transfer is refused."""
        return self.used_bytes + SMALL_BYTES > self.limit_bytes

    def take_now(self, wanted: int) -> bytearray | None:
        """A buffer for about `wanted` bytes if there is one and nobody waits for it. Give it back."""
        return None if self._waiters else self._cut(wanted)

    async def take(self, wanted: int) -> bytearray:
        """The same as soon as the limit allows, in order of arrival."""
        buffer = self.take_now(wanted)
        if buffer is not None:
            return buffer
        waiter: asyncio.Future[bytearray] = asyncio.get_running_loop().create_future()
        self._waiters.append((waiter, wanted))
        try:
            return await waiter
        except asyncio.CancelledError:
            if not waiter.cancelled():
                # it had been served, and nobody is there to use it
                self.give(waiter.result())
            raise

    def give(self, buffer: bytearray) -> None:
        """The buffer is not used any more; all are served that it, or the room it leaves, is enough for."""
        self.used_bytes -= len(buffer)
        self._put(buffer)
        self._serve()

    def part_with(self, buffer: bytearray) -> Callable[[], None]:
        """The buffer counts against a limit of somebody else's now, who calls what is returned, once, after its use."""
        self.used_bytes -= len(buffer)
        self._serve()
        return partial(self._put, buffer)

    def _put(self, buffer: bytearray) -> None:
        if len(buffer) == BUFFER_BYTES and len(self._free) < _KEEP:
            self._free.append(buffer)

    def _serve(self) -> None:
        while self._waiters:
            waiter, wanted = self._waiters[0]
            if not waiter.done():
                served = self._cut(wanted)
                if served is None:
                    break
                waiter.set_result(served)
            self._waiters.popleft()

    def _cut(self, wanted: int) -> bytearray | None:
        size = SMALL_BYTES if wanted <= SMALL_BYTES or self.tight else BUFFER_BYTES
        if self.used_bytes + size > self.limit_bytes:
            size = SMALL_BYTES
        if self.used_bytes + size > self.limit_bytes:
            return None
        self.used_bytes += size
        return self._free.pop() if size == BUFFER_BYTES and self._free else bytearray(size)
