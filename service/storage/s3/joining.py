"""Concatenation: copied by the store where its limits allow, else streamed a part at a time (lesson C5)."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from service.model import Part, UploadId
from service.storage.base import Receipt, StorageError, StorageShort, StorageUnavailable
from service.storage.parts import Piece, copyable, joined_parts
from service.storage.s3 import naming
from service.storage.s3.calls import Calls
from service.storage.s3.chunks import Chunks
from service.storage.s3.completing import Completer
from service.storage.s3.memory import Memory
from service.storage.s3.segments import Segments

_AT_ONCE: Final = 8


@dataclass(frozen=True, slots=True)
class _Origin:
    """An object with all of its bytes."""

    key: str
    size: int


class Joiner:
    """What `Storage.concatenate` does."""

    def __init__(
        self, calls: Calls, memory: Memory, segments: Segments, completer: Completer, *, part_bytes: int
    ) -> None:
        self._calls = calls
        self._memory = memory
        self._segments = segments
        self._completer = completer
        self._part_bytes = part_bytes
        #: for all that are joined at once, so that other calls find a thread
        self._room = asyncio.Semaphore(_AT_ONCE)

    async def concatenate(self, upload_id: UploadId, sources: Sequence[Sequence[Part]], *, epoch: int) -> Receipt:
        """See `Storage.concatenate`."""
        name = naming.name_of(upload_id)
        total = sum(source[-1].end for source in sources if source)
        if not total:
            return Receipt(0)
        done = Receipt(total, (Part(1, 0, total, naming.object_part_key(naming.file_key(name)), epoch=epoch),))
        # joined and completed before, by one who did not come to say so
        if await self._calls.size(naming.file_key(name)) == total:
            return done
        origins = [origin for source in sources for origin in await self._origins(source)]
        if total <= self._part_bytes:
            return await self._join_small(name, origins, total, epoch)
        try:
            return await self._join(name, origins, total, epoch)
        except StorageShort:
            # whoever has joined and completed them meanwhile has removed this multipart upload
            if await self._calls.size(naming.file_key(name)) == total:
                return done
            raise

    async def _origins(self, source: Sequence[Part]) -> list[_Origin]:
        parts = [part for part in source if naming.multipart_of(part) is not None]
        origins = []
        if parts:
            key = naming.object_of(parts[0])
            await self._completer.complete_parts(key, parts)
            origins.append(_Origin(key, parts[-1].end))
        return origins + [_Origin(naming.object_of(part), part.end - part.start) for part in source[len(parts) :]]

    async def _join_small(self, name: str, origins: Sequence[_Origin], total: int, epoch: int) -> Receipt:
        pieces = [Piece(number, 0, origin.size) for number, origin in enumerate(origins)]
        await self._memory.take(total)
        try:
            body = await self._fetched(origins, pieces)
            stored = await self._segments.store(name, 0, body, epoch=epoch)
        finally:
            self._memory.give(total)
        return Receipt(total, (Part(1, 0, total, stored.key, stored.etag, stored.digest, epoch),))

    async def _join(self, name: str, origins: Sequence[_Origin], total: int, epoch: int) -> Receipt:
        key, sizes = naming.file_key(name), [origin.size for origin in origins]
        # of a part that the store copies it need not tell a checksum
        multipart = await self._calls.create_multipart(key, checked=False)

        async def make(number: int, pieces: Sequence[Piece]) -> str:
            async with self._room:
                if copyable(pieces, sizes):
                    source, piece = origins[pieces[0].source].key, pieces[0]
                    try:
                        return await self._calls.copy_part(key, multipart, number, source, piece.start, piece.end)
                    except StorageUnavailable:
                        # a store that does not copy may still take the bytes
                        pass
                return await self._stream(key, multipart, number, origins, pieces)

        plan = joined_parts(sizes, self._part_bytes)
        try:
            async with asyncio.TaskGroup() as group:
                tasks = [group.create_task(make(number, pieces)) for number, pieces in enumerate(plan, 1)]
        except ExceptionGroup as failed:
            # the next attempt makes one of its own
            with suppress(StorageError):
                await self._calls.abort_multipart(key, multipart, attempts=1)
            # the port knows single errors; that of the first part to fail made the others end
            raise failed.exceptions[0] from None
        made = []
        for number, task in enumerate(tasks, 1):
            start = (number - 1) * self._part_bytes
            end = min(start + self._part_bytes, total)
            made.append(
                Part(number, start, end, naming.multipart_part_key(name, multipart), task.result(), epoch=epoch)
            )
        return Receipt(total, tuple(made))

    async def _stream(
        self, key: str, multipart: str, number: int, origins: Sequence[_Origin], pieces: Sequence[Piece]
    ) -> str:
        size = sum(piece.end - piece.start for piece in pieces)
        await self._memory.take(size)
        try:
            body = await self._fetched(origins, pieces)
            return await self._calls.upload_part(key, multipart, number, body, checked=False)
        finally:
            self._memory.give(size)

    async def _fetched(self, origins: Sequence[_Origin], pieces: Sequence[Piece]) -> Chunks:
        body = self._segments.chunks()
        body.prepend([await self._calls.get(origins[piece.source].key, piece.start, piece.end) for piece in pieces])
        return body
