"""Stored bytes are read again and held against their manifest, block by block.

What is not what was stored is told with its byte range, logged, and written to the outbox as one
`file.corrupt` for each such file and pass: there is no change in whose transaction it could be
told, and a reader who comes later must hear of it again. A file that is deleted meanwhile is passed
over, because a delete is recorded before the bytes go.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Final

import structlog

from service import hashing
from service.clock import Clock
from service.events import EventMaker
from service.metadata.base import Conflict, MetadataStore
from service.model import Block, File, FileId, Manifest
from service.storage.base import Storage, StorageError, StorageShort, StorageUnavailable

log = structlog.get_logger(__name__)

#: rows looked at in one go
_BATCH: Final = 500
#: after so many files that could not be read, storage itself is taken to be away
_MOST_UNREAD: Final = 20
#: ranges that an event names; a file may have a block in every 64 KiB
_MOST_RANGES: Final = 100


@dataclass(frozen=True, slots=True)
class Damage:
    """Bytes [start, end) of a file that are not what was stored, in words `how`."""

    start: int
    end: int
    how: str


@dataclass(slots=True)
class Verdict:
    """What became of one file. `unread`: why it could not be read to its end."""

    file: File
    damage: list[Damage] = field(default_factory=list)
    unread: str = ""


class Pace:
    """Bytes pass no faster than at the rate. What a run of bytes took to come counts for it, and for none after it.

    Args:
        rate: bytes per second; None: as fast as they come.
    """

    def __init__(
        self, rate: int | None, clock: Clock, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
    ) -> None:
        self._rate = rate
        self._clock = clock
        self._sleep = sleep
        #: when all that passed so far may have
        self._due = clock.monotonic()

    async def passed(self, size: int) -> None:
        """Returns when more may pass."""
        if self._rate is None:
            return
        now, seconds = self._clock.monotonic(), size / self._rate
        self._due = max(self._due, now - seconds) + seconds
        if self._due > now:
            await self._sleep(self._due - now)


class Verifier:
    """Reads one file after the other.

    Args:
        read: told of every run of bytes that was read.
    """

    def __init__(
        self,
        metadata: MetadataStore,
        storage: Storage,
        clock: Clock,
        events: EventMaker,
        pace: Pace,
        *,
        read: Callable[[int], None] = lambda _: None,
    ) -> None:
        self._metadata = metadata
        self._storage = storage
        self._clock = clock
        self._events = events
        self._pace = pace
        self._read = read

    async def all(self) -> AsyncIterator[Verdict]:
        """Of every file that is not deleted, by id.

        Raises:
            StorageUnavailable: so many could not be read that storage itself seems to be away.
            MetadataError: it cannot be gone on with.
        """
        last: FileId | None = None
        unread = 0
        while page := await self._metadata.file_keys(limit=_BATCH, after=last):
            last = page[-1][0]
            for file_id, _, deleted in page:
                verdict = None if deleted else await self.one(file_id)
                if verdict is None:
                    continue
                yield verdict
                unread += bool(verdict.unread)
                if unread > _MOST_UNREAD:
                    raise StorageUnavailable(verdict.unread)

    async def one(self, file_id: FileId) -> Verdict | None:
        """None: there is no such file, or it was deleted, be it while it was read. Raises MetadataError."""
        file = await self._metadata.file(file_id)
        if file is None or file.deleted_at is not None:
            return None
        verdict = Verdict(file)
        try:
            await self._check(file, verdict.damage)
        except StorageError as error:
            verdict.unread = str(error)
        if not verdict.damage:
            return verdict
        verdict.damage = _merged(verdict.damage)
        try:
            await self._tell(verdict)
        except Conflict:
            return None
        return verdict

    async def _check(self, file: File, damage: list[Damage]) -> None:
        """Raises StorageError: not all could be read."""
        manifest, checked = file.manifest, _Blocks(file.manifest, damage)
        if not _whole(manifest):
            damage.append(Damage(0, manifest.size, "the manifest in the database is damaged"))
            return
        try:
            async with self._storage.open_file(file.key) as opened:
                held = opened.size
                async for piece in opened.read(0, min(held, manifest.size)):
                    await asyncio.to_thread(checked.update, piece)
                    self._read(len(piece))
                    await self._pace.passed(len(piece))
        except StorageShort:
            # an empty file can be missing too
            damage.append(Damage(checked.end, manifest.size, "missing"))
            return
        if held < manifest.size:
            damage.append(Damage(held, manifest.size, "missing"))
            return
        checked.finish()
        if held > manifest.size:
            damage.append(Damage(manifest.size, held, "more than was stored"))

    async def _tell(self, verdict: Verdict) -> None:
        """Raises Conflict: the file was deleted meanwhile."""
        file, damage = verdict.file, verdict.damage
        now = self._clock.now()
        upload = await self._metadata.upload(file.upload_id)
        ranges = [[each.start, each.end] for each in damage[:_MOST_RANGES]]
        bad = sum(each.end - each.start for each in damage)
        event = self._events.of_file("corrupt", file, upload, now, ranges=ranges, damaged_bytes=bad)
        await self._metadata.tell_of_file(file.id, events=[event])
        log.error("file_corrupt", file_id=file.id, size=file.manifest.size, damaged_bytes=bad, first=damage[0].start)


class _Blocks:
    """Compares each block as it becomes whole."""

    def __init__(self, manifest: Manifest, damage: list[Damage]) -> None:
        self._manifest = manifest
        self._damage = damage
        self._hasher = hashing.BlockHasher(manifest.block_size, strong=manifest.sha256 is not None)
        #: bytes so far
        self.end = 0

    def update(self, piece: bytes) -> None:
        self._hasher.update(memoryview(piece))
        self.end += len(piece)
        for block in self._hasher.take_finished():
            self._compare(block)

    def finish(self) -> None:
        last = self._hasher.finish()
        if last is not None:
            self._compare(last)

    def _compare(self, block: Block) -> None:
        manifest, number = self._manifest, block.number
        right = block.xxh128 == manifest.xxh128[number]
        if manifest.sha256 is not None:
            right = right and block.sha256 == manifest.sha256[number]
        if not right:
            start = number * manifest.block_size
            end = min(start + manifest.block_size, manifest.size)
            self._damage.append(Damage(start, end, "not what was stored"))


def _whole(manifest: Manifest) -> bool:
    """Whether the root belongs to the blocks: else nobody knows what the bytes should be."""
    strong = manifest.sha256 or (None,) * len(manifest.xxh128)
    if len(strong) != len(manifest.xxh128):
        return False
    blocks = [Block(number, weak, strong[number]) for number, weak in enumerate(manifest.xxh128)]
    try:
        made = hashing.manifest(blocks, manifest.size, manifest.block_size)
    except ValueError:
        return False
    return (made.root, made.sha256_root) == (manifest.root, manifest.sha256_root)


def _merged(damage: list[Damage]) -> list[Damage]:
    """Neighbours of a kind as one."""
    merged: list[Damage] = []
    for each in damage:
        if merged and (merged[-1].end, merged[-1].how) == (each.start, each.how):
            each = Damage(merged.pop().start, each.end, each.how)
        merged.append(each)
    return merged
