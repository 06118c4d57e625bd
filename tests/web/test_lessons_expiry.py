"""Lessons E1 and E2: uploads that nobody finishes end, and those that move do not."""

from __future__ import annotations

import asyncio
import random
import re
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import pytest

from tests.web.harness import TUS, FakeClock, Site, site
from tests.web.traces import count, events, forward, instant
from tests.web.under_way import begin_patch, held, until

HOUR = 3600
DAY = 24 * HOUR


@pytest.fixture
async def brief(tmp_path: Path) -> AsyncIterator[Site]:
    """A service whose uploads live 2 s after their last byte, and whose sweeper runs when told."""
    async with site(tmp_path, clock=FakeClock(), upload_idle="2s") as running:
        yield running


# --- E1: expiry happens, once, and by itself ------------------------------------------------------


@pytest.mark.parametrize("method", ["HEAD", "GET", "PATCH", "DELETE"])
async def test_E1_expired_is_gone_without_a_sweep(brief: Site, method: str) -> None:
    """Past its time an upload is 410 although no sweeper came."""
    path = await brief.create(10)
    await brief.patch(path, 0, b"hello")
    forward(brief, 2.5)
    if method == "PATCH":
        answer = await brief.patch(path, 5, b"world")
    else:
        answer = await brief.ask(method, path, TUS)
    assert answer.status == 410


async def test_E1_a_sweep_reaps_once(brief: Site) -> None:
    """Two sweeps at the same moment reap an upload once: one event, no bytes left, the row says so."""
    path = await brief.create(10)
    await brief.patch(path, 0, b"hello")
    alive = await brief.create(10)
    forward(brief, 1.5)
    await brief.patch(alive, 0, b"hello")
    forward(brief, 1)
    assert len(brief.leftovers()) == 2
    await asyncio.gather(brief.service.janitor.sweep(), brief.service.janitor.sweep())
    assert len(brief.leftovers()) == 1
    assert [kind for kind, _ in events(brief)] == ["upload.created"] * 2 + ["upload.expired"]
    assert (await brief.head(path)).status == 410
    assert (await brief.head(alive)).offset == 5


async def test_E1_the_service_sweeps_by_itself(tmp_path: Path) -> None:
    """Nobody has to call the sweeper: with the shortest interval an expired upload's bytes go by themselves."""
    clock = FakeClock()
    async with site(tmp_path, clock=clock, upload_idle="2s", sweep_interval="1s") as here:
        path = await here.create(10)
        await here.patch(path, 0, b"hello")
        clock.forward(3)
        await until(lambda: here.leftovers() == [])
        assert [kind for kind, _ in events(here)] == ["upload.created", "upload.expired"]


async def test_E1_a_finished_file_is_not_reaped(brief: Site) -> None:
    """What is finished stays, however often the sweeper comes."""
    file = await brief.upload(b"content")
    for _ in range(3):
        forward(brief, HOUR / 2)
        await brief.service.janitor.sweep()
    assert await brief.fetch(file) == b"content"


async def test_E1_a_running_body_is_not_reaped(brief: Site) -> None:
    """A sweep while a body is being received takes nothing away, though the term is over."""
    path = await brief.create(10)
    line = await begin_patch(brief, path, 0, b"hello", length=10)
    forward(brief, 3)
    await brief.service.janitor.sweep()
    await line.send(b"world")
    assert (await line.answer()).status == 204
    assert await brief.stored(path) == b"helloworld"


async def test_E1_a_tombstone_is_forgotten(tmp_path: Path) -> None:
    """After the tombstone's time the address is unknown, and no row is left of it."""
    clock = FakeClock()
    async with site(tmp_path, clock=clock, upload_idle="2s", tombstone="1h") as here:
        path = await here.create(10, here.link(expires_in=60))
        clock.forward(3)
        await here.service.janitor.sweep()
        assert (await here.head(path)).status == 410
        clock.forward(HOUR + 1)
        await here.service.janitor.sweep()
        assert (await here.head(path)).status == 404
        assert (count(here, "uploads"), count(here, "links"), count(here, "parts")) == (0, 0, 0)


@pytest.mark.parametrize("seed", range(4))
async def test_E1_whole_or_gone(brief: Site, seed: int) -> None:
    """Fifty random orders of a sweep and the last PATCH, about the moment of expiry: whole, or gone; never half."""
    chance = random.Random(seed)
    ends = {"whole": 0, "gone": 0}
    for _ in range(50):
        path = await brief.create(10)
        await brief.patch(path, 0, b"hello")
        forward(brief, chance.choice([1.5, 2.0, 2.5]))

        async def patch(path: str = path) -> int:
            await _some_turns(chance.randrange(12))
            return (await brief.patch(path, 5, b"world")).status

        async def sweep() -> None:
            await _some_turns(chance.randrange(60))
            forward(brief, chance.choice([0, 1]))
            await brief.service.janitor.sweep()

        status, _ = await asyncio.gather(patch(), sweep())
        await until(partial(_free, brief, path))
        if status == 204:
            ends["whole"] += 1
            assert await brief.stored(path) == b"helloworld"
            await brief.ask("DELETE", path, TUS)
        else:
            ends["gone"] += 1
            assert status in (410, 423)
            forward(brief, 5)
            await brief.service.janitor.sweep()
            assert (await brief.head(path)).status == 410
        assert brief.leftovers() == []
    assert min(ends.values()) >= 5


def _free(here: Site, path: str) -> bool:
    return not held(here, path)


async def _some_turns(number: int) -> None:
    """Lets the loop turn."""
    for _ in range(number):
        await asyncio.sleep(0)


# --- E2: expiry slides, up to a cap ---------------------------------------------------------------

_FIXDATE = re.compile(
    r"(Mon|Tue|Wed|Thu|Fri|Sat|Sun), \d\d (Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec) \d{4} \d\d:\d\d:\d\d GMT"
)


def instant_of(text: str) -> float:
    """The instant of an IMF-fixdate, strictly (RFC 9110 5.6.7)."""
    assert _FIXDATE.fullmatch(text), text
    return datetime.strptime(text, "%a, %d %b %Y %H:%M:%S GMT").replace(tzinfo=UTC).timestamp()


async def test_E2_a_busy_upload_lives_for_days(later: Site) -> None:
    """A PATCH every 20 h keeps an upload alive for six days, and the file is whole in the end."""
    path = await later.create(8)
    for offset in range(7):
        assert (await later.patch(path, offset, b"x")).status == 204
        forward(later, 20 * HOUR)
        assert (await later.head(path)).offset == offset + 1
    assert (await later.patch(path, 7, b"y")).status == 204
    assert await later.stored(path) == b"xxxxxxxy"


async def test_E2_a_day_of_silence_ends_it(later: Site) -> None:
    """24 h after the last byte an upload is gone; a second before that it is not."""
    path = await later.create(8)
    forward(later, 20 * HOUR)
    await later.patch(path, 0, b"x")
    forward(later, DAY - 1)
    assert (await later.head(path)).status == 200
    forward(later, 1)
    assert (await later.head(path)).status == 410


async def test_E2_asking_does_not_keep_it_alive(later: Site) -> None:
    """HEAD, GET and an empty PATCH move no byte and no expiry."""
    path = await later.create(8)
    first = (await later.head(path)).headers["Upload-Expires"]
    for _ in range(3):
        forward(later, 6 * HOUR)
        await later.ask("GET", path)
        assert (await later.patch(path, 0, b"")).headers["Upload-Expires"] == first
        assert (await later.head(path)).headers["Upload-Expires"] == first


async def test_E2_seven_days_are_the_most(later: Site) -> None:
    """However busy, an upload ends seven days after it was made, and says so in advance."""
    path = await later.create(100)
    made = instant(later)
    for offset in range(8):
        forward(later, 20 * HOUR)
        told = instant_of((await later.patch(path, offset, b"x")).headers["Upload-Expires"])
        assert told == min(instant(later) + DAY, made + 7 * DAY)
    forward(later, made + 7 * DAY - instant(later))
    assert (await later.patch(path, 8, b"x")).status == 410


async def test_E2_upload_expires_is_an_http_date_everywhere(later: Site) -> None:
    """POST, PATCH, HEAD and GET tell the same kind of date, at 24 h after the last byte."""
    created = await later.post(10)
    path = "/files/" + created.headers["Location"].rpartition("/")[2]
    assert instant_of(created.headers["Upload-Expires"]) == instant(later) + DAY
    forward(later, 90)
    patched = await later.patch(path, 0, b"hello")
    answers = (patched, await later.head(path), await later.ask("GET", path))
    assert {instant_of(answer.headers["Upload-Expires"]) for answer in answers} == {instant(later) + DAY}
