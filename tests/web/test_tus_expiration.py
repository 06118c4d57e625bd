"""tus 1.0.0, Expiration (section J), under a clock that the test moves."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from email.utils import parsedate_to_datetime
from pathlib import Path

import pytest

from tests.web.harness import OCTETS, TUS, Answer, FakeClock, Site, site
from tests.web.under_way import begin_patch, until

HOUR = 3600.0
DAY = 24 * HOUR


@pytest.fixture
async def hasty(tmp_path: Path) -> AsyncIterator[Site]:
    """A service whose uploads expire after two seconds, sooner than a lease runs out."""
    async with site(tmp_path, clock=FakeClock(), upload_idle="2s") as running:
        yield running


def clock(later: Site) -> FakeClock:
    assert later.clock is not None
    return later.clock


def expires(answer: Answer) -> float:
    """`Upload-Expires` as seconds since the epoch."""
    return parsedate_to_datetime(answer.headers["Upload-Expires"]).timestamp()


async def expired(later: Site, length: int = 10) -> str:
    """An upload with five bytes that expired a second ago; no sweeper came."""
    path = await later.create(length)
    await later.patch(path, 0, b"hello")
    clock(later).forward(DAY + 1)
    return path


async def ask(later: Site, method: str, path: str) -> Answer:
    """A valid request of that method on the upload."""
    headers = TUS | ({"Upload-Offset": "5", "Content-Type": OCTETS} if method == "PATCH" else {})
    return await later.ask(method, path, headers, b"world" if method == "PATCH" else None)


async def test_T_090_creation_tells_when(later: Site) -> None:
    """The 201 says when the upload expires."""
    assert expires(await later.post()) == clock(later).now() + DAY


async def test_T_090_creation_with_bytes_tells_when(later: Site) -> None:
    """So does the 201 that took bytes already."""
    answer = await later.ask("POST", later.link(), TUS | {"Upload-Length": "10", "Content-Type": OCTETS}, b"hello")
    assert expires(answer) == clock(later).now() + DAY


async def test_T_091_unfinished_patch_tells_when(later: Site) -> None:
    """A PATCH that leaves bytes to come says when the upload expires."""
    path = await later.create(10)
    assert expires(await later.patch(path, 0, b"hello")) == clock(later).now() + DAY


async def test_T_091_completing_patch_does_not(later: Site) -> None:
    """The PATCH that completes the upload does not: it no longer expires."""
    path = await later.create(5)
    answer = await later.patch(path, 0, b"hello")
    assert "Upload-Expires" not in answer.headers


@pytest.mark.parametrize("at", [1_800_000_000.0, 1_800_000_000.9, 1_709_164_800.0])
async def test_T_092_format(tmp_path: Path, at: float) -> None:
    """The date is an IMF-fixdate in GMT, two digits for the day."""
    async with site(tmp_path, clock=FakeClock(at)) as here:
        value = (await here.post()).headers["Upload-Expires"]
    day, month = r"(Mon|Tue|Wed|Thu|Fri|Sat|Sun)", r"(Jan|Feb|Mar|Apr|May|Jun|Jul|Aug|Sep|Oct|Nov|Dec)"
    assert re.fullmatch(rf"{day}, \d\d {month} \d{{4}} \d\d:\d\d:\d\d GMT", value)


@pytest.mark.parametrize("method", ["HEAD", "GET", "PATCH", "DELETE"])
async def test_T_093_gone_before_the_sweeper_came(later: Site, method: str) -> None:
    """An upload past its time is gone at once, whoever asks."""
    path = await expired(later)
    answer = await ask(later, method, path)
    assert answer.status == 410
    assert "Upload-Offset" not in answer.headers


@pytest.mark.parametrize("method", ["HEAD", "GET", "PATCH", "DELETE"])
async def test_T_093_gone_while_the_tombstone_is_kept(later: Site, method: str) -> None:
    """A swept upload answers 410 for as long as its tombstone is kept."""
    path = await expired(later)
    await later.service.janitor.sweep()
    clock(later).forward(later.service.settings.tombstone - 1)
    await later.service.janitor.sweep()
    assert (await ask(later, method, path)).status == 410


@pytest.mark.parametrize("method", ["HEAD", "GET", "PATCH", "DELETE"])
async def test_T_093_unknown_after_the_tombstone(later: Site, method: str) -> None:
    """Then it is as if it had never been."""
    path = await expired(later)
    await later.service.janitor.sweep()
    clock(later).forward(later.service.settings.tombstone + 1)
    await later.service.janitor.sweep()
    assert (await ask(later, method, path)).status == 404


async def test_T_093_complete_partial_expires_at_access(later: Site) -> None:
    """A complete partial upload past its time is gone too, before the sweeper came."""
    path = await later.create(5, Upload_Concat="partial")
    await later.patch(path, 0, b"hello")
    assert (await later.head(path)).status == 200
    clock(later).forward(DAY + 1)
    assert (await later.head(path)).status == 410


async def test_T_093_complete_upload_stays(later: Site) -> None:
    """A complete upload does not expire with the unfinished ones."""
    path = await later.create(5)
    await later.patch(path, 0, b"hello")
    clock(later).forward(DAY + 1)
    await later.service.janitor.sweep()
    assert (await later.head(path)).status == 200


async def test_T_094_bytes_move_the_expiry(later: Site) -> None:
    """Each accepted byte moves the expiry, on HEAD as well."""
    path = await later.create(10)
    clock(later).forward(DAY - 1)
    answer = await later.patch(path, 0, b"h")
    assert expires(answer) == clock(later).now() + DAY
    clock(later).forward(HOUR)
    assert expires(await later.head(path)) == clock(later).now() + DAY - HOUR


async def test_T_094_no_byte_no_move(later: Site) -> None:
    """A request without a byte does not."""
    path = await later.create(10)
    clock(later).forward(HOUR)
    answer = await later.patch(path, 0, b"")
    assert expires(answer) == clock(later).now() + DAY - HOUR


async def test_T_094_longest_life(later: Site) -> None:
    """The expiry moves up to the longest life of an upload and no further."""
    created = clock(later).now()
    path = await later.create(100)
    for offset in range(7):
        clock(later).forward(DAY - 1)
        await later.patch(path, offset, b"x")
    assert expires(await later.head(path)) == created + later.service.settings.upload_life


async def test_T_095_live_writer_is_spared(hasty: Site) -> None:
    """The sweeper leaves an upload alone that somebody is writing to, although it is past its time."""
    path = await hasty.create(10)
    line = await begin_patch(hasty, path, 0, b"hello", length=10)
    clock(hasty).forward(3)
    await hasty.service.janitor.sweep()
    await line.send(b"world")
    answer = await line.answer()
    assert (answer.status, answer.offset) == (204, 10)
    assert await hasty.stored(path) == b"helloworld"


async def test_T_095_dead_writer_is_not(hasty: Site) -> None:
    """Once the writer is gone the sweeper takes the upload."""
    path = await hasty.create(10)
    line = await begin_patch(hasty, path, 0, b"hello", length=10)
    await line.close()
    await until(lambda: not hasty.service.bodies._open)
    clock(hasty).forward(3)
    await hasty.service.janitor.sweep()
    assert (await hasty.head(path)).status == 410
    assert hasty.leftovers() == []


async def waiting_final(later: Site) -> tuple[str, str, str]:
    """A final upload made half a day after its two partials, and those: one complete, one not."""
    done = await later.create(5, Upload_Concat="partial")
    await later.patch(done, 0, b"hello")
    open_ = await later.create(5, Upload_Concat="partial")
    clock(later).forward(DAY / 2)
    final = await later.create(None, Upload_Concat=f"final;{done} {open_}")
    return final, done, open_


async def test_T_096_partials_live_as_long_as_their_final(later: Site) -> None:
    """Partials that a pending final waits for outlive their own time, and can still be finished."""
    final, done, open_ = await waiting_final(later)
    clock(later).forward(DAY / 2 + HOUR)
    await later.service.janitor.sweep()
    assert [(await later.head(path)).status for path in (final, done, open_)] == [200, 200, 200]
    assert (await later.patch(open_, 0, b"world")).status == 204
    await later.ask("GET", f"{final}?wait=5")
    await later.service.tasks.drain()
    assert await later.stored(final) == b"helloworld"


async def test_T_096_partials_go_with_their_final(later: Site) -> None:
    """Once the final itself is past its time, so are its partials."""
    final, done, open_ = await waiting_final(later)
    clock(later).forward(DAY + 1)
    assert [(await later.head(path)).status for path in (final, done, open_)] == [410, 410, 410]
    await later.service.janitor.sweep()
    await later.service.janitor.sweep()
    assert later.leftovers() == []
