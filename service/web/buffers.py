"""Body buffers from one pool with one limit (invariant 8: bounded memory)."""

from __future__ import annotations

import asyncio
from collections import deque
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
        self._waiters: deque[asyncio.Future[None]] = deque()

    @property
    def tight(self) -> bool:
        """Half the limit is in use: bodies get small buffers."""
        return self.used_bytes * 2 >= self.limit_bytes

    @property
    def exhausted(self) -> bool:
        """Not even a small buffer is left: a new transfer is refused."""
        return self.used_bytes + SMALL_BYTES > self.limit_bytes

    async def take(self, wanted: int) -> bytearray:
        """A buffer for about `wanted` bytes, as soon as the limit allows. Give it back."""
        while True:
            size = SMALL_BYTES if wanted <= SMALL_BYTES or self.tight else BUFFER_BYTES
            if self.used_bytes + size <= self.limit_bytes:
                self.used_bytes += size
                return self._free.pop() if size == BUFFER_BYTES and self._free else bytearray(size)
            waiter = asyncio.get_running_loop().create_future()
            self._waiters.append(waiter)
            await waiter

    def give(self, buffer: bytearray) -> None:
        """The buffer is not used any more."""
        self.used_bytes -= len(buffer)
        if len(buffer) == BUFFER_BYTES and len(self._free) < _KEEP:
            self._free.append(buffer)
        while self._waiters:
            waiter = self._waiters.popleft()
            if not waiter.done():
                waiter.set_result(None)
                break
