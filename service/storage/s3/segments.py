"""Tail segments: objects that are written once, read back when their part is full, then dropped."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Final

from service import hashing
from service.model import Part
from service.storage.base import StorageShort
from service.storage.s3 import naming
from service.storage.s3.calls import Calls
from service.storage.s3.memory import Memory
from service.storage.threads import Threads

#: segments of one part that are fetched at once
_AT_ONCE: Final = 8


def digest_of(data: bytes | bytearray) -> bytes:
    """What the ledger keeps of every piece, so that damage at rest is seen when it is read back."""
    digest = hashing.checksum("xxh128")
    digest.update(memoryview(data))
    return digest.digest()


class Segments:
    """Stores, fetches and joins them. Those stored here are kept at hand while memory allows."""

    def __init__(self, calls: Calls, memory: Memory, workers: Threads) -> None:
        self._calls = calls
        self._memory = memory
        self._workers = workers

    async def store(self, name: str, start: int, data: bytearray, *, epoch: int) -> Part:
        """A new segment; its number is for the caller to give."""
        key = naming.fresh_tail_key(name)
        digest = await self._workers.run(lambda: digest_of(data))
        etag = await self._calls.put(key, data)
        return Part(0, start, start + len(data), naming.object_part_key(key), etag, digest, epoch)

    def keep(self, part: Part, data: bytearray) -> None:
        """The segment's bytes, which the caller gives up, are at hand for whoever goes on with the upload."""
        self._memory.keep(naming.object_of(part), data)

    def forget(self, name: str) -> None:
        """No bytes of the upload are at hand any more."""
        self._memory.forget_all(f"{name}/")

    async def fetch(self, part: Part) -> bytes | bytearray:
        """All bytes of a segment.

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

    async def joined(self, parts: Sequence[Part], rest: bytearray) -> bytearray:
        """The segments' bytes and the rest after them, in one buffer; the rest's own is given up for it."""
        pieces: list[bytes | bytearray] = []
        for low in range(0, len(parts), _AT_ONCE):
            pieces += await asyncio.gather(*(self.fetch(part) for part in parts[low : low + _AT_ONCE]))
        if not pieces:
            return rest

        def join() -> bytearray:
            # one allocation, of just the size: to put bytes before others takes three times as much for a while
            whole = bytearray().join([*pieces, rest])
            rest.clear()
            return whole

        return await self._workers.run(join)

    async def drop(self, keys: Sequence[str]) -> None:
        """The segments with these keys are gone."""
        for key in keys:
            self._memory.forget(key)
        for low in range(0, len(keys), _AT_ONCE):
            await asyncio.gather(*(self._calls.delete(key) for key in keys[low : low + _AT_ONCE]))
