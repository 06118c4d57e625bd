"""Concatenation in a bucket: copied where it can be, right wherever it fails (C5)."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress

import pytest

from service.clock import new_upload_id
from service.model import Part
from service.storage.base import Receipt, StorageShort, StorageUnavailable, Stored
from service.storage.s3 import Memory, S3Storage
from tests.contract.buckets import MIB, PART, Bucket, Upload, bucket_of, forget_tails, some_bytes
from tests.contract.storage_values import unfinished
from tests.stores.calls import Call, Kind
from tests.stores.faults import Cut, after, before, error, hold, status
from tests.stores.faulty import FaultyStore
from tests.stores.servers import Store


@pytest.fixture
async def s3(store: Store, bucket: str, faulty: FaultyStore, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Bucket]:
    async with bucket_of(store, bucket, faulty, monkeypatch) as made:
        yield made


async def _source(storage: S3Storage, size: int, *, last: bool = True) -> Upload:
    upload = Upload(some_bytes(size, seed=size))
    await upload.request(storage, last=last)
    forget_tails(storage)
    return upload


class Joined(Upload):
    """An upload that is the sources one after the other."""

    def __init__(self, sources: Sequence[Upload]) -> None:
        super().__init__(b"".join(source.data for source in sources))
        self.sources = sources

    async def join(self, storage: S3Storage, *, epoch: int = 1) -> Stored:
        """Both steps, the ledger committed in between."""
        receipt = await storage.concatenate(self.upload_id, [source.ledger for source in self.sources], epoch=epoch)
        assert receipt.offset == len(self.data)
        self.commit(receipt)
        return await self.complete(storage, epoch=epoch)


async def test_c5_what_lies_on_the_borders_is_copied_by_the_store(s3: Bucket) -> None:
    """C5: Sources of whole parts are copied, and none of their bytes passes through here."""
    storage = await s3.adapter()
    joined = Joined([await _source(storage, 2 * PART), await _source(storage, 3 * PART)])
    s3.faulty.clear()
    stored = await joined.join(storage)

    assert s3.kinds()["upload_part_copy"] == 5
    assert not s3.kinds()["upload_part"] + s3.kinds()["put_object"]
    assert [call.status for call in s3.calls("get_object")] == [404], "asked whether it was joined before"
    assert s3.body(stored) == joined.data


@pytest.mark.parametrize("last", [True, False], ids=["known", "deferred"])
async def test_c5_parts_that_straddle_two_sources_are_streamed(s3: Bucket, last: bool) -> None:
    """C5: A part made of two sources, or of a tail, passes through memory; others are copied; parts stay equal."""
    s3.faulty.equal_parts = True
    storage = await s3.adapter()
    joined = Joined([await _source(storage, size, last=last) for size in (2 * PART + 5, 3 * PART, 7, MIB)])
    s3.faulty.clear()
    stored = await joined.join(storage)

    assert s3.body(stored) == joined.data
    copied = [call.part_number for call in s3.calls("upload_part_copy")]
    assert {1, 2, 4, 5} <= set(copied)
    assert 3 not in copied
    for source in joined.sources:
        await storage.discard(source.upload_id, finished=True)
    assert s3.objects() == {stored.key: len(joined.data)}
    assert not s3.multiparts()


@pytest.mark.parametrize("sizes", [(0, 0), (0, 3), (3, 4, 5), (PART - 1, 1), (PART - 1, 2), (PART + 1, 0)], ids=str)
@pytest.mark.parametrize("last", [True, False], ids=["known", "deferred"])
async def test_c5_small_totals_are_right(s3: Bucket, sizes: tuple[int, ...], last: bool) -> None:
    """C5: Totals of nothing, less than a part, a part and one byte more are joined right; the sources still read."""
    storage = await s3.adapter()
    joined = Joined([await _source(storage, size, last=last) for size in sizes])
    stored = await joined.join(storage)

    assert s3.body(stored) == joined.data
    for source in joined.sources:
        assert await unfinished(storage, source.ledger) == source.data


@pytest.mark.parametrize("what", [status(500), error("NotImplemented", 501)], ids=["500", "501"])
async def test_c5_a_store_that_does_not_copy_takes_the_bytes(s3: Bucket, what: object) -> None:
    """C5: Where UploadPartCopy fails for good, the bytes are streamed instead, within the memory's limit."""
    memory = Memory(2 * PART)
    most = 0
    take, try_take = memory.take, memory.try_take

    async def watched(size: int) -> None:
        nonlocal most
        await take(size)
        most = max(most, memory.used)

    def watched_try(size: int, *, spare: int = 0) -> bool:
        nonlocal most
        taken = try_take(size, spare=spare)
        most = max(most, memory.used)
        return taken

    memory.take, memory.try_take = watched, watched_try  # type: ignore[method-assign]
    storage = await s3.adapter(memory=memory)
    joined = Joined([await _source(storage, 2 * PART), await _source(storage, 2 * PART + 1)])
    s3.faulty.clear()
    s3.faulty.fault("upload_part_copy", times=None, what=what)  # type: ignore[arg-type]
    stored = await joined.join(storage)

    assert 0 < most <= memory.limit
    assert s3.kinds()["upload_part"] == 5
    assert s3.body(stored) == joined.data


#: what joining and completing asks of the store in the tests below
JOIN: dict[Kind, int] = {
    "head_object": 3,
    "complete_multipart_upload": 2,
    "create_multipart_upload": 1,
    "upload_part_copy": 1,
    "get_object": 3,
    "upload_part": 1,
}


async def _sources(s3: Bucket) -> Joined:
    storage = await s3.adapter(direct=True)
    return Joined([await _source(storage, PART + MIB), await _source(storage, 2 * MIB, last=False)])


async def test_c5_a_concatenation_makes_these_calls(s3: Bucket) -> None:
    """C5: The calls at which the tests below stop are all that joining makes but for listing and removing."""
    joined = await _sources(s3)
    storage = await s3.adapter()
    await joined.join(storage)

    assert s3.kinds() == JOIN


def _gone(s3: Bucket) -> Callable[[Call], None]:
    def callback(call: Call) -> None:
        s3.faulty.down = "reset"
        raise Cut

    return callback


@pytest.mark.parametrize(
    ("kind", "nth", "when"),
    # to stop after a look is to stop before what follows
    [
        (kind, nth + 1, when)
        for kind, count in JOIN.items()
        for nth in range(count)
        for when in ((before,) if kind in {"head_object", "get_object"} else (before, after))
    ],
)
async def test_c5_joining_survives_a_crash_at_every_call(
    s3: Bucket, kind: Kind, nth: int, when: Callable[[object], object]
) -> None:
    """C5: Joining stops before or after any call; done again, by another process, it ends right and leaves nothing."""
    joined = await _sources(s3)
    storage = await s3.adapter()
    s3.faulty.fault(kind, nth=nth, what=when(_gone(s3)))  # type: ignore[arg-type]
    with suppress(StorageUnavailable):
        await joined.join(storage)
    s3.faulty.down = None
    other = await s3.adapter()
    again = Joined(joined.sources)
    again.upload_id = joined.upload_id
    stored = await again.join(other, epoch=2)

    assert s3.body(stored) == joined.data
    for source in joined.sources:
        await other.discard(source.upload_id, finished=True)
    assert s3.objects() == {stored.key: len(joined.data)}
    assert not s3.multiparts()


async def test_c5_joining_twice_after_the_end_is_the_same_file(s3: Bucket) -> None:
    """C5: A concatenation made again although its file is complete finds it, and does not join anew."""
    joined = await _sources(s3)
    storage = await s3.adapter()
    first = await joined.join(storage)
    s3.faulty.clear()
    again = Joined(joined.sources)
    again.upload_id = joined.upload_id

    assert await again.join(storage, epoch=2) == first
    assert not s3.kinds()["create_multipart_upload"]
    assert s3.body(first) == joined.data


async def _refused(storage: S3Storage, ledgers: Sequence[Sequence[Part]]) -> Receipt:
    return await storage.concatenate(new_upload_id(), ledgers, epoch=1)


async def test_c5_a_part_that_fails_for_good_is_worth_a_retry(s3: Bucket) -> None:
    """C5: Where neither copying nor sending works, joining raises StorageUnavailable, and holds and leaves nothing."""
    joined = await _sources(s3)
    memory = Memory(8 * PART)
    storage = await s3.adapter(memory=memory)
    s3.faulty.fault("upload_part_copy", times=None, what=status(500))
    s3.faulty.fault("upload_part", times=None, what=status(500))
    with pytest.raises(StorageUnavailable):
        await _refused(storage, [source.ledger for source in joined.sources])

    assert memory.used == memory._kept_bytes
    assert not s3.multiparts()


async def test_c5_two_joins_leave_a_thread_for_others(s3: Bucket) -> None:
    """C5: While every copy of two concatenations hangs, the store is still asked other things."""
    storage = await s3.adapter()
    source = await _source(storage, 2 * PART)
    held = hold()
    s3.faulty.fault("upload_part_copy", times=None, what=held)
    joined = [Joined([source] * 5) for _ in range(2)]
    joining = [asyncio.ensure_future(each.join(storage)) for each in joined]
    async with asyncio.timeout(30):
        while len(asyncio.all_tasks()) < 1 + len(joined) + 2 * 10:
            await asyncio.sleep(0.002)
    await asyncio.to_thread(s3.faulty.wait_for, "upload_part_copy", 8)
    async with asyncio.timeout(30):
        await storage.probe()

    held.release()
    for each, stored in zip(joined, await asyncio.gather(*joining), strict=True):
        assert s3.body(stored) == each.data


async def test_c5_a_source_that_vanished_is_short(s3: Bucket) -> None:
    """C5: A source whose tail is gone from the bucket makes joining StorageShort."""
    joined = await _sources(s3)
    storage = await s3.adapter()
    await storage.discard(joined.sources[1].upload_id, finished=True)
    with pytest.raises(StorageShort):
        await _refused(storage, [source.ledger for source in joined.sources])
