"""Buffers that bytes came in are sent to the store as they are, and not used again before that is over."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable

import pytest

from service.storage.base import Observer, StorageUnavailable
from service.storage.s3 import S3Storage
from tests.contract.buckets import MIB, PART, Bucket, Upload, bucket_of, give_up_soon, some_bytes
from tests.stores.calls import Call
from tests.stores.faults import Cut, Fault, after, before, error, hang, hold, slow_down, status
from tests.stores.faulty import FaultyStore
from tests.stores.servers import Store

#: more than the buffers of all sockets on the way together: who sends it is still at it when the store stalls
LARGE_PART = 24 * MIB


@pytest.fixture
async def s3(store: Store, bucket: str, faulty: FaultyStore, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bucket]:
    async with bucket_of(store, bucket, faulty, monkeypatch) as made:
        yield made


class Lender:
    """Hands out bytes in buffers, and at once puts other bytes into each that comes back, as the next body would."""

    def __init__(self) -> None:
        self.handed_out = 0
        self.kept = 0
        self.back = 0
        #: asked when a buffer comes back
        self.look: Callable[[], None] = lambda: None
        self._last: bytearray | None = None

    @property
    def missing(self) -> int:
        """Buffers that were kept and have not come back."""
        return self.kept - self.back

    def piece(self, data: memoryview) -> memoryview:
        """The data, in a buffer."""
        self.handed_out += 1
        self._last = bytearray(data)
        return memoryview(self._last)

    def written(self) -> None:
        """The piece was written: its buffer is used again, if it was not kept."""
        if self._last is not None:
            self._spoil(self._last)
            self._last = None

    def keep(self) -> Callable[[], None]:
        """See `storage.base.Keep`."""
        buffer, self._last = self._last, None
        assert buffer is not None, "asked twice in one write"
        self.kept += 1
        came_back = False

        def release() -> None:
            nonlocal came_back
            assert not came_back, "given back twice"
            came_back = True
            self.back += 1
            self.look()
            self._spoil(buffer)

        return release

    @staticmethod
    def _spoil(buffer: bytearray) -> None:
        buffer[:] = b"\xee" * len(buffer)


async def send(
    storage: S3Storage,
    upload: Upload,
    lender: Lender,
    size: int | None = None,
    *,
    last: bool = False,
    observe: Observer | None = None,
) -> None:
    """As `Upload.request`, from the lender's buffers."""
    end = len(upload.data) if size is None else upload.offset + size
    async with storage.append(
        upload.upload_id, upload.ledger, epoch=1, align=1, observe=observe, keep=lender.keep
    ) as appender:
        for at in range(upload.offset, end, MIB):
            await appender.write(lender.piece(memoryview(upload.data)[at : min(at + MIB, end)]))
            lender.written()
        upload.commit(await appender.flush(last=last))
    await storage.drop(upload.upload_id, upload.drop)


@pytest.mark.parametrize("observed", [True, False])
async def test_buffers_come_back_when_their_part_is_stored(s3: Bucket, observed: bool) -> None:
    """Every buffer is kept, and comes back once, not before the store has the part that it is in."""
    storage = await s3.adapter()
    upload, lender = Upload(some_bytes(4 * PART)), Lender()
    seen = bytearray()
    stored: list[Call] = []
    s3.faulty.fault("upload_part", times=None, what=after(stored.append))

    def look() -> None:
        assert lender.back <= len(stored) * PART // MIB

    lender.look = look
    await send(storage, upload, lender, last=True, observe=seen.extend if observed else None)

    assert lender.kept == lender.handed_out == 20
    assert lender.missing == 0
    assert bytes(seen) == (upload.data if observed else b"")
    assert s3.body(await upload.complete(storage)) == upload.data


async def test_a_buffer_that_two_parts_would_share_is_copied(s3: Bucket) -> None:
    """After a request that ended anywhere buffers lie across borders of parts: those are copied, the rest is kept."""
    storage = await s3.adapter()
    upload, lender = Upload(some_bytes(3 * PART + 5)), Lender()
    await send(storage, upload, lender, MIB // 2)
    await send(storage, upload, lender, last=True)

    assert lender.kept == lender.handed_out - 3
    assert s3.body(await upload.complete(storage)) == upload.data


@pytest.mark.parametrize("observed", [True, False])
async def test_tails_go_on_from_kept_buffers(s3: Bucket, observed: bool) -> None:
    """Requests that end in the middle of a part leave tails at hand: whoever joins them has their own bytes."""
    storage = await s3.adapter()
    upload, lender = Upload(some_bytes(2 * PART + 7)), Lender()
    while upload.offset < len(upload.data):
        size = min(2 * MIB, len(upload.data) - upload.offset)
        await send(storage, upload, lender, size, last=size < 2 * MIB, observe=bytearray().extend if observed else None)

    assert lender.kept
    assert s3.body(await upload.complete(storage)) == upload.data


class Stalls(Fault):
    """The store takes the head and stops reading, until it is told to go on: then the connection is reset."""

    def __init__(self) -> None:
        self.stalled = threading.Event()
        self._go = threading.Event()

    def arrived(self, call: Call) -> None:
        """See `Fault.arrived`."""
        self.stalled.set()
        self._go.wait()
        raise Cut

    def release(self) -> None:
        """See `Fault.release`."""
        self._go.set()


@pytest.mark.parametrize(
    "again",
    [None, status(500), slow_down(), error("BadDigest", 400)],
    ids=["once", "then 500", "then SlowDown", "then BadDigest"],
)
async def test_a_part_that_stalled_half_sent_is_sent_again_as_it_was(s3: Bucket, again: Fault | None) -> None:
    """A store that stops in the middle of a part, resets, and perhaps fails once more, gets the same bytes again.

    Meanwhile another upload goes through, whose bytes are in no part of the first.
    """
    storage = await s3.adapter(part_bytes=LARGE_PART)
    slow, other = Upload(some_bytes(LARGE_PART + MIB, 1)), Upload(some_bytes(LARGE_PART + MIB, 2))
    lender = Lender()
    stalls = Stalls()
    s3.faulty.fault("upload_part", part_number=1, what=stalls, key=slow.name)
    if again is not None:
        s3.faulty.fault("upload_part", part_number=1, nth=2, what=again, key=slow.name)
    sending = asyncio.ensure_future(send(storage, slow, lender, last=True))
    await asyncio.to_thread(stalls.stalled.wait)
    while not lender.handed_out == lender.kept == 25:
        await asyncio.sleep(0.002)
    await send(storage, other, Lender(), last=True)
    # the last part, of one buffer, may be stored by now
    assert lender.back <= 1
    stalls.release()
    await sending

    assert lender.missing == 0
    assert s3.body(await slow.complete(storage)) == slow.data
    assert s3.body(await other.complete(storage)) == other.data


async def test_a_part_that_failed_gives_nothing_back(s3: Bucket, monkeypatch: pytest.MonkeyPatch) -> None:
    """Buffers of a part that the store never answered are given up: nobody else gets them. The client goes on."""
    give_up_soon(monkeypatch, 0.5)
    storage = await s3.adapter()
    upload, lender = Upload(some_bytes(2 * PART)), Lender()
    s3.faulty.fault("upload_part", times=None, what=hang())
    with pytest.raises(StorageUnavailable):
        await send(storage, upload, lender, last=True)
    assert (lender.kept, lender.back) == (10, 0)

    s3.faulty.clear()
    await upload.request(storage, last=True)
    assert s3.body(await upload.complete(storage)) == upload.data


async def test_a_request_that_is_cancelled_gives_nothing_back_that_is_being_sent(s3: Bucket) -> None:
    """Cancelled in the middle of a part, a request is over when the store has hung up, and its buffers are lost."""
    storage = await s3.adapter(part_bytes=LARGE_PART)
    upload, lender = Upload(some_bytes(LARGE_PART + MIB)), Lender()
    stalls = Stalls()
    s3.faulty.fault("upload_part", what=stalls)
    sending = asyncio.ensure_future(send(storage, upload, lender))
    await asyncio.to_thread(stalls.stalled.wait)
    sending.cancel()
    await asyncio.wait({sending}, timeout=0.1)
    assert not sending.done()
    assert lender.back == 0
    stalls.release()
    with pytest.raises(asyncio.CancelledError):
        await sending
    assert lender.back == 0


async def test_a_buffer_is_not_kept_before_there_is_memory_for_it(s3: Bucket) -> None:
    """While memory is used up a write waits with its buffer, and cancelled it leaves it to whoever wrote it."""
    storage = await s3.adapter()
    lender = Lender()
    taken = storage._memory.limit
    assert storage._memory.try_take(taken)
    writing = asyncio.ensure_future(send(storage, Upload(some_bytes(MIB)), lender))
    while not storage._memory._waiting:
        await asyncio.sleep(0.002)
    assert (lender.handed_out, lender.kept) == (1, 0)
    writing.cancel()
    await asyncio.wait({writing})
    storage._memory.give(taken)
    assert storage._memory.used == 0


async def test_a_write_that_is_cancelled_while_it_waits_for_a_thread_gives_its_buffer_back(s3: Bucket) -> None:
    """Neither observed nor held, the buffer comes back, once."""
    storage = await s3.adapter()
    lender, seen = Lender(), bytearray()
    busy = hold()
    waits = [asyncio.ensure_future(storage._workers.run(busy._go.wait)) for _ in range(4)]
    await asyncio.sleep(0)
    writing = asyncio.ensure_future(send(storage, Upload(some_bytes(MIB)), lender, observe=seen.extend))
    while not lender.kept:
        await asyncio.sleep(0.002)
    writing.cancel()
    await asyncio.wait({writing})
    busy.release()
    await asyncio.wait(waits)

    assert (lender.kept, lender.back, bytes(seen)) == (1, 1, b"")
    assert storage._memory.used == 0


async def test_only_a_body_that_is_sent_again_is_announced(s3: Bucket) -> None:
    """The first time a part goes without a round trip; the second time a store that refuses it can say so before."""
    storage = await s3.adapter()
    upload = Upload(some_bytes(PART + 1))
    s3.faulty.fault("upload_part", part_number=1, what=status(500))
    await upload.request(storage, last=True)

    first = [call.announced for call in s3.calls("upload_part") if call.part_number == 1]
    assert first == [False, True]
    assert s3.body(await upload.complete(storage)) == upload.data


@pytest.mark.parametrize("times", [1, 2])
async def test_a_store_that_hangs_up_on_a_body_is_asked_again(s3: Bucket, times: int) -> None:
    """A reset while the body is still on its way, once or twice, costs nothing but another attempt."""

    def cut(_call: Call) -> None:
        raise Cut

    storage = await s3.adapter(part_bytes=LARGE_PART)
    upload = Upload(some_bytes(LARGE_PART + 1))
    s3.faulty.fault("upload_part", part_number=1, times=times, what=before(cut))
    await upload.request(storage, last=True)
    assert len([call for call in s3.calls("upload_part") if call.part_number == 1]) == times + 1
    assert s3.body(await upload.complete(storage)) == upload.data
