"""The memory of the S3 adapter: one limit, taken in order, spilled where nothing moves."""

from __future__ import annotations

import asyncio

import pytest

from service.storage.s3 import Memory


class Filling:
    """A gatherer with some bytes, which notes that it was asked to spill."""

    def __init__(self, memory: Memory, size: int) -> None:
        self.gathered = size
        self.spilled = 0
        self._memory = memory
        assert memory.try_take(size)
        memory.join(self)

    def spill(self) -> None:
        self._memory.leave(self.gathered)
        self.spilled, self.gathered = self.gathered, 0

    def stored(self) -> None:
        """What was spilled has arrived."""
        self._memory.give(self.spilled, leaving=True)


async def waiting(memory: Memory, size: int) -> asyncio.Task[None]:
    """Somebody who waits for so much."""
    task = asyncio.create_task(memory.take(size))
    await asyncio.sleep(0)
    return task


async def test_d2_no_more_than_the_limit_is_taken() -> None:
    """D2: Whoever wants more than is left gets it once it is given back, and not before."""
    memory = Memory(10)
    await memory.take(8)
    late = await waiting(memory, 3)

    assert not late.done()
    memory.give(8)
    await late
    assert memory.used == 3


async def test_those_who_wait_are_served_in_order() -> None:
    """A small wish does not pass by a large one that came before."""
    memory = Memory(10)
    await memory.take(8)
    large, small = await waiting(memory, 9), await waiting(memory, 1)

    assert not memory.try_take(1)
    assert not small.done()
    memory.give(8)
    await asyncio.gather(large, small)
    assert memory.used == 10


async def test_d2_more_than_the_limit_is_had_by_one_alone() -> None:
    """D2: Who wants more than the limit waits until nothing else is taken, and whoever comes later until it is back."""
    memory = Memory(10)
    await memory.take(1)
    huge, later = await waiting(memory, 12), await waiting(memory, 1)

    assert not huge.done()
    memory.give(1)
    await huge
    assert memory.used == 12
    assert not later.done()
    memory.give(12)
    await later
    assert memory.used == 1


async def test_d2_more_than_the_limit_spills_all_that_is_gathered() -> None:
    """D2: Nobody who waits for a slow client keeps a wish for more than the limit waiting."""
    memory = Memory(10)
    slow, slower = Filling(memory, 6), Filling(memory, 4)
    huge = await waiting(memory, 12)

    assert (slow.spilled, slower.spilled) == (6, 4)
    slow.stored()
    slower.stored()
    await huge
    assert memory.used == 12


async def test_a_wait_that_is_cancelled_takes_nothing() -> None:
    """Who gave up waiting keeps nobody else waiting, and holds nothing."""
    memory = Memory(10)
    await memory.take(8)
    large, small = await waiting(memory, 9), await waiting(memory, 1)
    large.cancel()
    await asyncio.wait({large})
    await small

    assert memory.used == 9


async def test_a_wait_that_is_cancelled_as_it_is_served_gives_back() -> None:
    """Memory that was granted to a task cancelled at the same moment is free again."""
    memory = Memory(10)
    await memory.take(10)
    late = await waiting(memory, 10)
    memory.give(10)
    late.cancel()
    await asyncio.wait({late})

    assert memory.used == 0


async def test_d1_the_fullest_is_spilled_where_nothing_moves() -> None:
    """D1: With all memory held by requests that wait for their clients, the fullest stores what it has."""
    memory = Memory(10)
    slow, slower = Filling(memory, 6), Filling(memory, 4)
    late = await waiting(memory, 5)

    assert (slow.spilled, slower.spilled) == (6, 0)
    slow.stored()
    await late


async def test_nothing_is_spilled_while_enough_is_leaving() -> None:
    """Who waits for parts that are on their way makes nobody store a segment."""
    memory = Memory(10)
    slow = Filling(memory, 4)
    await memory.take(6)
    memory.leave(6)
    late = await waiting(memory, 6)

    assert slow.spilled == 0
    memory.give(6, leaving=True)
    await late


async def test_what_is_gathered_later_is_spilled_too() -> None:
    """A gatherer that had nothing when somebody came to wait is asked once it has."""
    memory = Memory(10)
    slow = Filling(memory, 10)
    slow.gathered = 0
    late = await waiting(memory, 5)
    slow.gathered = 10
    memory.look_again()

    assert slow.spilled == 10
    slow.stored()
    await late


async def test_kept_bytes_give_way() -> None:
    """Bytes that are only kept at hand count, and go as soon as somebody wants the room."""
    memory = Memory(16)
    memory.keep("a", b"1234")

    assert (memory.used, memory.kept("a")) == (4, b"1234")
    await memory.take(14)
    assert (memory.used, memory.kept("a")) == (14, None)


@pytest.mark.parametrize("size", [5, 17])
def test_little_is_kept(size: int) -> None:
    """No more than a quarter of the limit is kept."""
    memory = Memory(16)
    memory.keep("a", bytes(size))

    assert memory.kept("a") is None
    assert memory.used == 0


def test_the_oldest_goes_first() -> None:
    """Of what is kept, that goes which was not asked for the longest."""
    memory = Memory(16)
    memory.keep("a", b"12")
    memory.keep("b", b"12")
    memory.kept("a")
    memory.keep("c", b"12")

    assert [memory.kept(key) for key in "abc"] == [b"12", None, b"12"]
