"""Several requests, services or nodes at one upload; the graceful stop (section N)."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from service.metadata.base import Lease, MetadataUnavailable
from service.storage.filesystem.appender import DiskAppender
from tests.web.harness import OCTETS, TUS, Line, Site, b64, head, path_of, site
from tests.web.under_way import SteppedClock, begin, begin_patch, held, received, until

BODY = TUS | {"Content-Type": OCTETS}
#: a silence after which HEAD no longer spares a writer
SILENCE = 2.5


@asynccontextmanager
async def stepped(folder: Path) -> AsyncIterator[tuple[Site, SteppedClock]]:
    """A service under a clock of which durations, too, are the test's."""
    clock = SteppedClock()
    async with site(folder, clock=clock) as here:
        yield here, clock


async def assert_stopped(line: Line, offset: int) -> None:
    """The older request ends with what it had: 423 `locked`, and the connection closes."""
    answer = await line.answer()
    assert (answer.status, answer.slug, answer.offset) == (423, "locked", offset)
    assert answer.headers["Connection"] == "close"
    assert "Retry-After" in answer.headers


# --- two writers ----------------------------------------------------------------------------


async def test_T_0D0_newer_wins_over_an_empty_older(here: Site) -> None:
    """Of two PATCHes at one offset the newer takes over, and goes on where the older brought nothing."""
    path = await here.create(10)
    older = await begin_patch(here, path, 0, b"", length=10)
    answer = await here.patch(path, 0, b"helloworld")
    assert (answer.status, answer.offset) == (204, 10)
    await assert_stopped(older, 0)
    assert await here.stored(path) == b"helloworld"


async def test_T_0D0_newer_hears_of_the_older_bytes(here: Site) -> None:
    """Where the older brought bytes they are committed first, and the newer is told the offset behind them."""
    path = await here.create(10)
    older = await begin_patch(here, path, 0, b"hello", length=10)
    answer = await here.patch(path, 0, b"HELLOWORLD")
    assert (answer.status, answer.slug, answer.offset) == (409, "offset-mismatch", 5)
    await assert_stopped(older, 5)
    await here.patch(path, 5, b"world")
    assert await here.stored(path) == b"helloworld"


async def test_T_0D0_bytes_never_interleave(here: Site) -> None:
    """However many PATCHes meet at one offset, the bytes that count are one request's."""
    size, letters = 200_000, "abcdef"
    path = await here.create(size + 1)
    answers = await asyncio.gather(*(here.patch(path, 0, letter.encode() * size) for letter in letters))
    assert {answer.status for answer in answers} <= {204, 409, 423}
    offset = (await here.head(path)).offset
    assert max(answer.offset for answer in answers if "Upload-Offset" in answer.headers) <= offset
    await here.patch(path, offset, b"!" * (size + 1 - offset))
    content = (await here.stored(path)).rstrip(b"!")
    assert len(content) == offset
    assert len(set(content)) == 1


# --- who makes way --------------------------------------------------------------------------


async def made_by(here: Site, link: str) -> str:
    """The upload of a creation that brings its body slowly, once it is recorded."""
    while (found := await here.ask("HEAD", link, TUS)).status == 404:
        pass
    return path_of(found.headers["Location"])


@pytest.mark.parametrize("older", ["PATCH", "POST"])
@pytest.mark.parametrize("newer", ["PATCH", "DELETE", "POST"])
async def test_T_0D1_older_makes_way(here: Site, older: str, newer: str) -> None:
    """A PATCH, a DELETE or the same creation again stops a writer and is answered from what it committed."""
    link = here.link()
    if older == "POST":
        line = await begin(here, "POST", link, BODY | {"Upload-Length": "10"}, b"hello", length=10)
        path = await made_by(here, link)
    else:
        path = await here.create(10, link)
        line = await begin_patch(here, path, 0, b"hello", length=10)
    if newer == "POST":
        answer = await here.post(10, link)
        assert (answer.status, answer.offset, path_of(answer.headers["Location"])) == (201, 5, path)
    elif newer == "PATCH":
        answer = await here.patch(path, 0, b"helloworld")
        assert (answer.status, answer.offset) == (409, 5)
    else:
        assert (await here.ask("DELETE", path, TUS)).status == 204
    await assert_stopped(line, 5)


async def test_T_0D1_connection_of_the_older_ends(here: Site) -> None:
    """The older request's connection is closed, although its body was to go on."""
    path = await here.create(10)
    line = await begin_patch(here, path, 0, b"hello", length=10)
    await here.patch(path, 0, b"")
    await assert_stopped(line, 5)
    assert await line.closed()


async def test_T_0D1_same_offset_after_a_stalled_connection(here: Site) -> None:
    """A client whose connection hangs half-open gets on with a new one."""
    path = await here.create(10)
    await begin_patch(here, path, 0, b"hello", length=10)
    answer = await here.patch(path, 0, b"")
    assert (answer.status, answer.offset) == (409, 5)
    assert (await here.patch(path, 5, b"world")).offset == 10


async def test_T_0D1_creation_with_a_checksum_sent_again(here: Site) -> None:
    """The same creation again, over a body with a checksum that cannot count any more, gives a live upload."""
    link = here.link()
    checksum = "sha1 " + b64(hashlib.sha1(b"helloworld").digest())
    headers = BODY | {"Upload-Length": "10", "Upload-Checksum": checksum}
    line = await begin(here, "POST", link, headers, b"hello", length=10)
    while (answer := await here.post(10, link)).status == 423:
        pass
    assert (answer.status, answer.offset) == (201, 0)
    assert (await line.answer()).status == 423
    path = path_of(answer.headers["Location"])
    assert (await here.patch(path, 0, b"helloworld")).offset == 10
    assert await here.stored(path) == b"helloworld"


async def test_T_0D1_head_stops_a_silent_writer(tmp_path: Path) -> None:
    """HEAD has a writer that fell silent commit and stop, and tells the offset behind its bytes."""
    async with stepped(tmp_path) as (here, clock):
        path = await here.create(10)
        line = await begin_patch(here, path, 0, b"hello", length=10)
        clock.skip(SILENCE)
        assert (await here.head(path)).offset == 5
        await assert_stopped(line, 5)


async def test_T_0D1_head_spares_a_lively_writer(tmp_path: Path) -> None:
    """A writer that has newer bytes goes on; HEAD tells what is committed."""
    async with stepped(tmp_path) as (here, clock):
        path = await here.create(10)
        line = await begin_patch(here, path, 0, b"hel", length=10)
        clock.skip(SILENCE)
        await line.send(b"lo")
        await until(lambda: received(here) == 5)
        assert (await here.head(path)).status == 200
        await line.send(b"world")
        answer = await line.answer()
        assert (answer.status, answer.offset) == (204, 10)


async def stuck(here: Site, path: str) -> None:
    """Somebody who answers nobody holds the upload."""
    now = here.service.context.clock.now()
    await here.service.metadata.acquire_lease(here.upload_id(path), "elsewhere:1", now=now, until=now + 60)
    here.service.leases._patience_seconds = 0.05


@pytest.mark.parametrize("method", ["PATCH", "DELETE", "HEAD"])
async def test_T_0D2_holder_that_cannot_be_stopped(tmp_path: Path, method: str) -> None:
    """Where the holder does not let go in time the answer is 423, and when to come again."""
    async with stepped(tmp_path) as (here, clock):
        path = await here.create(10)
        await stuck(here, path)
        clock.skip(SILENCE)
        headers = TUS | ({"Upload-Offset": "0", "Content-Type": OCTETS} if method == "PATCH" else {})
        answer = await here.ask(method, path, headers, b"hello" if method == "PATCH" else None)
        assert (answer.status, answer.headers["Retry-After"]) == (423, "1")


async def test_T_0D2_same_creation_again(tmp_path: Path) -> None:
    """So it is for the same creation again."""
    async with stepped(tmp_path) as (here, _):
        link = here.link()
        await stuck(here, await here.create(10, link))
        answer = await here.post(10, link)
        assert (answer.status, answer.headers["Retry-After"]) == (423, "1")


async def test_T_0D3_offset_of_head_is_accepted(here: Site) -> None:
    """The offset that HEAD told is where the next PATCH goes on."""
    path = await here.create(10)
    line = await begin_patch(here, path, 0, b"hello", length=10)
    await line.close()
    await until(lambda: not held(here, path))
    offset = (await here.head(path)).offset
    assert (await here.patch(path, offset, b"world"[offset - 5 :])).status == 204


async def test_T_0D3_writer_moved_meanwhile(here: Site) -> None:
    """Unless a live writer moved it meanwhile: then 409 tells the offset of now."""
    path = await here.create(10)
    line = await begin_patch(here, path, 0, b"hello", length=10)
    told = (await here.head(path)).offset
    await line.close()
    await until(lambda: not held(here, path))
    answer = await here.patch(path, told, b"")
    assert (told, answer.status, answer.offset) == (0, 409, 5)


# --- readers --------------------------------------------------------------------------------


async def test_T_0D4_status_takes_no_lock(tmp_path: Path) -> None:
    """GET answers while somebody holds the upload who never lets go."""
    async with stepped(tmp_path) as (here, clock):
        path = await here.create(10)
        await stuck(here, path)
        clock.skip(SILENCE)
        answer = await here.ask("GET", path)
        assert (answer.status, answer.json["offset"]) == (200, 0)


async def test_T_0D4_status_disturbs_no_writer(tmp_path: Path) -> None:
    """GET leaves even a silent writer alone."""
    async with stepped(tmp_path) as (here, clock):
        path = await here.create(10)
        line = await begin_patch(here, path, 0, b"hello", length=10)
        clock.skip(SILENCE)
        assert (await here.ask("GET", path)).status == 200
        await line.send(b"world")
        assert (await line.answer()).status == 204


async def test_T_0D4_download_takes_no_lock(tmp_path: Path) -> None:
    """A file is served while somebody holds the upload that it came from."""
    async with stepped(tmp_path) as (here, _):
        path = await here.create(5)
        file_id = (await here.patch(path, 0, b"hello")).headers["Attachd-File-Id"]
        await stuck(here, path)
        assert await here.fetch(file_id) == b"hello"


# --- two processes --------------------------------------------------------------------------


@asynccontextmanager
async def two(folder: Path) -> AsyncIterator[tuple[Site, Site, SteppedClock]]:
    """Two services on one directory and one database, as two processes of a machine are."""
    clock = SteppedClock()
    async with site(folder, clock=clock, alone=False) as one, site(folder, clock=clock, alone=False) as other:
        yield one, other, clock


async def test_T_0D5_patch_takes_over_from_the_other(tmp_path: Path) -> None:
    """A PATCH at one process stops the PATCH of another, and goes on behind its bytes."""
    async with two(tmp_path) as (one, other, _):
        path = await one.create(10)
        line = await begin_patch(one, path, 0, b"hello", length=10)
        answer = await other.patch(path, 0, b"HELLOWORLD")
        assert (answer.status, answer.offset) == (409, 5)
        await assert_stopped(line, 5)
        assert (await other.patch(path, 5, b"world")).status == 204
        assert await one.stored(path) == b"helloworld"


async def test_T_0D5_delete_stops_the_other(tmp_path: Path) -> None:
    """So does a DELETE."""
    async with two(tmp_path) as (one, other, _):
        path = await one.create(10)
        line = await begin_patch(one, path, 0, b"hello", length=10)
        assert (await other.ask("DELETE", path, TUS)).status == 204
        await assert_stopped(line, 5)
        assert (await one.head(path)).status == 410


async def test_T_0D5_same_creation_at_the_other(tmp_path: Path) -> None:
    """And the same creation again."""
    async with two(tmp_path) as (one, other, _):
        link = one.link(audience="http://files.test")
        line = await begin(one, "POST", link, BODY | {"Upload-Length": "10"}, b"hello", length=10)
        await made_by(one, link)
        answer = await other.post(10, link)
        assert (answer.status, answer.offset) == (201, 5)
        await assert_stopped(line, 5)


async def test_T_0D5_head_spares_a_lively_writer_of_the_other(tmp_path: Path) -> None:
    """HEAD at one process leaves a writer of another alone while its bytes come."""
    async with two(tmp_path) as (one, other, _):
        path = await one.create(10)
        line = await begin_patch(one, path, 0, b"hello", length=10)
        assert (await other.head(path)).offset == 0
        await line.send(b"world")
        assert (await line.answer()).status == 204
        assert (await other.head(path)).offset == 10


async def test_T_0D5_head_spares_a_lively_writer_whose_bytes_are_not_committed_yet(tmp_path: Path) -> None:
    """However old the offset, it is the writer's process that tells whether it is silent."""
    async with two(tmp_path) as (one, other, clock):
        path = await one.create(10)
        line = await begin_patch(one, path, 0, b"hello", length=10)
        clock.forward(SILENCE)
        assert (await other.head(path)).offset == 0
        await line.send(b"world")
        assert (await line.answer()).status == 204


async def test_T_0D5_head_stops_a_silent_writer_of_the_other(tmp_path: Path) -> None:
    """And has a silent one commit and stop."""
    async with two(tmp_path) as (one, other, clock):
        path = await one.create(10)
        line = await begin_patch(one, path, 0, b"hello", length=10)
        clock.skip(SILENCE)
        assert (await other.head(path)).offset == 5
        await assert_stopped(line, 5)


async def test_T_0D5_sleeper_changes_nothing(tmp_path: Path) -> None:
    """A process that slept through its lease and wakes with bytes in hand cannot touch what came after it."""
    async with two(tmp_path) as (one, other, clock):
        path = await one.create(10)
        line = await begin_patch(one, path, 0, b"HELLO", length=10)
        clock.forward(20)
        assert (await other.patch(path, 0, b"hello")).offset == 5
        await line.send(b"WORLD")
        answer = await line.answer()
        assert (answer.status, answer.slug) == (423, "locked")
        assert (await other.patch(path, 5, b"world")).offset == 10
        assert await one.stored(path) == b"helloworld"


async def test_T_0D5_sleeper_after_the_end(tmp_path: Path) -> None:
    """Nor what is complete already."""
    async with two(tmp_path) as (one, other, clock):
        path = await one.create(10)
        line = await begin_patch(one, path, 0, b"HELLO", length=10)
        clock.forward(20)
        assert (await other.patch(path, 0, b"helloworld")).offset == 10
        await line.send(b"WORLD")
        assert (await line.answer()).status == 423
        assert await one.stored(path) == b"helloworld"


async def test_T_0D5_newest_of_many_wins(tmp_path: Path) -> None:
    """Many PATCHes over two processes leave one request's bytes."""
    async with two(tmp_path) as (one, other, _):
        size = 50_000
        path = await one.create(size)
        answers = await asyncio.gather(
            *((one, other)[turn % 2].patch(path, 0, b"abcd"[turn : turn + 1] * size) for turn in range(4))
        )
        assert {answer.status for answer in answers} <= {204, 409, 413, 423}
        offset = (await other.head(path)).offset
        await one.patch(path, offset, b"!" * (size - offset))
        content = (await other.stored(path)).rstrip(b"!")
        assert len(content) == offset
        assert len(set(content)) == 1


# --- the stop -------------------------------------------------------------------------------


async def test_T_0D6_stop_commits_and_cuts_off(here: Site) -> None:
    """A graceful stop ends a running PATCH with 503 `draining`; what it brought is committed."""
    path = await here.create(10)
    line = await begin_patch(here, path, 0, b"hello", length=10)
    stopping = asyncio.create_task(here.service.stop())
    answer = await line.answer()
    assert (answer.status, answer.slug, answer.offset) == (503, "draining", 5)
    assert answer.headers["Connection"] == "close"
    await stopping


async def test_T_0D6_bytes_are_there_after_the_restart(tmp_path: Path) -> None:
    """The next process goes on where the stopped one left off."""
    async with site(tmp_path) as here:
        path = await here.create(10)
        await begin_patch(here, path, 0, b"hello", length=10)
        await here.service.stop()
    async with site(tmp_path) as again:
        assert (await again.head(path)).offset == 5
        await again.patch(path, 5, b"world")
        assert await again.stored(path) == b"helloworld"


async def test_T_0D6_creation_with_a_body(here: Site) -> None:
    """A creation that is sending its first bytes ends so too, and names its upload."""
    line = await begin(here, "POST", here.link(), BODY | {"Upload-Length": "10"}, b"hello", length=10)
    here.service.bodies.drain()
    answer = await line.answer()
    assert (answer.status, answer.slug, answer.offset) == (503, "draining", 5)
    assert (await here.head(path_of(answer.headers["Location"]))).offset == 5


async def test_T_0D6_head_is_served_to_the_end(here: Site) -> None:
    """While the service stops, HEAD answers 200 and a new body 503."""
    path = await here.create(10)
    await here.patch(path, 0, b"hello")
    with here.service.bodies.sending():
        stopping = asyncio.create_task(here.service.stop())
        await until(lambda: here.service.bodies.draining)
        found = await here.head(path)
        refused = await here.patch(path, 5, b"world")
    await stopping
    assert (found.status, found.offset) == (200, 5)
    assert (refused.status, refused.slug) == (503, "draining")
    assert "Retry-After" in refused.headers


async def test_L5_a_release_that_failed_is_made_up_for(here: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A lease whose release failed is free again soon, although other transfers keep this process renewing."""
    path, other = await here.create(10), await here.create(10)
    running = await begin_patch(here, other, 0, b"hello", length=10)
    release = here.service.metadata.release_lease
    failed = asyncio.Event()

    async def fails_once(lease: Lease) -> None:
        if not failed.is_set():
            failed.set()
            raise MetadataUnavailable("database is locked")
        await release(lease)

    monkeypatch.setattr(here.service.metadata, "release_lease", fails_once)
    # whose lease no commit gives back
    checksum = "sha1 " + b64(hashlib.sha1(b"other").digest())
    assert (await here.patch(path, 0, b"hello", Upload_Checksum=checksum)).status == 460
    assert failed.is_set()
    assert (await here.patch(path, 0, b"helloworld")).status == 204
    running.reset()


async def test_L1_a_step_gives_back_no_lease_but_its_own(here: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A writer that still tidies up after its last commit lets go of nothing that a newer one has got meanwhile."""
    tidied, inner = asyncio.Event(), DiskAppender.close
    slow = [tidied.wait()]

    async def close(self: DiskAppender) -> None:
        if slow:
            await slow.pop()
        await inner(self)

    monkeypatch.setattr(DiskAppender, "close", close)
    path, other = await here.create(100), await here.create(100)
    older = await begin_patch(here, path, 0, bytes(10), length=100)
    older.reset()
    while (await here.head(path)).offset != 10:
        pass
    newer = await here.line()
    fields = TUS | {"Upload-Offset": "10", "Content-Type": OCTETS, "Content-Length": "90"}
    await newer.send(head("PATCH", path, list(fields.items()), None))
    await until(lambda: here.service.leases._holders[here.upload_id(path)].epoch == 2)
    tidied.set()
    await until(lambda: len(here.service.tasks) == 1)
    newer.reset()
    # whatever is renewed for others must not keep it
    running = await begin_patch(here, other, 0, bytes(10), length=100)
    await until(lambda: not held(here, path))
    assert await here.service.metadata.lease(here.upload_id(path)) is None
    assert (await here.patch(path, 10, bytes(90))).status == 204
    running.reset()
