"""One request's writes to one upload: parts leave from memory as soon as they are full.

A slot is a part in the making: what of it lies in the bucket as tail segments, and what is
gathered in memory behind those. A full slot goes up as a part, a few at a time, while the next
one fills; the request waits when they are slower than its client. What a slot has in memory
becomes a tail segment when the request ends in the middle of a part, when it has waited there for
long, and when others need the memory.

A failure of any of these ends the append: `held` tells how far the bytes reach without a gap, and
what was stored beyond that is nobody's (lesson O1).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any, Final

from service.clock import Clock
from service.model import Part, UploadId
from service.storage.base import Fence, Keep, Observer, Receipt, StorageError, StorageFull
from service.storage.parts import MOST_PARTS, merged_segments
from service.storage.s3 import naming
from service.storage.s3.calls import Calls
from service.storage.s3.chunks import Chunks
from service.storage.s3.memory import Memory
from service.storage.s3.segments import Segments
from service.storage.threads import Threads

#: parts of one request that are on their way at once
_UNDER_WAY: Final = 3
#: bytes wait no longer than this for their part to be full: no more is lost with a process
_WAIT_SECONDS: Final = 30.0


@dataclass(slots=True, eq=False)
class _Slot:
    """The part with that index, in the making."""

    index: int
    start: int
    #: what follows the segments, and what of it is just becoming one
    buffer: Chunks
    #: stored pieces of it, from its start on, in order, without gaps
    segments: list[Part] = field(default_factory=list)
    gathered_at: float = 0.0
    spilling: asyncio.Task[None] | None = None
    part: Part | None = None
    #: the ledger's keys of what the part, or a merged segment, makes superfluous
    replaced: list[str] = field(default_factory=list)

    @property
    def stored(self) -> int:
        """The end of the segments."""
        return self.segments[-1].end if self.segments else self.start


class S3Appender:
    """See `storage.base.Appender`; made by `S3Storage.append`.

    Args:
        part_bytes: of an upload that has no part yet; else its first one tells.
    """

    def __init__(
        self,
        calls: Calls,
        memory: Memory,
        segments: Segments,
        workers: Threads,
        clock: Clock,
        upload_id: UploadId,
        ledger: Sequence[Part],
        *,
        part_bytes: int,
        align: int,
        epoch: int,
        observe: Observer | None,
        fence: Fence | None,
        keep: Keep | None,
    ) -> None:
        self._calls = calls
        self._memory = memory
        self._segments = segments
        self._workers = workers
        self._clock = clock
        self._name: Final = naming.name_of(upload_id)
        self._epoch: Final = epoch
        self._observe = observe
        self._fence = fence
        self._keep = keep
        parts = [part for part in ledger if naming.multipart_of(part) is not None]
        self._start: Final = ledger[-1].end if ledger else 0
        # what is stored of a first part that was to be larger is not cut again
        self._part_bytes: Final = parts[0].end if parts else max(part_bytes, -(-self._start // align) * align)
        self._multipart = naming.multipart_of(parts[0]) if parts else None
        self._checked = naming.is_checked(parts[0].etag) if parts else calls.checksums
        #: a multipart upload that was made here, and that no ledger names
        self._untold: str | None = None
        self._creating = asyncio.Lock()
        self._end = self._start
        #: those of this request, the last one filling
        self._slots = [self._slot(len(parts), parts[-1].end if parts else 0, ledger[len(parts) :])]
        self._gathering = False
        self._under_way: set[asyncio.Task[None]] = set()
        self._failed: Exception | None = None
        memory.join(self)

    def _slot(self, index: int, start: int, segments: Sequence[Part] = ()) -> _Slot:
        return _Slot(index, start, self._segments.chunks(), list(segments))

    def _taken(self, slot: _Slot) -> Chunks:
        """What the slot has gathered, which is the caller's now."""
        buffer, slot.buffer = slot.buffer, self._segments.chunks()
        return buffer

    # --- writing ------------------------------------------------------------------------------

    async def write(self, data: memoryview, *, last: bool = False) -> None:
        """See `Appender.write`."""
        whole = len(data)
        while data:
            self._raise_if_failed()
            slot = self._slots[-1]
            room = slot.start + self._part_bytes - self._end
            if room:
                piece = data[:room]
                await self._memory.take(len(piece))
                # a buffer that two parts would share is copied
                kept = self._keep() if self._keep is not None and len(piece) == whole else None
                await self._gather(slot, piece, kept)
                data = data[len(piece) :]
            # a file that ends with its first part needs no multipart upload
            if len(data) or slot.index or self._multipart is not None:
                await self._next_slot_if_full(slot)

    async def _gather(self, slot: _Slot, piece: memoryview, kept: Callable[[], None] | None) -> None:
        """Observed and held, or neither; the memory for it has been taken.

        Args:
            kept: gives back the buffer that the piece is in; None: it is copied.
        """
        before = self._end

        def work() -> None:
            if self._observe is not None:
                self._observe(piece)
            if kept is None:
                slot.buffer.append(piece)
            else:
                slot.buffer.keep(piece, kept)
            self._end += len(piece)

        if not slot.buffer:
            slot.gathered_at = self._clock.monotonic()
        self._gathering = True
        try:
            if self._observe is None:
                # a thread would cost more than the work, and have the bytes in no cache
                work()
            else:
                await self._workers.run(work)
        finally:
            self._gathering = False
            if self._end == before:
                self._memory.give(len(piece))
                if kept is not None:
                    kept()
            else:
                self._memory.look_again()

    async def _next_slot_if_full(self, slot: _Slot) -> None:
        """A full slot goes up and another one begins. Waits while too many are on their way."""
        self._raise_if_failed()
        if self._end - slot.start < self._part_bytes:
            return
        while len(self._under_way) >= _UNDER_WAY:
            await asyncio.wait(self._under_way, return_when=asyncio.FIRST_COMPLETED)
            self._raise_if_failed()
        if slot.index + 1 >= MOST_PARTS:
            raise StorageFull("a multipart upload has 10,000 parts at most")
        self._slots.append(self._slot(slot.index + 1, slot.start + self._part_bytes))
        self._send(slot, whole=False)

    # --- telling ------------------------------------------------------------------------------

    async def held(self) -> Receipt:
        """See `Appender.held`."""
        slot = self._slots[-1]
        if self.gathered and self._clock.monotonic() - slot.gathered_at >= _WAIT_SECONDS:
            self.spill()
        return self._receipt()

    async def flush(self, *, last: bool) -> Receipt:
        """See `Appender.flush`."""
        await self._quiet()
        slot = self._slots[-1]
        if slot.buffer:
            full = self._end - slot.start == self._part_bytes
            if last:
                self._send(slot, whole=not slot.index and self._multipart is None)
            elif full:
                await self._next_slot_if_full(slot)
            else:
                self.spill()
            await self._quiet()
        return self._receipt()

    async def _quiet(self) -> None:
        """Returns once nothing is on its way any more. Raises what went wrong with it."""
        while self._under_way:
            await asyncio.wait(self._under_way)
        self._raise_if_failed()

    def _raise_if_failed(self) -> None:
        if self._failed is not None:
            raise self._failed

    def _receipt(self) -> Receipt:
        parts: list[Part] = []
        replaced: list[str] = []
        offset = self._start
        for slot in self._slots:
            pieces = [slot.part] if slot.part is not None else slot.segments
            parts += [replace(piece, number=slot.index + 1 + at) for at, piece in enumerate(pieces)]
            replaced += slot.replaced
            offset = pieces[-1].end if pieces else slot.start
            if slot.part is None:
                break
        if offset <= self._start:
            return Receipt(self._start)
        if self._slots[0].part is not None:
            self._untold = None
        return Receipt(offset, tuple(parts), tuple(replaced))

    # --- storing ------------------------------------------------------------------------------

    @property
    def gathered(self) -> int:
        """See `Gatherer.gathered`."""
        return 0 if self._gathering else len(self._slots[-1].buffer)

    def spill(self) -> None:
        """See `Gatherer.spill`. What is gathered behind a failure will never count, and just goes."""
        if self._failed is None:
            self._spill(self._slots[-1])
            return
        buffer = self._taken(self._slots[-1])
        size = len(buffer)
        buffer.recycle()
        self._memory.give(size)

    def _spill(self, slot: _Slot) -> None:
        """What the slot has gathered starts to become a segment, after what is becoming one already."""
        buffer = self._taken(slot)
        slot.spilling = self._begin(self._store(slot, buffer, after=slot.spilling), holding=len(buffer))

    def _send(self, slot: _Slot, *, whole: bool) -> None:
        """The slot starts to become a part, or the `whole` file."""
        head = slot.stored - slot.start
        if slot.spilling is None and (not head or self._memory.try_take(head)):
            buffer = self._taken(slot)
            self._begin(self._upload(slot, buffer, whole=whole), holding=head + len(buffer))
            return
        # no waiting for memory with memory in hand: all of it becomes segments, which are joined later
        if slot.buffer:
            self._spill(slot)
        self._begin(self._upload_later(slot, whole=whole), holding=0)

    def _begin(self, work: Coroutine[Any, Any, None], *, holding: int) -> asyncio.Task[None]:
        """Work on its way, with memory that is given back when it is over, also if it never began."""
        self._memory.leave(holding)
        task = asyncio.create_task(work)
        self._under_way.add(task)

        def over(task: asyncio.Task[None]) -> None:
            self._under_way.discard(task)
            self._memory.give(holding, leaving=True)
            if not task.cancelled() and (error := task.exception()) is not None:
                self._failed = self._failed or _as_exception(error)

        task.add_done_callback(over)
        return task

    async def _store(self, slot: _Slot, buffer: Chunks, *, after: asyncio.Task[None] | None) -> None:
        await self._over(after)
        sizes = [segment.end - segment.start for segment in slot.segments]
        count = merged_segments(sizes, len(buffer), part=self._part_bytes)
        taken = sum(sizes[len(sizes) - count :])
        if not self._memory.try_take(taken):
            count = taken = 0
        try:
            merged = slot.segments[len(sizes) - count :]
            start = slot.stored - taken
            body = await self._segments.joined(merged, buffer)
            await self._check_fence()
            stored = await self._segments.store(self._name, start, body, epoch=self._epoch)
        except BaseException:
            buffer.abandon()
            raise
        finally:
            self._memory.give(taken)
        slot.segments[len(sizes) - count :] = [stored]
        slot.replaced += [part.key for part in merged]
        if slot.spilling is asyncio.current_task():
            slot.spilling = None
        self._segments.keep(stored, body)

    async def _upload_later(self, slot: _Slot, *, whole: bool) -> None:
        await self._over(slot.spilling)
        size = slot.stored - slot.start
        await self._memory.take(size)
        self._memory.leave(size)
        try:
            await self._upload(slot, self._segments.chunks(), whole=whole)
        finally:
            self._memory.give(size, leaving=True)

    async def _upload(self, slot: _Slot, buffer: Chunks, *, whole: bool) -> None:
        try:
            await self._upload_run(slot, buffer, whole=whole)
        except BaseException:
            buffer.abandon()
            raise
        buffer.recycle()

    async def _upload_run(self, slot: _Slot, buffer: Chunks, *, whole: bool) -> None:
        body = await self._segments.joined(slot.segments, buffer)
        digest = await self._segments.digest(body)
        number, end = slot.index + 1, slot.start + len(body)
        if whole:
            await self._check_fence()
            key = naming.fresh_file_key(self._name)
            etag = await self._calls.put(key, body)
            key = naming.object_part_key(key)
        else:
            multipart = await self._multipart_id()
            etag = await self._calls.upload_part(
                naming.file_key(self._name), multipart, number, body, checked=self._checked, fence=self._fence
            )
            key = naming.multipart_part_key(self._name, multipart)
        slot.replaced += [part.key for part in slot.segments]
        slot.part = Part(number, slot.start, end, key, etag, digest, self._epoch)

    async def _multipart_id(self) -> str:
        """The multipart upload; made when the first part is there, so that small files have none."""
        async with self._creating:
            if self._multipart is None:
                self._multipart = await self._calls.create_multipart(naming.file_key(self._name), checked=self._checked)
                self._untold = self._multipart
            return self._multipart

    async def _check_fence(self) -> None:
        # a part that a newer writer committed must not be replaced by one that was asleep (lesson L2)
        if self._fence is not None:
            await self._fence()

    async def _over(self, task: asyncio.Task[None] | None) -> None:
        """Returns once the task has succeeded. Raises what it, or anything else of this append, met."""
        if task is not None:
            await asyncio.wait({task})
        self._raise_if_failed()

    async def close(self) -> None:
        """Nothing is on its way any more, and nothing gathered."""
        self._memory.withdraw(self)
        for slot in self._slots:
            self._memory.give(len(self._taken(slot)))
        cancelled: asyncio.CancelledError | None = None
        while self._under_way:
            for task in self._under_way:
                task.cancel()
            try:
                await asyncio.wait(self._under_way)
            except asyncio.CancelledError as again:
                # a second one must not leave calls behind that write after the lease has gone
                cancelled = again
        if self._untold is not None:
            with suppress(StorageError):
                await self._calls.abort_multipart(naming.file_key(self._name), self._untold, attempts=1)
        if cancelled is not None:
            raise cancelled


def _as_exception(error: BaseException) -> Exception:
    return error if isinstance(error, Exception) else RuntimeError(repr(error))
