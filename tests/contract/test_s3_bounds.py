"""One limit of memory, shared by whoever has bytes in hand, and nothing running on after a request (D1, D2)."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, suppress

import pytest

from service.storage.base import StorageShort, StorageUnavailable
from service.storage.s3 import Memory, S3Storage
from tests.contract.buckets import MIB, PART, Bucket, Upload, Waits, bucket_of, forget_tails, some_bytes
from tests.contract.storage_values import finished, gathered
from tests.stores.faults import error, hold, status
from tests.stores.faulty import FaultyStore
from tests.stores.servers import Store


@pytest.fixture
async def s3(store: Store, bucket: str, faulty: FaultyStore, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bucket]:
    async with bucket_of(store, bucket, faulty, monkeypatch) as made:
        yield made


class Watched(Memory):
    """Knows the most that was ever taken."""

    most = 0

    @property
    def used(self) -> int:
        return self._used

    @used.setter
    def used(self, value: int) -> None:
        self._used = value
        self.most = max(self.most, value)


async def test_d2_appends_make_each_other_spill_and_all_finish(s3: Bucket) -> None:
    """D2: Twenty requests with more in hand than there is memory: all wait for each other, and every file is right."""
    memory = Watched(8 * PART)
    storage = await s3.adapter(memory=memory)
    uploads = [Upload(some_bytes((1 + number % 5) * MIB + number, seed=number)) for number in range(20)]
    inside = asyncio.Barrier(len(uploads))

    async def send(upload: Upload) -> None:
        async with storage.append(upload.upload_id, (), epoch=1, align=1) as appender:
            for at in range(0, len(upload.data), 2**18):
                await appender.write(memoryview(upload.data)[at : at + 2**18])
                # as a request waits for its client's next bytes: the others have their turns
                await asyncio.sleep(0)
            # nobody ends, and gives memory back, before everybody has been able to put in all there is
            await inside.wait()
            upload.commit(await appender.flush(last=True))

    async with asyncio.timeout(50):
        await asyncio.gather(*(send(upload) for upload in uploads))
        stored = [await upload.complete(storage) for upload in uploads]
    assert sum(len(upload.data) for upload in uploads) > memory.limit >= memory.most
    assert s3.kinds()["put_object"] > len(uploads), "somebody spilled"
    for upload, file in zip(uploads, stored, strict=True):
        assert s3.body(file) == upload.data


async def test_d2_parts_larger_than_what_is_left_go_through(s3: Bucket) -> None:
    """D2: Five uploads of three parts each share memory for two: it is never exceeded, and all end right."""
    memory = Watched(2 * PART)
    storage = await s3.adapter(memory=memory)
    uploads = [Upload(some_bytes(3 * PART + number, seed=number)) for number in range(5)]
    async with asyncio.timeout(50):
        await asyncio.gather(*(upload.request(storage, last=True) for upload in uploads))
        stored = [await upload.complete(storage) for upload in uploads]

    assert memory.most <= memory.limit
    for upload, file in zip(uploads, stored, strict=True):
        assert s3.body(file) == upload.data


async def test_d2_a_store_that_is_slow_stops_the_writer(s3: Bucket) -> None:
    """D2: While no part gets through, a request takes no more than the limit, and its writer waits."""
    memory = Watched(3 * PART)
    storage = await s3.adapter(memory=memory)
    upload = Upload(some_bytes(6 * PART))
    held = hold()
    s3.faulty.fault("upload_part", times=None, what=held)
    writing = asyncio.ensure_future(upload.request(storage, last=True))
    await asyncio.to_thread(s3.faulty.wait_for, "upload_part", 3)

    assert not writing.done()
    assert memory.used <= memory.limit
    held.release()
    await writing
    assert memory.most <= memory.limit
    assert s3.body(await upload.complete(storage)) == upload.data


async def test_d2_tails_are_read_back_within_the_limit(s3: Bucket) -> None:
    """D2: Ten uploads go on at once and read their tails back, in memory for two: no more are fetched at a time."""
    before = await s3.adapter()
    uploads = [Upload(some_bytes(4 * MIB, seed=number)) for number in range(10)]
    for upload in uploads:
        await upload.request(before)
    memory = Watched(2 * PART)
    storage = await s3.adapter(memory=memory)
    held = hold()
    s3.faulty.fault("get_object", times=None, what=held)
    reading = [
        asyncio.ensure_future(gathered(storage.read_upload(upload.ledger, MIB, upload.offset))) for upload in uploads
    ]
    async with asyncio.timeout(30):
        await asyncio.to_thread(s3.faulty.wait_for, "get_object", 2)
        while len(memory._waiting) < 8:
            await asyncio.sleep(0.002)
        assert s3.kinds()["get_object"] == 2
        held.release()
        assert await asyncio.gather(*reading) == [upload.data[MIB:] for upload in uploads]
    assert memory.most <= memory.limit


async def test_d2_a_tail_that_is_read_in_part_is_given_back(s3: Bucket) -> None:
    """D2: Who stops reading a tail, or does not find it, holds no memory."""
    before = await s3.adapter()
    upload = Upload(some_bytes(2 * MIB))
    await upload.request(before)
    memory = Memory(2 * PART)
    storage = await s3.adapter(memory=memory)
    reader = storage.read_upload(upload.ledger, 0, upload.offset)
    await anext(reader)
    await reader.aclose()  # type: ignore[attr-defined]
    assert memory.used == memory._kept_bytes
    await storage.drop(upload.upload_id, [part.key for part in upload.ledger])
    with pytest.raises(StorageShort):
        await gathered(storage.read_upload(upload.ledger, 0, upload.offset))
    assert memory.used == memory._kept_bytes


async def test_d1_bytes_behind_a_part_that_failed_keep_nobody_waiting(s3: Bucket) -> None:
    """D1: Two requests whose part failed, and whose clients say nothing more, hold what is left: others get it."""
    memory = Watched(3 * PART)
    storage = await s3.adapter(memory=memory)
    failed = [Upload(some_bytes(2 * PART - 1, seed=number)) for number in range(2)]
    async with AsyncExitStack() as requests:
        appenders = []
        for upload in failed:
            written = threading.Event()
            refused = Waits(error("AccessDenied", 403), written.wait)
            s3.faulty.fault("upload_part", what=refused, key=upload.name)
            appender = await requests.enter_async_context(storage.append(upload.upload_id, (), epoch=1, align=1))
            await appender.write(memoryview(upload.data))
            written.set()
            while appender._failed is None:
                await asyncio.sleep(0.002)
            appenders.append(appender)
        assert memory.used == 2 * (PART - 1)
        taken = memory.limit - memory.used
        assert memory.try_take(taken)
        async with asyncio.timeout(30):
            other = Upload(some_bytes(3 * PART))
            await other.request(storage, last=True)
        memory.give(taken)
        for appender in appenders:
            with pytest.raises(StorageUnavailable):
                await appender.write(memoryview(b"more"))
            assert (await appender.held()).offset == 0
    assert memory.used == memory._kept_bytes
    assert memory.most <= memory.limit
    for upload in (other, failed[0]):
        await upload.request(storage, last=True)
        assert s3.body(await upload.complete(storage, epoch=2)) == upload.data


async def test_d1_stalled_readers_leave_memory_for_uploads(s3: Bucket) -> None:
    """D1: Ten downloads whose clients stopped in the middle do not keep an upload from going on."""
    memory = Watched(8 * PART)
    storage = await s3.adapter(memory=memory)
    upload = Upload(some_bytes(6 * PART))
    await upload.request(storage, last=True)
    stored = await upload.complete(storage)
    async with storage.open_file(stored.key) as file:
        readers = [file.read(0, file.size) for _ in range(10)]
        for reader in readers:
            for _ in range(3):
                await anext(reader)
        async with asyncio.timeout(30):
            other = Upload(some_bytes(3 * PART))
            await other.request(storage, last=True)
            assert s3.body(await other.complete(storage)) == other.data
        for reader in readers:
            await reader.aclose()  # type: ignore[attr-defined]

    assert memory.most <= memory.limit
    assert memory.used == memory._kept_bytes


@pytest.mark.parametrize("pieces", [0, 1, 3])
async def test_d2_a_reader_that_stops_early_gives_everything_back(s3: Bucket, pieces: int) -> None:
    """D2: A reader that is closed before its end holds no memory, whatever was being fetched ahead."""
    storage = await s3.adapter()
    upload = Upload(some_bytes(2 * PART))
    await upload.request(storage, last=True)
    stored = await upload.complete(storage)
    async with storage.open_file(stored.key) as file:
        reader = file.read(0, file.size)
        for _ in range(pieces):
            await anext(reader)
        await reader.aclose()  # type: ignore[attr-defined]

    assert storage._memory.used == storage._memory._kept_bytes


@pytest.mark.parametrize("full", [True, False], ids=["memory full", "memory free"])
@pytest.mark.parametrize("nth", [1, 2, 3])
async def test_d2_readers_that_are_cancelled_leave_memory_as_it_was(s3: Bucket, nth: int, full: bool) -> None:
    """D2: Readers cancelled while their first piece, or a later one, is fetched give back what they took, no more."""
    storage = await s3.adapter()
    stored = await finished(storage, some_bytes(4 * MIB))
    forget_tails(storage)
    memory, taken = storage._memory, storage._memory.limit if full else 0
    assert memory.try_take(taken)
    fetched = hold()
    s3.faulty.clear()
    s3.faulty.fault("get_object", nth=4 * nth - 3, times=None, what=fetched)
    async with storage.open_file(stored.key) as file:
        reading = [asyncio.ensure_future(gathered(file.read(0, file.size))) for _ in range(4)]
        await asyncio.to_thread(fetched.caught)
        for task in reading:
            task.cancel()
        fetched.release()
        await asyncio.wait(reading)

    assert memory.used == taken
    memory.give(taken)


async def test_d1_a_download_goes_on_while_uploads_hold_all_memory(s3: Bucket) -> None:
    """D1: A file is read to its end although uploads that wait for the store have all memory, and more want some."""
    storage = await s3.adapter(memory=Memory(4 * PART))
    content = some_bytes(MIB)
    stored = await finished(storage, content)
    forget_tails(storage)
    held = hold()
    for kind in ("put_object", "upload_part"):
        s3.faulty.fault(kind, times=None, what=held)
    uploads = [Upload(some_bytes(3 * PART, seed=number)) for number in range(2)]
    sending = [asyncio.ensure_future(upload.request(storage)) for upload in uploads]
    async with asyncio.timeout(30):
        while not storage._memory._waiting:
            await asyncio.sleep(0.002)
        async with storage.open_file(stored.key) as file:
            assert await gathered(file.read(0, file.size)) == content
    assert not any(task.done() for task in sending)
    held.release()
    await asyncio.gather(*sending)


async def test_d1_any_number_of_stalled_readers_leaves_memory_for_uploads(s3: Bucket) -> None:
    """D1: A hundred downloads that stopped at their first piece, in memory for eight, keep no upload waiting."""
    memory = Watched(2 * MIB)
    storage = await s3.adapter(memory=memory)
    stored = await finished(storage, some_bytes(MIB))
    async with storage.open_file(stored.key) as file:
        readers = [file.read(0, file.size) for _ in range(100)]
        for reader in readers:
            await anext(reader)
        upload = Upload(some_bytes(1000))
        async with asyncio.timeout(30):
            await upload.request(storage, last=True)
        for reader in readers:
            await reader.aclose()  # type: ignore[attr-defined]

    assert s3.body(await upload.complete(storage)) == upload.data


async def test_d2_a_reader_gives_back_what_a_failed_fetch_took(s3: Bucket) -> None:
    """D2: Where the store fails in the middle of a file, the reader is told, and holds no memory."""
    storage = await s3.adapter()
    upload = Upload(some_bytes(2 * PART))
    await upload.request(storage, last=True)
    stored = await upload.complete(storage)
    s3.faulty.fault("get_object", nth=3, times=None, what=status(500))
    async with storage.open_file(stored.key) as file:
        with pytest.raises(StorageUnavailable):
            await gathered(file.read(0, file.size))

    assert storage._memory.used == storage._memory._kept_bytes


# cancellation


async def _nothing_runs_on(s3: Bucket, storage: S3Storage, held: threading.Event | None = None) -> None:
    before = len(s3.faulty.calls)
    await asyncio.sleep(0)
    assert storage._memory.used == storage._memory._kept_bytes
    assert storage._memory._leaving == 0
    assert not storage._memory._gatherers
    assert not storage._memory._waiting
    assert {task for task in asyncio.all_tasks() if not task.done()} == {asyncio.current_task()}
    assert len(s3.faulty.calls) == before


async def _cancelled(task: asyncio.Future[None], *, times: int = 1) -> None:
    for _ in range(times):
        task.cancel()
        await asyncio.sleep(0)


async def test_d2_an_append_cancelled_while_it_waits_for_memory(s3: Bucket) -> None:
    """D2: A writer cancelled while it waits for memory takes none, and gives back what it had gathered."""
    storage = await s3.adapter(memory=Memory(8 * PART))
    memory = storage._memory
    await memory.take(8 * PART - MIB)
    upload = Upload(some_bytes(4 * MIB))
    writing = asyncio.ensure_future(upload.request(storage))
    held = hold()
    s3.faulty.fault("put_object", what=held)
    await asyncio.to_thread(held.caught)
    assert memory._waiting
    writing.cancel()
    held.release()
    await asyncio.wait({writing})
    memory.give(8 * PART - MIB)

    assert writing.cancelled()
    await _nothing_runs_on(s3, storage)


@pytest.mark.parametrize("times", [1, 2], ids=["once", "twice"])
@pytest.mark.parametrize(("kind", "size"), [("upload_part", PART + 1), ("put_object", MIB)])
async def test_d2_an_append_cancelled_while_it_stores(s3: Bucket, kind: str, size: int, times: int) -> None:
    """D2: A request cancelled, even twice, with a part or a segment under way ends when that does; nothing runs on."""
    storage = await s3.adapter()
    upload = Upload(some_bytes(size))
    held = hold()
    s3.faulty.fault(kind, what=held)  # type: ignore[arg-type]
    writing = asyncio.ensure_future(upload.request(storage))
    await asyncio.to_thread(held.caught)
    for _ in range(times):
        writing.cancel()
        for _ in range(10):
            await asyncio.sleep(0)
    assert not writing.done(), "a call that writes is not left alone"
    held.release()
    await asyncio.wait({writing})

    assert writing.cancelled()
    await _nothing_runs_on(s3, storage)
    again = Upload(upload.data)
    again.upload_id = upload.upload_id
    await again.request(storage, last=True, epoch=2)
    assert s3.body(await again.complete(storage, epoch=2)) == upload.data


async def test_d2_a_request_that_dies_gives_back_what_it_gathered(s3: Bucket) -> None:
    """D2: A request that ends in an error of its own with bytes in hand holds none after that."""
    storage = await s3.adapter()
    upload = Upload(some_bytes(2 * PART))
    with suppress(ZeroDivisionError):
        async with storage.append(upload.upload_id, (), epoch=1, align=1) as appender:
            await appender.write(memoryview(upload.data)[: PART + MIB])
            raise ZeroDivisionError
    await _nothing_runs_on(s3, storage)


@pytest.mark.parametrize("kind", ["upload_part_copy", "upload_part", "get_object"])
async def test_d2_a_concatenation_that_is_cancelled_gives_everything_back(s3: Bucket, kind: str) -> None:
    """D2: Joining cancelled at any of its calls holds no memory and runs on nowhere."""
    storage = await s3.adapter(memory=Memory(8 * PART))
    one, two, joined = Upload(some_bytes(PART + MIB)), Upload(some_bytes(2 * MIB)), Upload(b"")
    for source in (one, two):
        await source.request(storage, last=True)
    held = hold()
    s3.faulty.fault(kind, what=held)  # type: ignore[arg-type]
    joining = asyncio.ensure_future(
        storage.concatenate(joined.upload_id, [one.ledger, two.ledger], epoch=1),
    )
    await asyncio.to_thread(held.caught)
    joining.cancel()
    await asyncio.sleep(0)
    held.release()
    await asyncio.wait({joining})

    assert joining.cancelled()
    await _nothing_runs_on(s3, storage)
