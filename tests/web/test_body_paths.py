"""However a request with a body is cut into packets, and whatever follows it, both ways to receive it agree."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Final

import pytest

from service import listening
from service.storage.filesystem.appender import DiskAppender
from service.web.direct import DirectBody
from tests.web.harness import OCTETS, TUS, Line, Site, chunk, head
from tests.web.under_way import LOOPS, begin_patch, on_loop, patch, received, until

KIB: Final = 1024
MIB: Final = 1024 * KIB
Loop = Callable[[], asyncio.AbstractEventLoop]
pytestmark = [
    pytest.mark.parametrize("body_path", ["fast", "plain"], indirect=True),
    pytest.mark.parametrize("loop", LOOPS),
]


@pytest.fixture
def direct(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many bytes of bodies came in each receipt that was not parsed."""
    sizes: list[int] = []
    filled = DirectBody.filled

    def count(self: DirectBody, size: int) -> None:
        sizes.append(size)
        filled(self, size)

    monkeypatch.setattr(DirectBody, "filled", count)
    return sizes


# --- packets ------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 1000, 64 * KIB, 300 * KIB, 5 * MIB + 1])
def test_head_and_body_in_one_write(tmp_path: Path, loop: Loop, size: int) -> None:
    """A body that begins in the packet of its head is stored whole, and its connection goes on."""
    content = random.Random(size).randbytes(size)

    async def talk(here: Site) -> None:
        path = await here.create(size)
        line = await here.line()
        await line.send(patch(path, 0, size, content))
        assert (await line.answer()).offset == size
        await line.send(head("HEAD", path, [*TUS.items()], None))
        assert (await line.answer(head=True)).offset == size
        assert await here.stored(path) == content

    on_loop(loop, tmp_path, talk)


def test_the_fast_path_is_taken(tmp_path: Path, loop: Loop, direct: list[int], body_path: str) -> None:
    """Of a large body nearly all is received without a parser, in the fast way, and nothing in the plain one."""

    async def talk(here: Site) -> None:
        path = await here.create(8 * MIB)
        assert (await here.patch(path, 0, bytes(8 * MIB))).status == 204
        assert sum(direct) > 7 * MIB if body_path == "fast" else not direct

    on_loop(loop, tmp_path, talk)


def test_byte_by_byte(tmp_path: Path, loop: Loop) -> None:
    """A request that comes one byte at a time is a request."""

    async def talk(here: Site) -> None:
        path = await here.create(5)
        line = await here.line()
        for byte in patch(path, 0, 5, b"hello"):
            await line.send(bytes([byte]))
            await asyncio.sleep(0)
        assert (await line.answer()).offset == 5
        assert await here.stored(path) == b"hello"

    on_loop(loop, tmp_path, talk)


@pytest.mark.parametrize("seed", range(3))
def test_cut_into_packets_anywhere(tmp_path: Path, loop: Loop, seed: int) -> None:
    """Requests of all sizes on one connection, cut anywhere and sent without waiting for answers, are all served."""
    chance = random.Random(seed)
    content = chance.randbytes(3 * MIB)
    edges = sorted({0, len(content), *(chance.randrange(len(content)) for _ in range(6))})
    pieces = [(start, content[start:end]) for start, end in pairwise(edges)]

    async def talk(here: Site) -> None:
        path = await here.create(len(content))
        data = b"".join(patch(path, start, len(piece), piece) for start, piece in pieces)
        line = await here.line()
        reading = asyncio.create_task(_answers(line, len(pieces)))
        at = 0
        while at < len(data):
            size = chance.choice([1, 7, 300, 1400, 70_000, 400_000])
            await line.send(data[at : at + size])
            await asyncio.sleep(0)
            at += size
        assert await reading == [start + len(piece) for start, piece in pieces]
        assert await here.stored(path) == content

    on_loop(loop, tmp_path, talk)


async def _answers(line: Line, count: int) -> list[int]:
    return [(await line.answer()).offset for _ in range(count)]


# --- one after the other ------------------------------------------------------------------------


def test_pipelined_requests_of_all_kinds(tmp_path: Path, loop: Loop) -> None:
    """Three PATCHes, a chunked one last, and HEADs between them, in one write, are answered in order."""

    async def talk(here: Site) -> None:
        path = await here.create(200_015)
        look = head("HEAD", path, [*TUS.items()], None)
        fields = [*TUS.items(), ("Upload-Offset", "200005"), ("Content-Type", OCTETS)]
        last = head("PATCH", path, fields, None, chunked=True) + chunk(b"helloworld")
        line = await here.line()
        await line.send(patch(path, 0, 5, b"hello") + look + patch(path, 5, 200_000, bytes(200_000)) + look + last)
        offsets = [(await line.answer(head=number % 2 == 1)).offset for number in range(5)]
        assert offsets == [5, 5, 200_005, 200_005, 200_015]

    on_loop(loop, tmp_path, talk)


def test_many_heads_after_a_large_body(tmp_path: Path, loop: Loop) -> None:
    """A hundred pipelined HEADs are answered on a connection that had a body of many packets before.

    aiohttp 3.14 alone stops after 31 of them.
    """

    async def talk(here: Site) -> None:
        path = await here.create(3 * MIB)
        line = await here.line()
        await line.send(patch(path, 0, 3 * MIB, bytes(3 * MIB)))
        assert (await line.answer()).status == 204
        await line.send(head("HEAD", path, [*TUS.items()], None) * 100)
        assert [(await line.answer(head=True)).offset for _ in range(100)] == [3 * MIB] * 100

    on_loop(loop, tmp_path, talk)


# --- refusals -----------------------------------------------------------------------------------


@pytest.mark.parametrize("rest", [0, 10, 100 * KIB])
def test_a_refusal_with_a_small_rest(tmp_path: Path, loop: Loop, rest: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A refused body that ends soon ends its connection as soon, and the answer arrives whole."""
    # whoever waited for more of the body would wait for longer than the test does
    monkeypatch.setattr(listening, "_LINGER_SECONDS", 90.0)

    async def talk(here: Site) -> None:
        path = await here.create(MIB)
        line = await here.line()
        await line.send(patch(path, 7, 1000 + rest, bytes(1000)))
        answer = await line.answer()
        assert (answer.status, answer.slug, answer.offset) == (409, "offset-mismatch", 0)
        assert answer.headers["Connection"] == "close"
        await line.send(bytes(rest))
        async with asyncio.timeout(30):
            assert await line.closed()

    on_loop(loop, tmp_path, talk)


async def _pour(line: Line) -> None:
    while True:
        await line.send(bytes(256 * KIB))


@pytest.mark.parametrize("sent", [0, 1000])
def test_a_refusal_with_a_huge_rest(tmp_path: Path, loop: Loop, sent: int) -> None:
    """A client that wants to send 4 GiB hears the refusal, and its connection ends although it goes on sending."""

    async def talk(here: Site) -> None:
        line = await here.line()
        path = f"/files/u_{'a' * 26}"
        await line.send(patch(path, 0, 4 * 1024 * MIB, bytes(sent)))
        assert (await line.answer()).status == 404
        with pytest.raises(ConnectionError):
            await _pour(line)

    on_loop(loop, tmp_path, talk)


def test_expect_that_is_accepted(tmp_path: Path, loop: Loop) -> None:
    """A client that waits for 100 gets one, sends its body, and goes on with the connection."""

    async def talk(here: Site) -> None:
        path = await here.create(2 * MIB)
        line = await here.line()
        for offset in (0, MIB):
            await line.send(patch(path, offset, MIB, b"", ("Expect", "100-continue")))
            assert (await line.answer(interim=True)).status == 100
            await line.send(bytes(MIB))
            answer = await line.answer()
            assert (answer.status, answer.offset, answer.interim) == (204, offset + MIB, ())

    on_loop(loop, tmp_path, talk)


def test_expect_that_is_not_waited_for(tmp_path: Path, loop: Loop) -> None:
    """A client that announces that it waits, and does not, is served."""

    async def talk(here: Site) -> None:
        path = await here.create(MIB)
        line = await here.line()
        await line.send(patch(path, 0, MIB, bytes(MIB), ("Expect", "100-continue")))
        assert (await line.answer()).offset == MIB

    on_loop(loop, tmp_path, talk)


def test_expect_that_is_refused(tmp_path: Path, loop: Loop) -> None:
    """A client that waits for 100 and is refused gets no 100, and the connection is not used again."""

    async def talk(here: Site) -> None:
        line = await here.line()
        await line.send(patch(await here.create(MIB), 7, MIB, b"", ("Expect", "100-continue")))
        answer = await line.answer()
        assert (answer.status, answer.interim, answer.headers["Connection"]) == (409, (), "close")
        assert await line.closed()

    on_loop(loop, tmp_path, talk)


# --- memory -------------------------------------------------------------------------------------


def test_a_reader_that_is_late_stops_the_client(tmp_path: Path, loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    """While storage stalls a body has two buffers at most, and the rest stays with the client."""
    stalled, write = asyncio.Event(), DiskAppender.write

    async def late(self: DiskAppender, piece: memoryview, *, last: bool) -> None:
        await stalled.wait()
        await write(self, piece, last=last)

    monkeypatch.setattr(DiskAppender, "write", late)

    async def talk(here: Site) -> None:
        path = await here.create(32 * MIB)
        line = await here.line()
        sending = asyncio.create_task(line.send(patch(path, 0, 32 * MIB, bytes(32 * MIB))))
        pool = here.service.bodies._pool
        await until(lambda: any(body._holding_up and body._ready for body in here.service.bodies._open))
        assert (await here.ask("OPTIONS", "/files")).status == 200
        assert pool.used_bytes <= 2 * MIB
        assert received(here) <= 3 * MIB
        stalled.set()
        await sending
        assert (await line.answer()).offset == 32 * MIB
        await until(lambda: not pool.used_bytes)

    on_loop(loop, tmp_path, talk)


def test_no_buffer_for_a_while(tmp_path: Path, loop: Loop) -> None:
    """A body for which the pool has no buffer waits for one, and is served then."""

    async def talk(here: Site) -> None:
        pool = here.service.bodies._pool
        path = await here.create(2 * MIB)
        line = await begin_patch(here, path, 0, b"hello", length=2 * MIB)
        await until(lambda: received(here) == 5 and not pool.used_bytes)
        others = []
        while (buffer := pool.take_now(MIB)) is not None:
            others.append(buffer)
        sending = asyncio.create_task(line.send(bytes(2 * MIB - 5)))
        await until(lambda: bool(pool._waiters))
        for buffer in others:
            pool.give(buffer)
        await sending
        assert (await line.answer()).offset == 2 * MIB
        assert not pool.used_bytes

    on_loop(loop, tmp_path, talk)


def test_many_bodies_at_once(tmp_path: Path, loop: Loop) -> None:
    """Two hundred bodies under way at once keep within the limit of the buffers, and all of them end whole."""

    async def talk(here: Site) -> None:
        paths = [await here.create(200_000) for _ in range(200)]
        lines = [await here.line() for _ in paths]
        for line, path in zip(lines, paths, strict=True):
            await line.send(patch(path, 0, 200_000, bytes(100_000)))
        await until(lambda: received(here) == 200 * 100_000)
        assert here.service.bodies._pool.used_bytes <= here.service.bodies._pool.limit_bytes
        for line in lines:
            await line.send(bytes(100_000))
        assert [(await line.answer()).offset for line in lines] == [200_000] * 200

    on_loop(loop, tmp_path, talk)


def test_a_thousand_connections(tmp_path: Path, loop: Loop) -> None:
    """A thousand connections, each with a refused body and then silent, cost no buffers and keep nobody out."""

    async def talk(here: Site) -> None:
        lines = [await here.line() for _ in range(1000)]
        for line in lines:
            await line.send(patch(f"/files/u_{'a' * 26}", 0, 1000, bytes(1000)))
        assert {(await line.answer()).status for line in lines} == {404}
        assert not here.service.bodies._pool.used_bytes
        path = await here.create(MIB)
        assert (await here.patch(path, 0, bytes(MIB))).status == 204

    on_loop(loop, tmp_path, talk)
