"""After a crash of the machine: what unfinished uploads claim is looked for before anybody is told of it.

With durability `complete` the bytes of an unfinished upload, and the commits that tell of them, are
left to the kernel. Processes may be killed as they like; when the machine goes down, bytes may be
missing, zero, or those of an older moment, while the commit that counts them survived, and newer
commits may be missing as well. Which uploads that can have happened to is recorded at the start
(`MetadataStore.begin_run`): they are suspect. What is offered here is the way out of that state.

A suspect is read from byte 0 on. Each whole block counts that has its committed digest, and the
bytes behind the last one as a whole, if theirs were committed with the offset. The offset falls
back to the end of what counts: the only way in which one ever falls, and never below what is there.
What was finishing and is not whole is receiving again. Until then clients get 423 for the upload,
which they take for "ask again", and nothing is written to it or made of it.

All suspects are checked in the background, one after the other. One that a request asks for has
its turn at once, a few of these at a time. Each is checked under its lease, so processes share the
work; who wants the upload for itself, to terminate it, gets the lease at the end of a block.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Final

import structlog

from service import hashing
from service.clock import Clock
from service.leases import Leases
from service.metadata.base import Conflict, Lease, MetadataError, MetadataStore
from service.metrics import Metrics
from service.model import Part, State, Upload, UploadId
from service.protocol.problems import Refusal
from service.storage.base import Salvage, Storage, StorageError, StorageShort, StorageStale

log = structlog.get_logger(__name__)

#: checks at one time of uploads that somebody asks for
_ASKED_AT_ONCE: Final = 2
_BATCH: Final = 200
#: until what could not be checked is tried again
_AGAIN_SECONDS = 5.0


class _Wanted(Exception):
    """Somebody else wants the lease."""


class Rechecker:
    """Checks suspects; `run` must be running for anything to happen."""

    def __init__(
        self,
        metadata: MetadataStore,
        storage: Storage,
        salvage: Salvage,
        leases: Leases,
        clock: Clock,
        metrics: Metrics,
        checked: Callable[[Upload], None],
    ) -> None:
        """`checked`: told of each upload that is suspect no more, once its lease is free."""
        self._metadata = metadata
        self._storage = storage
        self._salvage = salvage
        self._leases = leases
        self._clock = clock
        self._metrics = metrics
        self._checked = checked
        self._asked: asyncio.Queue[UploadId] = asyncio.Queue()
        #: asked for and not looked at yet
        self._waiting: set[UploadId] = set()
        self._under_way: set[UploadId] = set()

    def hurry(self, upload_id: UploadId) -> None:
        """The suspect is checked before those that nobody asks for."""
        if upload_id not in self._waiting and upload_id not in self._under_way:
            self._waiting.add(upload_id)
            self._asked.put_nowait(upload_id)

    async def run(self) -> None:
        """Returns once nothing is suspect any more."""
        asked = [asyncio.create_task(self._check_asked()) for _ in range(_ASKED_AT_ONCE)]
        try:
            while await self._some_left():  # noqa: ASYNC110 - what keeps them may be another process
                await asyncio.sleep(_AGAIN_SECONDS)
        finally:
            for task in asked:
                task.cancel()
            await asyncio.wait(asked)

    async def _check_asked(self) -> None:
        while True:
            upload_id = await self._asked.get()
            self._waiting.discard(upload_id)
            await self._check_quietly(upload_id)

    async def _some_left(self) -> bool:
        """Each suspect had its turn; whether any is one still, or it is not known."""
        left, last = False, None
        try:
            while page := await self._metadata.suspect_uploads(limit=_BATCH, after=last):
                for upload in page:
                    left = not await self._check_quietly(upload.id) or left
                last = page[-1]
        except MetadataError as error:
            log.warning("recheck_postponed", reason=str(error))
            return True
        return left

    async def _check_quietly(self, upload_id: UploadId) -> bool:
        """Whether the upload is no suspect any more. Somebody else at it, or storage away: its turn comes again."""
        if upload_id in self._under_way:
            return False
        self._under_way.add(upload_id)
        try:
            return await self._check(upload_id)
        except (Refusal, _Wanted, StorageError, MetadataError) as error:
            log.info("recheck_postponed", upload_id=upload_id, reason=str(error))
        except Exception:
            log.exception("recheck_failed", upload_id=upload_id)
        finally:
            self._under_way.discard(upload_id)
        return False

    async def _check(self, upload_id: UploadId) -> bool:
        held = await self._metadata.lease(upload_id)
        if held is not None and held.until > self._clock.now():
            # who has the lease of a suspect checks it, or ends it
            return False
        wanted = asyncio.Event()
        try:
            async with self._leases.hold(upload_id, stop=wanted.set) as (lease, upload):
                if not upload.suspect:
                    return True
                now_is = await self._judge(upload, lease, wanted)
        except Conflict:
            # it ended meanwhile, or the lease was lost; the list tells
            return False
        self._checked(now_is)
        return True

    async def _judge(self, upload: Upload, lease: Lease, wanted: asyncio.Event) -> Upload:
        committed = ledger = await self._metadata.ledger(upload.id)
        right = 0
        if upload.state is State.FINISHING:
            # a file that it became is read in place of the parts, and completed again
            right = await self._right(upload, ledger, wanted)
        if right < upload.offset or upload.state is State.RECEIVING:
            ledger = await self._salvage(upload.id, committed, fence=partial(self._check_fence, lease))
            right = await self._right(upload, ledger, wanted)
        if right < upload.offset:
            log.warning("bytes_lost", upload_id=upload.id, from_offset=upload.offset, to_offset=right, reason="crash")
        if right == upload.offset and ledger == committed:
            return await self._metadata.acquit(upload.id, epoch=lease.epoch)
        return await self._metadata.fall_back(
            upload.id, epoch=lease.epoch, to_offset=right, parts=_clipped(ledger, right), now=self._clock.now()
        )

    async def _check_fence(self, lease: Lease) -> None:
        """Raises StorageStale if the lease has passed to somebody newer."""
        current = await self._metadata.lease(lease.upload_id)
        if current is None or current.epoch != lease.epoch:
            raise StorageStale("the lease was lost")

    async def _right(self, upload: Upload, ledger: Sequence[Part], wanted: asyncio.Event) -> int:
        """Up to where the bytes are those that were committed."""
        digests = {block.number: block.xxh128 for block in await self._metadata.blocks(upload.id)}
        held, right = ledger[-1].end if ledger else 0, 0
        while right < upload.offset:
            if wanted.is_set():
                raise _Wanted
            number, end = right // upload.block_size, min(right + upload.block_size, upload.offset)
            digest = digests.get(number)
            if digest is None and end == upload.offset:
                digest = await self._metadata.tail(upload.id)
            if end > held or digest is None or await self._digest(ledger, right, end) != digest:
                break
            right = end
        return right

    async def _digest(self, ledger: Sequence[Part], start: int, end: int) -> bytes | None:
        """XXH3-128 of the bytes; None: not all of them are there."""
        hasher = hashing.checksum("xxh128")
        try:
            async for piece in self._storage.read_upload(ledger, start, end):
                await asyncio.to_thread(hasher.update, memoryview(piece))
        except StorageShort:
            return None
        self._metrics.hashed("xxh128", end - start)
        return hasher.digest()


def _clipped(ledger: Sequence[Part], end: int) -> tuple[Part, ...]:
    """The ledger of the bytes before `end`."""
    return tuple(part if part.end <= end else replace(part, end=end) for part in ledger if part.start < end)
