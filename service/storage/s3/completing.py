"""From a ledger to one object: complete, look, and remove what is left over. Idempotent.

The multipart upload and its parts are named by the ledger alone, never by a listing. Whatever
CompleteMultipartUpload answers, the object tells: it can be there although the answer was an
error or was lost, and nothing else can have made it (lessons C1, C2).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import structlog

from service.model import Part
from service.storage.base import StorageError, StorageShort, StorageStale, Stored
from service.storage.s3 import leftovers, naming
from service.storage.s3.calls import Calls
from service.storage.s3.memory import Memory
from service.storage.s3.segments import Segments

log = structlog.get_logger(__name__)

#: a completion that failed is answered by looking, so asking often gains nothing
_ATTEMPTS: Final = 2


class Completer:
    """What `Storage.complete` does."""

    def __init__(self, calls: Calls, memory: Memory, segments: Segments) -> None:
        self._calls = calls
        self._memory = memory
        self._segments = segments

    async def complete(self, upload_id: str, ledger: Sequence[Part], *, epoch: int) -> Stored:
        """See `Storage.complete`."""
        name = naming.name_of(upload_id)
        size = ledger[-1].end if ledger else 0
        key = _small_file(ledger) or naming.file_key(name)
        # nobody else has had the upload since these were stored, and the store has just said that it has them
        fresh = bool(ledger) and all(part.epoch == epoch for part in ledger)
        # to make again what is there does no harm; to put nothing in its place does
        found = None if fresh else await self._calls.size(key, sure=not ledger)
        if found and not ledger:
            raise StorageStale("the upload is finished, and its ledger gone")
        if fresh and _small_file(ledger):
            found = size
        elif found != size:
            try:
                found = await self._make(key, ledger)
            except StorageError as error:
                found = await self._calls.size(key)
                if found != size:
                    raise
                log.info("completion_found", upload_id=name, reason=str(error))
        if found != size:
            raise StorageShort(f"the object has {found} bytes of {size}")
        if ledger and (epoch > 1 or any(_is_tail(part) for part in ledger)):
            await self._tidy(name, key)
        return Stored(key, size)

    async def _make(self, key: str, ledger: Sequence[Part]) -> int | None:
        """The object's size, once it is there."""
        if _small_file(ledger) is not None:
            raise StorageShort("the file is not there")
        multipart = naming.multipart_of(ledger[0]) if ledger else None
        tails = [part for part in ledger if _is_tail(part)]
        size = sum(part.end - part.start for part in tails)
        await self._memory.take(size)
        try:
            rest = await self._segments.joined(tails, self._segments.chunks())
            if multipart is None:
                await self._calls.put(key, rest)
                return size
            tags = {part.number: part.etag for part in ledger if not _is_tail(part)}
            if len(rest):
                last = len(tags) + 1
                tags[last] = await self._calls.upload_part(key, multipart, last, rest, checked=_checked(ledger))
        finally:
            self._memory.give(size)
        await self._calls.complete_multipart(key, multipart, tags, attempts=_ATTEMPTS)
        return await self._calls.size(key)

    async def complete_parts(self, key: str, parts: Sequence[Part]) -> None:
        """The parts of a source that is joined are an object, as they are needed to be copied from."""
        size = parts[-1].end
        if await self._calls.size(key, sure=False) == size:
            return
        multipart = naming.multipart_of(parts[0])
        if multipart is None:
            raise ValueError("no parts of a multipart upload")
        try:
            await self._calls.complete_multipart(
                key, multipart, {part.number: part.etag for part in parts}, attempts=_ATTEMPTS
            )
        except StorageError:
            if await self._calls.size(key) != size:
                raise

    async def _tidy(self, name: str, key: str) -> None:
        """What earlier requests, or processes that died, left of the upload goes; else the sweep finds it."""
        try:
            await leftovers.remove(self._calls, name, spare=lambda found: found == key)
        except StorageError as error:
            log.warning("leftovers_postponed", upload_id=name, reason=str(error))


def _small_file(ledger: Sequence[Part]) -> str | None:
    """The key, where the ledger is one object that was put as a file."""
    if len(ledger) != 1 or naming.multipart_of(ledger[0]) is not None:
        return None
    key = naming.object_of(ledger[0])
    return key if naming.is_file(key) else None


def _is_tail(part: Part) -> bool:
    return naming.multipart_of(part) is None and not naming.is_file(naming.object_of(part))


def _checked(ledger: Sequence[Part]) -> bool:
    return naming.is_checked(ledger[0].etag)
