"""Bodies: what came is kept whoever reads it when, and our own delays are not the client's silence."""

from __future__ import annotations

import asyncio
import fcntl
import io
import json
import random
import struct
import termios
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from service.protocol.intents import Ending
from service.storage.filesystem.appender import DiskAppender
from service.web import connection
from service.web.connection import Connection
from tests.web.harness import OCTETS, TUS, Line, Site, chunk, head, site
from tests.web.under_way import LOOPS, SteppedClock, begin_patch, held, on_loop, patch, received, until

MIB = 2**20
pytestmark = pytest.mark.parametrize("body_path", ["fast", "plain"], indirect=True)


class Gate:
    """A call that waits until it is let through."""

    def __init__(self, of: Callable[..., Awaitable[Any]]) -> None:
        self._of = of
        self.reached = asyncio.Event()
        self.opened = asyncio.Event()

    async def __call__(self, *args: Any, **named: Any) -> Any:
        self.reached.set()
        await self.opened.wait()
        return await self._of(*args, **named)


def gate(here: Site, name: str) -> Gate:
    """Calls of that method of the metadata store wait."""
    made = Gate(getattr(here.service.metadata, name))
    setattr(here.service.metadata, name, made)
    return made


def preparing(here: Site) -> Gate:
    """A writer that has its lease waits before it reads."""
    receiver: Any = here.service.context.uploads._receiver
    receiver.receive = made = Gate(receiver.receive)
    return made


@pytest.fixture
def noticed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What connections heard of their ends: `eof`, `lost`."""
    seen: list[str] = []
    lost, eof = Connection.connection_lost, Connection.eof_received

    def on_lost(self: Connection, exc: Exception | None) -> None:
        lost(self, exc)
        seen.append("lost")

    def on_eof(self: Connection) -> bool | None:
        kept = eof(self)
        seen.append("eof")
        return kept

    monkeypatch.setattr(Connection, "connection_lost", on_lost)
    monkeypatch.setattr(Connection, "eof_received", on_eof)
    return seen


# --- cut before the first read (contract, section 5, rule 3) ----------------------------------------


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("size", [10, 100_000, 400_000])
@pytest.mark.parametrize("part", ["all", "half"])
def test_bytes_that_came_before_a_reset_are_kept(
    tmp_path: Path, loop: Callable[[], asyncio.AbstractEventLoop], noticed: list[str], size: int, part: str
) -> None:
    """What came before a reset counts, although nobody had read it when the reset was noticed (A-09)."""
    content = random.Random(size).randbytes(size)
    sent = content if part == "all" else content[: size // 2]
    # more than may wait for its reader stays with the client where no parser takes it in
    least = min(len(sent), connection.HELD_BYTES) if connection.DIRECT else len(sent)

    async def talk(here: Site) -> None:
        path = await here.create(size)
        leasing = gate(here, "acquire_lease")
        line = await here.line()
        noticed.clear()
        line.writer.write(patch(path, 0, size, sent))
        await leasing.reached.wait()
        await until(lambda: _arrived(here) >= least)
        line.reset()
        await until(lambda: "lost" in noticed or _paused(here))
        leasing.opened.set()
        await until(lambda: not here.service.bodies._open)
        offset = (await here.head(path)).offset
        assert least <= offset <= len(sent)
        if offset < size:
            assert (await here.patch(path, offset, content[offset:])).status == 204
        assert await here.stored(path) == content

    on_loop(loop, tmp_path, talk)


def _lines(here: Site) -> list[Connection]:
    lines = [body._request.transport for body in here.service.bodies._open]
    protocols = [line.get_protocol() for line in lines if line is not None]
    return [protocol for protocol in protocols if isinstance(protocol, Connection)]


def _arrived(here: Site) -> int:
    """Bytes of bodies that aiohttp has, the connection, or its socket, in which a reset leaves them."""
    parsed = sum(body._request.content.total_bytes for body in here.service.bodies._open)
    return parsed + sum(len(line._early) + _unread(line) for line in _lines(here))


def _unread(line: Connection) -> int:
    assert line._transport is not None
    count = struct.unpack("i", fcntl.ioctl(line._transport.get_extra_info("socket"), termios.FIONREAD, bytes(4)))
    return count[0] if line._paused else 0


def _paused(here: Site) -> bool:
    """Whether a connection waits for its body to be read, and so cannot notice its end."""
    return any(line._paused for line in _lines(here))


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("size", [10, 100_000, 400_000])
def test_a_client_that_only_listens_gets_its_answer(
    tmp_path: Path, loop: Callable[[], asyncio.AbstractEventLoop], noticed: list[str], size: int
) -> None:
    """FIN behind a whole body is no cut: the upload is finished, answered, and the connection ends."""

    async def talk(here: Site) -> None:
        path = await here.create(size)
        leasing = gate(here, "acquire_lease")
        line = await here.line()
        noticed.clear()
        line.writer.write(patch(path, 0, size, bytes(size)))
        line.writer.write_eof()
        await leasing.reached.wait()
        await until(lambda: "eof" in noticed or _paused(here))
        leasing.opened.set()
        answer = await line.answer()
        assert (answer.status, answer.offset) == (204, size)
        assert await line.closed()

    on_loop(loop, tmp_path, talk)


@pytest.mark.parametrize("loop", LOOPS)
def test_bytes_before_a_hang_up_are_kept(
    tmp_path: Path, loop: Callable[[], asyncio.AbstractEventLoop], noticed: list[str]
) -> None:
    """FIN within a body is a cut that keeps what came, although nobody had read it."""

    async def talk(here: Site) -> None:
        path = await here.create(1000)
        leasing = gate(here, "acquire_lease")
        line = await here.line()
        noticed.clear()
        line.writer.write(patch(path, 0, 1000, bytes(600)))
        await line.close()
        await leasing.reached.wait()
        await until(lambda: "eof" in noticed)
        leasing.opened.set()
        await until(lambda: not here.service.bodies._open)
        assert (await here.head(path)).offset == 600

    on_loop(loop, tmp_path, talk)


@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("size", [10, 100_000, 400_000, 3_000_000])
@pytest.mark.parametrize("early", [True, False])
def test_a_client_that_stops_half_way_and_listens_is_answered(
    tmp_path: Path, loop: Callable[[], asyncio.AbstractEventLoop], size: int, *, early: bool
) -> None:
    """FIN within a body, before it is read or after, keeps what came, and who still listens hears how much that is."""
    content = random.Random(size).randbytes(size)

    async def talk(here: Site) -> None:
        path = await here.create(size)
        leasing = gate(here, "acquire_lease")
        line = await here.line()
        line.writer.write(patch(path, 0, size, content[: size // 2]))
        if early:
            line.writer.write_eof()
        await leasing.reached.wait()
        leasing.opened.set()
        if not early:
            await until(lambda: received(here) == size // 2)
            line.writer.write_eof()
        async with asyncio.timeout(30):
            answer = await line.answer()
        assert (answer.status, answer.slug, answer.offset) == (503, "timeout", size // 2)
        assert await line.closed()
        assert (await here.patch(path, size // 2, content[size // 2 :])).status == 204
        assert await here.stored(path) == content

    on_loop(loop, tmp_path, talk)


async def test_a_client_that_stops_half_way_is_no_fault_of_ours(here: Site, log: io.StringIO) -> None:
    """Who hung up within a chunked body is logged and counted as gone, whatever it was told."""
    path = await here.create(10)
    line = await here.line()
    fields = [*TUS.items(), ("Upload-Offset", "0"), ("Content-Type", OCTETS)]
    await line.send(head("PATCH", path, fields, None, chunked=True) + chunk(b"hello").removesuffix(b"0\r\n\r\n"))
    line.writer.write_eof()
    assert (await line.answer()).offset == 5
    assert await line.closed()
    records = [json.loads(text) for text in log.getvalue().splitlines()]
    (told,) = [record for record in records if record.get("method") == "PATCH"]
    assert (told["status"], told["outcome"], told["received"]) == (499, "client_abort", 5)
    assert not [record for record in records if record["level"] == "error"]


@pytest.mark.parametrize("loop", LOOPS)
def test_in_one_breath(tmp_path: Path, loop: Callable[[], asyncio.AbstractEventLoop]) -> None:
    """Head, body and FIN that come together, before any handler runs, are a finished upload."""

    async def talk(here: Site) -> None:
        path = await here.create(100_000)
        line = await here.line()
        line.writer.write(patch(path, 0, 100_000, bytes(100_000)))
        line.writer.write_eof()
        assert (await line.answer()).status == 204

    on_loop(loop, tmp_path, talk)


async def test_pipelined_requests_and_an_end(here: Site) -> None:
    """A client that sends two requests and FIN gets both answers, and then the connection ends."""
    path = await here.create(10)
    line = await here.line()
    line.writer.write(patch(path, 0, 5, b"hello") + patch(path, 5, 5, b"world"))
    line.writer.write_eof()
    assert [(await line.answer()).offset for _ in range(2)] == [5, 10]
    assert await line.closed()


async def test_a_whole_chunked_body_and_its_trailer_survive_a_reset(here: Site, noticed: list[str]) -> None:
    """The trailer of a whole body is known after its client has gone, and its checksum lets the bytes count."""
    path = await here.create(5)
    leasing = gate(here, "acquire_lease")
    line = await here.line()
    noticed.clear()
    fields = [*TUS.items(), ("Upload-Offset", "0"), ("Content-Type", OCTETS), ("Trailer", "Upload-Checksum")]
    trailers = {"Upload-Checksum": "sha1 qvTGHdzF6KLavt4PO0gs2a6pQ00="}
    line.writer.write(head("PATCH", path, fields, None, chunked=True) + chunk(b"hello", trailers))
    await leasing.reached.wait()
    line.reset()
    await until(lambda: "lost" in noticed)
    leasing.opened.set()
    await until(lambda: not here.service.bodies._open)
    assert (await here.head(path)).offset == 5


# --- stopped before the first read ------------------------------------------------------------------


async def test_a_body_stopped_before_its_first_read_is_not_asked_for(here: Site) -> None:
    """A PATCH that is taken over before it reads says nothing of 100, and its answer is 423."""
    path = await here.create(10)
    await here.patch(path, 0, b"hello")
    reading = preparing(here)
    line = await here.line()
    await line.send(patch(path, 5, 5, b"", ("Expect", "100-continue")))
    await reading.reached.wait()
    (body,) = here.service.bodies._open
    newcomer = await here.line()
    await newcomer.send(patch(path, 5, 5, b"world"))
    await until(lambda: body.ending is Ending.TAKEN_OVER)
    reading.opened.set()
    answer = await line.answer()
    assert (answer.status, answer.slug, answer.interim) == (423, "locked", ())
    assert body.ending is Ending.TAKEN_OVER
    assert not body.started
    assert (await newcomer.answer()).offset == 10


async def test_a_body_stopped_before_its_first_read_keeps_what_came(here: Site) -> None:
    """What had come of a body when the service began to stop is committed, read or not."""
    path = await here.create(10)
    await here.patch(path, 0, b"hello")
    reading = preparing(here)
    line = await here.line()
    await line.send(patch(path, 5, 5, b"wor"))
    await reading.reached.wait()
    await until(lambda: _arrived(here) == 3)
    here.service.bodies.drain()
    reading.opened.set()
    answer = await line.answer()
    assert (answer.status, answer.slug, answer.offset) == (503, "draining", 8)


# --- our own delays ---------------------------------------------------------------------------------


async def test_a_slow_disk_is_not_the_clients_silence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A body that waits for storage is neither silent nor slow; once it is read again the client's time runs anew."""
    clock, content = SteppedClock(), bytes(4 * MIB)
    async with site(tmp_path, clock=clock) as here:
        path = await here.create(len(content) + 1)
        writing = Gate(DiskAppender.write)

        async def write(self: DiskAppender, piece: memoryview, *, last: bool) -> None:
            await writing(self, piece, last=last)

        monkeypatch.setattr(DiskAppender, "write", write)
        line = await here.line()
        line.writer.write(patch(path, 0, len(content) + 1, content))
        await until(lambda: bool(here.service.bodies._open))
        (body,) = here.service.bodies._open
        await until(lambda: len(body._ready) == 1 and body._holding_up)
        clock.skip(300)
        body._tick()
        assert body.silent_seconds() == 0
        # nor does HEAD take it for silent
        assert (await here.head(path)).status == 200
        writing.opened.set()
        await until(lambda: body.received == len(content) and not body._holding_up)
        clock.skip(59)
        body._tick()
        await line.send(b"x")
        assert (await line.answer()).status == 204


async def test_an_empty_pool_is_not_the_clients_silence(tmp_path: Path) -> None:
    """A body that waits for a buffer goes on when there is one, however long that took."""
    clock = SteppedClock()
    async with site(tmp_path, clock=clock) as here:
        pool = here.service.bodies._pool
        path = await here.create(10)
        line = await begin_patch(here, path, 0, b"hello")
        (body,) = here.service.bodies._open
        # all of it is written, and the body holds no buffer
        await until(lambda: not pool.used_bytes)
        others = []
        while (buffer := pool.take_now(MIB)) is not None:
            others.append(buffer)
        await line.send(b"5\r\nworld\r\n0\r\n\r\n")
        await until(lambda: bool(pool._waiters))
        clock.skip(300)
        body._tick()
        assert body.silent_seconds() == 0
        for buffer in others:
            pool.give(buffer)
        assert (await line.answer()).offset == 10


async def test_before_the_first_read_no_silence_counts(tmp_path: Path) -> None:
    """A HEAD that comes while a PATCH still prepares to read does not stop it."""
    clock = SteppedClock()
    async with site(tmp_path, clock=clock) as here:
        path = await here.create(10)
        await here.patch(path, 0, b"hello")
        reading = preparing(here)
        line = await here.line()
        await line.send(patch(path, 5, 5, b"world"))
        await reading.reached.wait()
        await until(lambda: held(here, path))
        clock.skip(100)
        assert (await here.head(path)).offset == 5
        reading.opened.set()
        assert (await line.answer()).offset == 10


# --- framing ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("codings", ["gzip, chunked", "chunked, chunked"])
async def test_other_transfer_codings_are_refused(here: Site, codings: str) -> None:
    """A body in a coding that nobody undoes is refused, and makes nothing of the bytes on the way."""
    path = await here.create(10)
    line: Line = await here.line()
    fields = [*TUS.items(), ("Upload-Offset", "0"), ("Content-Type", OCTETS), ("Transfer-Encoding", codings)]
    await line.send(head("PATCH", path, fields, None) + chunk(b"hello"))
    assert (await line.answer()).status == 400
    assert (await here.head(path)).offset == 0
