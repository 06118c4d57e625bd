"""The buffer pool: one limit, turns in order of arrival, and no room that nobody is told of."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import random

import pytest

from service.web import buffers
from service.web.buffers import BUFFER_BYTES, KEPT_BYTES, SMALL_BYTES, Buffer, BufferPool


async def _full(limit: int) -> tuple[BufferPool, list[Buffer]]:
    """A pool of which all is taken, and what was taken."""
    pool = BufferPool(limit)
    taken = []
    while (buffer := pool.take_now(1)) is not None:
        taken.append(buffer)
    return pool, taken


async def _waiting(pool: BufferPool, wanted: int) -> asyncio.Task[Buffer]:
    task = asyncio.create_task(pool.take(wanted))
    await asyncio.sleep(0)
    return task


async def _cancelled(task: asyncio.Task[Buffer]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def test_sizes() -> None:
    """A small body gets a small buffer, a large one a large one, and a small one once half is in use."""
    pool = BufferPool(4 * BUFFER_BYTES)
    assert len(await pool.take(SMALL_BYTES)) == SMALL_BYTES
    assert len(await pool.take(SMALL_BYTES + 1)) == BUFFER_BYTES
    assert len(await pool.take(BUFFER_BYTES)) == BUFFER_BYTES
    assert len(await pool.take(BUFFER_BYTES)) == SMALL_BYTES


async def test_room_for_a_small_one_is_used() -> None:
    """Where a large buffer does not fit any more and a small one does, nobody waits."""
    pool = BufferPool(BUFFER_BYTES)
    assert len(await pool.take(1)) == SMALL_BYTES
    async with asyncio.timeout(30):
        assert len(await pool.take(BUFFER_BYTES)) == SMALL_BYTES


async def test_memory_that_is_not_to_be_had_counts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever asks, or waits, hears of it; nothing is counted as in use, and whoever gave one back hears nothing."""
    pool, taken = await _full(SMALL_BYTES)
    waiting = await _waiting(pool, 1)

    def fails(*_: object, **__: object) -> None:
        raise OSError(errno.ENOMEM, "out of memory")

    with monkeypatch.context() as failing:
        failing.setattr(buffers, "mmap", fails)
        failing.setattr(pool._small, "put", lambda _: None)
        pool.give(taken.pop())
        with pytest.raises(OSError, match="memory"):
            await waiting
        with pytest.raises(OSError, match="memory"):
            pool.take_now(1)
    assert pool.used_bytes == 0
    assert pool.take_now(1) is not None


async def test_one_that_gave_up_after_its_turn_passes_it_on() -> None:
    """A waiter cancelled in the moment it was served costs the next one nothing."""
    pool, taken = await _full(2 * SMALL_BYTES)
    first, second = await _waiting(pool, 1), await _waiting(pool, 1)
    pool.give(taken.pop())
    await _cancelled(first)
    async with asyncio.timeout(30):
        await second
    assert pool.used_bytes == 2 * SMALL_BYTES


async def test_one_that_gave_up_while_waiting_is_skipped() -> None:
    """A cancelled waiter gets nothing and keeps nothing."""
    pool, taken = await _full(SMALL_BYTES)
    first, second = await _waiting(pool, 1), await _waiting(pool, 1)
    await _cancelled(first)
    pool.give(taken.pop())
    async with asyncio.timeout(30):
        pool.give(await second)
    assert pool.used_bytes == 0


async def test_a_large_one_serves_many_small_ones() -> None:
    """What a large buffer gives back is shared by all that it is enough for."""
    pool = BufferPool(BUFFER_BYTES)
    large = await pool.take(BUFFER_BYTES)
    waiting = [await _waiting(pool, 1) for _ in range(5)]
    pool.give(large)
    async with asyncio.timeout(30):
        await asyncio.gather(*waiting)
    assert pool.used_bytes == 5 * SMALL_BYTES


async def test_one_that_is_parted_with_makes_room_and_comes_back() -> None:
    """A buffer that somebody else accounts for serves who waits, and is used again only when it is given up."""
    pool = BufferPool(BUFFER_BYTES + SMALL_BYTES)
    kept = await pool.take(BUFFER_BYTES)
    small = await pool.take(1)
    waiting = await _waiting(pool, 1)
    release = pool.part_with(kept)
    async with asyncio.timeout(1):
        other = await waiting
    assert pool.used_bytes == 2 * SMALL_BYTES

    pool.give(other)
    pool.give(small)
    assert await pool.take(BUFFER_BYTES) is not kept
    pool.give(await pool.take(1))
    release()
    assert pool.used_bytes == BUFFER_BYTES


async def test_one_that_came_back_is_used_again() -> None:
    """Who parts with a buffer for a while does not pay for another one."""
    pool = BufferPool(4 * BUFFER_BYTES)
    kept = await pool.take(BUFFER_BYTES)
    pool.part_with(kept)()
    assert pool.used_bytes == 0
    assert await pool.take(BUFFER_BYTES) is kept


async def test_first_come_first_served() -> None:
    """A newcomer does not overtake one that waits, though there is room."""
    pool, taken = await _full(SMALL_BYTES)
    first = await _waiting(pool, 1)
    pool.give(taken.pop())
    assert pool.take_now(1) is None
    second = await _waiting(pool, 1)
    assert first.done()
    assert not second.done()
    pool.give(first.result())
    async with asyncio.timeout(30):
        await second


async def test_nothing_is_lost_in_a_crowd() -> None:
    """Two thousand takers, a third of which give up at some point, leave a pool of which nothing is used.

    What it keeps at hand for the next never comes on top of the limit.
    """
    pool, chance = BufferPool(2 * BUFFER_BYTES), random.Random(2)
    most = 0

    async def use() -> None:
        nonlocal most
        buffer = await pool.take(chance.choice([1, BUFFER_BYTES]))
        most = max(most, pool.used_bytes + pool.free_bytes)
        try:
            for _ in range(chance.randrange(4)):
                await asyncio.sleep(0)
        finally:
            pool.give(buffer)

    async with asyncio.timeout(30):
        for _ in range(20):
            tasks = [asyncio.create_task(use()) for _ in range(100)]
            for task in tasks:
                if chance.random() < 0.3:
                    await asyncio.sleep(0)
                    task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    assert pool.used_bytes == 0
    assert most <= pool.limit_bytes


async def test_what_is_free_is_used_again() -> None:
    """Nothing fresh is mapped while a buffer of the size is free, and the last one to come goes first."""
    pool = BufferPool(8 * BUFFER_BYTES)
    for size in (BUFFER_BYTES, SMALL_BYTES):
        first, second = await pool.take(size), await pool.take(size)
        pool.give(first)
        pool.give(second)
        assert [await pool.take(size), await pool.take(size)] == [second, first]


async def test_free_ones_give_way_to_the_other_size() -> None:
    """Where the limit leaves no room beside what is kept, that goes, and nobody waits for it."""
    pool, taken = await _full(2 * BUFFER_BYTES)
    for buffer in taken:
        pool.give(buffer)
    large = [pool.take_now(BUFFER_BYTES), pool.take_now(BUFFER_BYTES)]
    assert [len(buffer or b"") for buffer in large] == [BUFFER_BYTES, SMALL_BYTES]
    assert pool.used_bytes + pool.free_bytes <= pool.limit_bytes


async def test_what_nobody_wants_goes_back() -> None:
    """What was free between two looks is the system's again, but for a few; what was in use is not."""
    pool = BufferPool(2**30)
    busy = [await pool.take(BUFFER_BYTES) for _ in range(20)]
    taken = [await pool.take(size) for size in 30 * [BUFFER_BYTES, SMALL_BYTES]]
    for buffer in taken:
        pool.give(buffer)
    pool.give_back()
    assert pool.free_bytes == sum(map(len, taken))

    for buffer in busy:
        pool.give(buffer)
    pool.give_back()
    assert pool.free_bytes == 20 * BUFFER_BYTES
    pool.give_back()
    assert pool.free_bytes == KEPT_BYTES
    pool.give_back()
    assert pool.free_bytes == KEPT_BYTES


async def test_what_is_wanted_between_two_looks_is_kept() -> None:
    """As many as were in use at once since the last look are at hand at the next such moment."""
    pool = BufferPool(2**30)
    for _ in range(3):
        taken = [await pool.take(BUFFER_BYTES) for _ in range(40)]
        for buffer in taken:
            pool.give(buffer)
        pool.give_back()
        assert pool.free_bytes == 40 * BUFFER_BYTES


async def test_what_somebody_still_looks_at_stays() -> None:
    """Bytes that a thread still writes out when their buffer is given back can be read to the end."""
    pool = BufferPool(BUFFER_BYTES)
    buffer = await pool.take(SMALL_BYTES)
    buffer[:4] = b"late"
    late = memoryview(buffer)
    pool.give(buffer)
    del buffer
    large = pool.take_now(BUFFER_BYTES)
    assert large is not None
    assert pool.free_bytes == 0
    assert bytes(late[:4]) == b"late"
