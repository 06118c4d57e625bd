"""Tail segments: objects that are written once, read back when their part is full, then dropped."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Final

from service.model import Part
from service.storage.base import StorageShort
from service.storage.s3 import naming
from service.storage.s3.calls import Calls
from service.storage.s3.chunks import Chunks, Recycler, digest_of, pieces_of
from service.storage.s3.memory import Memory
from service.storage.threads import Threads

#: segments of one part that are fetched at once
_AT_ONCE: Final = 8
#: bytes from which on a run is not much smaller than its buffers
_JOINED_BELOW: Final = 2**20


class Segments:
    """Stores, fetches and joins them. Those stored here are kept at hand while memory allows."""

    def __init__(self, calls: Calls, memory: Memory, workers: Threads) -> None:
        # free buffers count against the limit too, as far as that is not used up
        self._recycler = Recycler(lambda: memory.limit - memory.used)
        self._calls = calls
        self._memory = memory
        self._workers = workers

    def chunks(self) -> Chunks:
        """A run of bytes, empty so far."""
        return Chunks(self._recycler, checked=self._calls.checksums)

    async def digest(self, data: Chunks) -> bytes:
        """See `digest_of`; in a thread where it takes a while."""
        known = data.digest
        return known if known is not None else await self._workers.run(lambda: digest_of(data))

    async def store(self, name: str, start: int, data: Chunks, *, epoch: int) -> Part:
        """A new segment; its number is for the caller to give."""
        key = naming.fresh_tail_key(name)
        digest = await self.digest(data)
        etag = await self._calls.put(key, data)
        return Part(0, start, start + len(data), naming.object_part_key(key), etag, digest, epoch)

    def keep(self, part: Part, data: Chunks) -> None:
        """The segment's bytes, which the caller gives up, are at hand for whoever goes on with the upload."""
        key = naming.object_of(part)
        if len(data) < _JOINED_BELOW:
            # by itself: its buffers are larger than it is, and would not count
            self._memory.keep(key, b"".join(data.pieces()))
            data.recycle()
        # those that were kept are never used again, since somebody may be about to send them
        elif not self._memory.keep(key, data):
            data.recycle()

    def forget(self, name: str) -> None:
        """No bytes of the upload are at hand any more."""
        self._memory.forget_all(f"{name}/")

    async def fetch(self, part: Part) -> bytes | Chunks:
        """All bytes of a segment. The memory for them is the caller's.

        Raises:
            StorageShort: permanent; it is not there, or not what was stored.
        """
        key = naming.object_of(part)
        kept = self._memory.kept(key)
        if kept is not None:
            return kept
        data = await self._calls.get(key, 0, part.end - part.start)
        if part.digest and await self._workers.run(lambda: digest_of(data)) != part.digest:
            raise StorageShort("a segment is not what was stored")
        self._memory.keep(key, data)
        return data

    @asynccontextmanager
    async def reading(self, part: Part) -> AsyncIterator[bytes | Chunks]:
        """As `fetch`, in memory that is taken for it until the context is left: the caller holds none for it."""
        size = 0 if self._memory.kept(naming.object_of(part)) is not None else part.end - part.start
        if size:
            await self._memory.take(size)
        try:
            yield await self.fetch(part)
        finally:
            self._memory.give(size)

    async def joined(self, parts: Sequence[Part], rest: Chunks) -> Chunks:
        """The segments' bytes before the rest; not copied. The memory for them is the caller's."""
        pieces: list[bytes | memoryview] = []
        for low in range(0, len(parts), _AT_ONCE):
            for fetched in await asyncio.gather(*(self.fetch(part) for part in parts[low : low + _AT_ONCE])):
                pieces += pieces_of(fetched)
        rest.prepend(pieces)
        return rest

    async def drop(self, keys: Sequence[str]) -> None:
        """The segments with these keys are gone."""
        for key in keys:
            self._memory.forget(key)
        for low in range(0, len(keys), _AT_ONCE):
            await asyncio.gather(*(self._calls.delete(key) for key in keys[low : low + _AT_ONCE]))
