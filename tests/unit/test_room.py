"""Room for new files: asked for when it could matter, and never promised twice."""

from __future__ import annotations

from typing import Any, cast

import pytest

from service.protocol.intents import Policy
from service.protocol.problems import Refusal
from service.room import Room
from service.storage.base import StorageUnavailable

GIB = 2**30
POLICY = Policy(max_size=4 * GIB, block_size=1, strong_hash=False, idle_seconds=1, life_seconds=1, tombstone_seconds=1)


class Place:
    """A disk, what open uploads were promised of it, and a clock."""

    def __init__(self, free: int | None, promised: int = 0) -> None:
        self.free = free
        self.promised = promised
        self.looks = 0
        self.time = 0.0

    async def free_bytes(self) -> int | None:
        self.looks += 1
        if self.free == -1:
            raise StorageUnavailable("away")
        return self.free

    async def promised_bytes(self) -> int:
        return self.promised

    def monotonic(self) -> float:
        return self.time

    def now(self) -> float:
        return self.time


def room(place: Place) -> Room:
    return Room(cast(Any, place), cast(Any, place), POLICY, place)


@pytest.mark.parametrize(
    ("free", "promised", "wanted", "fits"),
    [
        (10 * GIB, 0, 4 * GIB, True),
        (10 * GIB, 7 * GIB, 4 * GIB, False),
        (10 * GIB, 6 * GIB, 4 * GIB, True),
        (10 * GIB, 11 * GIB, 0, False),
        (5, 0, 0, True),
        (5, 5, None, True),
        (0, 0, 0, False),
        (0, 0, None, False),
        (None, 0, 4 * GIB, True),
    ],
)
async def test_D5_what_does_not_fit_is_refused(free: int | None, promised: int, wanted: int | None, fits: bool) -> None:
    """A file fits beside what open uploads were promised, or is refused with 507."""
    checking = room(Place(free, promised)).check(wanted)
    if fits:
        await checking
        return
    with pytest.raises(Refusal) as refused:
        await checking
    assert refused.value.problem.slug == "storage-full"


async def test_plenty_is_asked_for_once_a_second() -> None:
    """With plenty left a thousand creations ask the disk once, and once more a second later."""
    place = Place(1000 * GIB)
    asked = room(place)
    for _ in range(1000):
        await asked.check(1000)
    assert place.looks == 1
    place.time += 1.0
    await asked.check(1000)
    assert place.looks == 2


async def test_what_was_promised_meanwhile_counts() -> None:
    """Within the second each creation takes its part of what is known; near the end each asks."""
    place = Place(20 * GIB)
    asked = room(place)
    await asked.check(4 * GIB)
    await asked.check(4 * GIB)
    assert place.looks == 1
    place.free, place.promised = 20 * GIB, 8 * GIB
    await asked.check(4 * GIB)
    assert place.looks == 1
    place.promised = 18 * GIB
    with pytest.raises(Refusal):
        await asked.check(4 * GIB)
    assert place.looks == 2


async def test_storage_that_is_away_says_so() -> None:
    """A disk that cannot be asked is a 503, not a full one."""
    with pytest.raises(Refusal) as refused:
        await room(Place(-1)).check(1)
    assert refused.value.problem.slug == "storage-unavailable"
