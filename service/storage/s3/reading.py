"""Reading by ranges: a few megabytes at a time, each a call of its own.

A slow consumer keeps no connection open and holds two pieces at most: the one it is at, and the
next, which is fetched meanwhile while half of the memory is free; else the pieces are small.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, suppress
from typing import Final

from service.model import Part
from service.storage.base import StorageShort
from service.storage.s3 import naming
from service.storage.s3.calls import Calls
from service.storage.s3.chunks import pieces_of
from service.storage.s3.memory import Memory
from service.storage.s3.segments import Segments

#: the first piece is small, so that a reader has something soon; the others grow up to the last size
_FIRST_BYTES: Final = 2**18
_MOST_BYTES: Final = 2**22
#: what every reader gets, outside the limit: neither can readers take what uploads need, nor these the readers'
_LEAST_BYTES: Final = 2**16


async def read_object(calls: Calls, memory: Memory, key: str, start: int, end: int) -> AsyncGenerator[bytes]:
    """Bytes [start, end) of an object, reading one piece ahead.

    Raises:
        StorageShort: permanent; the object is not there, or shorter.
        StorageUnavailable: worth a retry.
    """
    at, size = start, _FIRST_BYTES
    ahead: asyncio.Task[bytes] | None = None
    #: of the memory, for what is fetched ahead
    held = 0
    try:
        while at < end:
            if ahead is None:
                wanted = min(_FIRST_BYTES, end - at)
                held = wanted if memory.try_take(wanted, spare=memory.limit // 2) else 0
                ahead = asyncio.create_task(calls.get(key, at, at + (held or min(_LEAST_BYTES, wanted))))
            piece = await ahead
            ahead, given, held = None, held, 0
            at += len(piece)
            size = min(size * 4, _MOST_BYTES)
            try:
                following = min(size, end - at)
                # a consumer may stop for long with what it was given: half the memory stays for uploads (lesson D1)
                if following and memory.try_take(following, spare=memory.limit // 2):
                    held = following
                    ahead = asyncio.create_task(calls.get(key, at, at + following))
                yield piece
            finally:
                del piece
                memory.give(given)
    finally:
        if ahead is not None:
            ahead.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await ahead
        memory.give(held)


async def read_upload(
    calls: Calls, memory: Memory, segments: Segments, ledger: Sequence[Part], start: int, end: int
) -> AsyncGenerator[bytes]:
    """See `Storage.read_upload`. What is in parts can be read once the multipart upload is complete."""
    if not 0 <= start <= end <= (ledger[-1].end if ledger else 0):
        raise StorageShort("the ledger does not reach so far")
    for part in ledger:
        low, high = max(start, part.start), min(end, part.end)
        if low >= high:
            continue
        if naming.multipart_of(part) is not None:
            # all parts of the multipart upload, from byte 0 on, are one object
            async with aclosing(read_object(calls, memory, naming.object_of(part), low, high)) as pieces:
                async for piece in pieces:
                    yield piece
        else:
            at = part.start
            async with segments.reading(part) as data:
                for held in pieces_of(data):
                    wanted = memoryview(held)[max(0, low - at) : max(0, high - at)]
                    at += len(held)
                    if wanted:
                        yield bytes(wanted)


class S3File:
    """A finished file; nothing is open between two reads."""

    fd: Final = None

    def __init__(self, calls: Calls, memory: Memory, key: str, size: int) -> None:
        self.size = size
        self._calls = calls
        self._memory = memory
        self._key = key

    def read(self, start: int, end: int) -> AsyncIterator[bytes]:
        """See `StoredFile.read`."""
        return read_object(self._calls, self._memory, self._key, start, end)
