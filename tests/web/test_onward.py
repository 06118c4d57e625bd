"""The next piece of an upload in one step: one commit, and whoever comes in between is told from nobody."""

from __future__ import annotations

import asyncio
import errno
import os
import random
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from service.hashing import BlockHasher, manifest
from service.metadata.base import Advance, MetadataUnavailable
from service.model import FileId
from tests.web.harness import OCTETS, TUS, Line, Site, head, site
from tests.web.sweeps import broken
from tests.web.test_at_once import commits
from tests.web.under_way import SteppedClock, begin, begin_patch, held, until

pytestmark = pytest.mark.parametrize("body_path", ["fast", "plain"], indirect=True)
KIB = 1024
BLOCK = 64 * KIB
CONTENT = random.Random(5).randbytes(5 * BLOCK + 77)
#: of one request: less than a block, and across its end
PIECE = 40 * KIB


@pytest.fixture
async def here(tmp_path: Path) -> AsyncIterator[Site]:
    async with site(tmp_path, clock=SteppedClock(), block_size=BLOCK) as running:
        yield running


async def begun(here: Site, content: bytes = CONTENT) -> str:
    """An upload whose first piece is there."""
    path = await here.create(len(content))
    assert (await here.patch(path, 0, content[:PIECE])).status == 204
    return path


async def finished(here: Site, path: str, content: bytes = CONTENT) -> None:
    """All that is left comes in pieces, and the file is right."""
    offset = (await here.head(path)).offset
    while offset < len(content):
        answer = await here.patch(path, offset, content[offset : offset + PIECE])
        assert answer.status == 204
        assert answer.offset > offset
        offset = answer.offset
    assert await here.stored(path) == content


def meanwhile(here: Site, part: str, name: str, monkeypatch: pytest.MonkeyPatch, then: Any, *, after: bool) -> None:
    """Something happens before or after the next such call of the service's storage or metadata; once."""
    owner: Any = getattr(here.service, part)
    call = getattr(owner, name)

    async def called(*args: Any, **options: Any) -> Any:
        monkeypatch.setattr(owner, name, call)
        if not after:
            await then()
            return await call(*args, **options)
        result = await call(*args, **options)
        await then()
        return result

    monkeypatch.setattr(owner, name, called)


async def test_a_next_piece_is_one_commit(here: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the lease nor the upload is asked for; the first piece and the last go the long way."""
    path = await begun(here)
    seen = commits(here, monkeypatch)
    await finished(here, path)
    pieces = -(-len(CONTENT) // PIECE)
    assert seen == ["go_on"] * (pieces - 2) + ["acquire", "advance", "publish"]


async def test_the_manifest_is_that_of_the_long_way(here: Site) -> None:
    """Blocks that begin in one request and end in another have the digests of their bytes."""
    path = await begun(here)
    await finished(here, path)
    file = await here.service.metadata.file(FileId(await here.file_id(path)))
    assert file is not None
    hasher = BlockHasher(BLOCK, strong=False)
    hasher.update(memoryview(CONTENT))
    last = hasher.finish()
    assert last is not None
    assert file.manifest == manifest([*hasher.take_finished(), last], len(CONTENT), BLOCK)


async def test_what_it_cannot_take_goes_the_long_way(here: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A piece with a checksum, and one whose body takes its time, are taken under a lease."""
    path = await begun(here)
    seen = commits(here, monkeypatch)
    answer = await here.patch(path, PIECE, b"hello", Upload_Checksum="sha1 qvTGHdzF6KLavt4PO0gs2a6pQ00=")
    assert (answer.status, answer.offset) == (204, PIECE + 5)
    fields = TUS | {"Upload-Offset": str(PIECE + 5), "Content-Type": OCTETS}
    line = await begin(here, "PATCH", path, fields, b"abc", length=6)
    await until(lambda: held(here, path))
    await line.send(b"def")
    assert (await line.answer()).offset == PIECE + 11
    assert "go_on" not in seen


async def test_a_wrong_offset_reads_no_body(here: Site) -> None:
    """A piece that does not belong there is refused by its head alone."""
    path = await begun(here)
    line = await here.line()
    fields = TUS | {"Upload-Offset": "7", "Content-Type": OCTETS, "Content-Length": "100"}
    await line.send(head("PATCH", path, [*fields.items()], None))
    answer = await line.answer()
    assert (answer.status, answer.offset) == (409, PIECE)


@pytest.mark.parametrize("after", [False, True], ids=["before the write", "before the commit"])
async def test_who_came_in_between_keeps_what_it_wrote(
    here: Site, monkeypatch: pytest.MonkeyPatch, *, after: bool
) -> None:
    """A writer of another process that began meanwhile is not written over: the piece is told the offset it left."""
    path = await begun(here)
    upload_id = here.upload_id(path)
    store, storage = here.service.metadata, here.service.storage
    theirs = CONTENT[PIECE : PIECE + 1000]

    async def write() -> None:
        assert here.clock is not None
        now = here.clock.now()
        lease, upload = await store.acquire_lease(upload_id, "other.1", now=now, until=now + 10)
        assert lease.ledger is not None
        async with storage.append(upload_id, lease.ledger, epoch=lease.epoch, align=BLOCK, fence=unfenced) as appender:
            await appender.write(memoryview(theirs), last=True)
            receipt = await appender.flush(last=False)
        step = Advance(receipt.offset, expires_at=upload.expires_at, parts=receipt.parts, releases=True)
        await store.advance(upload_id, epoch=lease.epoch, from_offset=PIECE, step=step, now=now)

    async def unfenced() -> None:
        """The lease is the newest."""

    meanwhile(here, "storage", "extend", monkeypatch, write, after=after)
    answer = await here.patch(path, PIECE, b"-" * PIECE)
    assert (answer.status, answer.offset) == (409, PIECE + len(theirs))
    await finished(here, path)


async def test_a_holder_makes_way_as_ever(here: Site) -> None:
    """A piece that comes while another request holds the upload takes over, though its body is whole at once."""
    path = await begun(here)
    fields = TUS | {"Upload-Offset": str(PIECE), "Content-Type": OCTETS}
    older = await begin(here, "PATCH", path, fields, CONTENT[PIECE : PIECE + 10], length=PIECE)
    await until(lambda: held(here, path))
    newer = await here.patch(path, PIECE, CONTENT[PIECE : 2 * PIECE])
    assert (await older.answer()).status == 423
    # what the older had brought counts
    assert (newer.status, newer.offset) == (409, PIECE + 10)
    await finished(here, path)


async def test_who_is_slow_finds_it_gone_on(here: Site) -> None:
    """A piece that comes whole while an older request still waits for its own counts; the older hears of it."""
    path = await begun(here)
    fields = TUS | {"Upload-Offset": str(PIECE), "Content-Type": OCTETS}
    older = await begin(here, "PATCH", path, fields, CONTENT[PIECE : PIECE + 10], length=PIECE)
    newer = await here.patch(path, PIECE, CONTENT[PIECE : 2 * PIECE])
    await older.send(CONTENT[PIECE + 10 : 2 * PIECE])
    # unless it had begun to write by then
    assert {newer.status, (await older.answer()).status} <= {204, 409, 423}
    await finished(here, path)


async def test_who_came_first_stops_nobody(here: Site) -> None:
    """A small piece whose body stays away takes nothing from a newer request that has begun meanwhile (T-0D0)."""
    path = await begun(here)
    fields = TUS | {"Upload-Offset": str(PIECE), "Content-Type": OCTETS}
    older = await begin(here, "PATCH", path, fields, b"", length=PIECE)
    await until(lambda: any(body.started for body in here.service.bodies._open))
    newer = await begin_patch(here, path, PIECE, CONTENT[PIECE : PIECE + 1000], length=3 * PIECE, Expect="100-continue")
    assert (await older.answer()).status in (409, 423)
    await newer.send(CONTENT[PIECE + 1000 : 4 * PIECE])
    answer = await newer.answer()
    assert (answer.status, answer.offset) == (204, 4 * PIECE)
    await finished(here, path)


async def test_a_slow_disk_makes_nobody_newer(here: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """A piece whose write takes long, and whose commit then fails, takes nothing from a newer request."""
    path = await begun(here)
    newer: list[Line] = []

    async def begin_newer() -> None:
        newer.append(
            await begin_patch(here, path, PIECE, CONTENT[PIECE : PIECE + 10], length=PIECE, Expect="100-continue")
        )

    meanwhile(here, "storage", "extend", monkeypatch, begin_newer, after=True)
    assert (await here.patch(path, PIECE, b"-" * PIECE)).status in (409, 423)
    await newer[0].send(CONTENT[PIECE + 10 : 2 * PIECE])
    answer = await newer[0].answer()
    assert (answer.status, answer.offset) == (204, 2 * PIECE)
    await finished(here, path)


async def test_nobody_gets_a_buffer_that_a_thread_is_at(here: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The handler is cancelled while its piece is being written: the bytes are its own client's all the same."""
    path, another = await begun(here), await begun(here, CONTENT[::-1])
    pwrite, reached, go_on = os.pwrite, threading.Event(), threading.Event()

    def held_up(fd: int, data: Any, at: int) -> int:
        monkeypatch.setattr(os, "pwrite", pwrite)
        reached.set()
        go_on.wait(30)
        return pwrite(fd, data, at)

    monkeypatch.setattr(os, "pwrite", held_up)
    before = asyncio.all_tasks()
    sending = asyncio.ensure_future(here.patch(path, PIECE, CONTENT[PIECE : 2 * PIECE]))
    await asyncio.to_thread(reached.wait, 30)
    handlers = [task for task in asyncio.all_tasks() - before if "RequestHandler.start" in repr(task.get_coro())]
    assert handlers
    for handler in handlers:
        handler.cancel()
    await asyncio.wait(handlers)
    assert (await here.patch(another, PIECE, CONTENT[::-1][PIECE : 2 * PIECE])).status == 204
    go_on.set()
    await asyncio.wait({sending})
    await here.service.tasks.drain()
    await finished(here, another, CONTENT[::-1])
    await finished(here, path)


async def test_two_pieces_at_the_same_moment_count_once(here: Site) -> None:
    """Of two requests with the same piece one counts; the file is right in the end."""
    path = await begun(here)
    piece = CONTENT[PIECE : 2 * PIECE]
    answers = await asyncio.gather(*(here.patch(path, PIECE, piece) for _ in range(2)))
    statuses = sorted(answer.status for answer in answers)
    assert statuses[0] == 204
    assert statuses[1] in (409, 423)
    assert (await here.head(path)).offset == 2 * PIECE
    await finished(here, path)


async def test_an_upload_that_ended_meanwhile_takes_nothing(here: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Terminated between the write and the commit: 410, and no byte stays."""
    path = await begun(here)

    async def terminate() -> None:
        assert (await here.ask("DELETE", path, TUS)).status == 204

    meanwhile(here, "storage", "extend", monkeypatch, terminate, after=True)
    assert (await here.patch(path, PIECE, b"-" * PIECE)).status == 410
    await here.service.tasks.drain()
    assert here.leftovers() == []


async def test_a_write_that_fails_leaves_nothing_of_meaning(here: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half of a piece is on the disk when that fails: the long way says so, and the next piece goes over it."""
    path = await begun(here)
    pwrite = os.pwrite
    failures = [1000, 0]

    def fails(fd: int, data: Any, at: int) -> int:
        if not failures:
            raise OSError(errno.EIO, "failing")
        return pwrite(fd, data[: failures.pop(0)], at)

    with monkeypatch.context() as failing:
        failing.setattr(os, "pwrite", fails)
        answer = await here.patch(path, PIECE, b"-" * PIECE)
    assert answer.status == 503
    offset = (await here.head(path)).offset
    assert offset == PIECE
    await finished(here, path)


async def test_a_commit_that_fails_counts_nothing(here: Site) -> None:
    """Where the records are away the piece is refused, worth a retry, and the retry goes on at the old offset."""
    path = await begun(here)
    with broken(here, "metadata", "go_on", MetadataUnavailable("away")):
        answer = await here.patch(path, PIECE, CONTENT[PIECE : 2 * PIECE])
    assert (answer.status, answer.headers["Retry-After"]) == (503, "1")
    assert (await here.head(path)).offset == PIECE
    await finished(here, path)


async def test_a_piece_counts_as_any(here: Site) -> None:
    """A piece slides the expiry and is counted as received, hashed and committed, as on the long way."""
    path = await begun(here)
    before = await here.service.metadata.upload(here.upload_id(path))
    assert before is not None
    assert here.clock is not None
    here.clock.forward(100)
    assert (await here.patch(path, PIECE, CONTENT[PIECE : 2 * PIECE])).status == 204
    upload = await here.service.metadata.upload(here.upload_id(path))
    assert upload is not None
    assert upload.expires_at == before.expires_at + 100
    text = here.service.metrics.render().decode()
    for name in ("received_total", "committed_total"):
        assert f'attachd_upload_bytes_{name}{{protocol="tus"}} {2 * PIECE:.1f}' in text
