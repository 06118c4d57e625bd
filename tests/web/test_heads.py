"""Heads are bounded in all and in time, and pipelined requests wait for their turn outside of aiohttp."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import pytest
from aiohttp.streams import EMPTY_PAYLOAD, StreamReader

from service.web import deadlines
from service.web.connection import HEAD_BYTES, Connection
from service.web.deadlines import ANSWER_SECONDS, HEAD_SECONDS
from tests.web.harness import OCTETS, TUS, Line, Site, chunk, head
from tests.web.under_way import until

pytestmark = pytest.mark.parametrize("body_path", ["fast", "plain"], indirect=True)
KIB = 1024
START = b"OPTIONS /files HTTP/1.1\r\nHost: files.test\r\n"


def field(number: int, size: int) -> bytes:
    return b"X-%d: %b\r\n" % (number, b"a" * size)


async def closed(line: Line) -> bool:
    async with asyncio.timeout(30):
        return await line.closed()


@pytest.fixture
def passed_on(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of all that any connection received."""
    sizes: list[int] = []
    received = Connection.receive

    def count(self: Connection, data: bytes) -> None:
        sizes.append(len(data))
        received(self, data)

    monkeypatch.setattr(Connection, "receive", count)
    return sizes


# --- bytes --------------------------------------------------------------------------------------


async def test_many_large_fields_end_the_connection(here: Site, passed_on: list[int]) -> None:
    """A head of many allowed fields ends its connection before it has cost half a mebibyte."""
    line = await here.line()
    line.writer.write(START + b"".join(field(number, 60_000) for number in range(100)))
    assert await closed(line)
    assert sum(passed_on) <= HEAD_BYTES + 256 * KIB


async def test_large_line_and_large_field_pass(here: Site) -> None:
    """A request line of 60 KB and a field of 64 KB in one request are served (A-04, T-0CE)."""
    line = await here.line()
    await line.send(head("OPTIONS", "/files?x=" + "a" * 60_000, [("X-Large", "a" * 65_000)], None))
    assert (await line.answer()).status == 200


async def test_heads_are_bounded_one_by_one(here: Site) -> None:
    """What earlier requests of a connection had in their heads does not count."""
    line = await here.line()
    for _ in range(6):
        await line.send(START + field(1, 60_000) + b"\r\n")
        assert (await line.answer()).status == 200


async def test_empty_lines_before_a_head_cost_nothing(here: Site) -> None:
    """Empty lines are skipped, and do not count as a head or its end."""
    line = await here.line()
    await line.send(b"\r\n" * 1000)
    await line.send(START + b"\r\n")
    assert (await line.answer()).status == 200


async def test_endless_trailers_end_the_connection(here: Site) -> None:
    """Bytes of a chunked body that bring it no further are bounded like a head."""
    path = await here.create(10)
    line = await here.line()
    await line.send(
        head("PATCH", path, [*TUS.items(), ("Upload-Offset", "0"), ("Content-Type", OCTETS)], None, chunked=True)
    )
    line.writer.write(b"5\r\nhello\r\n0\r\n" + b"".join(field(number, 60_000) for number in range(100)))
    assert await closed(line)
    await until(lambda: not here.service.bodies._open)
    assert (await here.head(path)).offset == 5


# --- pipelining ---------------------------------------------------------------------------------


def patch(path: str, offset: int, body: bytes) -> bytes:
    return head("PATCH", path, [*TUS.items(), ("Upload-Offset", str(offset)), ("Content-Type", OCTETS)], body) + body


async def test_pipelined_requests_are_served_in_order(here: Site) -> None:
    """Requests sent in one breath, with large bodies and without, are all answered, each with its own."""
    path = await here.create(1_300_000)
    line = await here.line()
    first, second = b"a" * 600_000, b"b" * 700_000
    line.writer.write(patch(path, 0, first) + START + b"\r\n" + patch(path, 600_000, second) + START + b"\r\n")
    answers = [await line.answer() for _ in range(4)]
    assert [answer.status for answer in answers] == [204, 200, 204, 200]
    assert [answer.headers.get("Upload-Offset") for answer in answers] == ["600000", None, "1300000", None]
    assert await here.stored(path) == first + second


async def test_a_request_behind_a_chunked_one(here: Site) -> None:
    """Behind a chunked body, whose end only aiohttp sees, a connection is not used again if more came with it."""
    path = await here.create(10)
    line = await here.line()
    fields = [*TUS.items(), ("Upload-Offset", "0"), ("Content-Type", OCTETS)]
    await line.send(head("PATCH", path, fields, None, chunked=True) + chunk(b"hello") + START + b"\r\n")
    assert (await line.answer()).status == 204
    assert await closed(line)


async def test_a_request_after_a_chunked_one(here: Site) -> None:
    """Once a chunked request is answered the next one on its connection is served."""
    path = await here.create(10)
    line = await here.line()
    for offset in (0, 5):
        fields = [*TUS.items(), ("Upload-Offset", str(offset)), ("Content-Type", OCTETS)]
        await line.send(head("PATCH", path, fields, None, chunked=True) + chunk(b"hello", {"X-Any": "1"}))
        assert (await line.answer()).offset == offset + 5


async def test_what_is_behind_a_handled_request_is_bounded(
    here: Site, passed_on: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a request is handled, under a mebibyte is read of what its client sends behind it."""
    path = await here.create(10)
    begun, go_on = asyncio.Event(), asyncio.Event()
    acquire = here.service.metadata.acquire_lease

    async def late(*args: Any, **named: Any) -> Any:
        begun.set()
        await go_on.wait()
        return await acquire(*args, **named)

    monkeypatch.setattr(here.service.metadata, "acquire_lease", late)
    line = await here.line()
    await line.send(patch(path, 0, b"hello"))
    await begun.wait()
    sending = asyncio.create_task(_pour(line, START + b"".join(field(number, 60_000) for number in range(400))))
    # what the two sockets hold is sent, and the rest is not
    await until(lambda: sum(passed_on) > 100 * KIB)
    assert (await here.ask("OPTIONS", "/files")).status == 200
    assert sum(passed_on) < KIB * KIB
    go_on.set()
    assert await closed(line)
    await sending
    await until(lambda: not here.service.bodies._open)
    assert (await here.head(path)).offset == 5


async def _pour(line: Line, data: bytes) -> None:
    with contextlib.suppress(ConnectionError):
        await line.send(data)


# --- time ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("sent", [b"", b"\r\n", b"OPT", START, START + b"X: a"])
async def test_an_unfinished_head_ends_in_time(here: Site, monkeypatch: pytest.MonkeyPatch, sent: bytes) -> None:
    """A connection on which nothing, or no whole head, comes is closed."""
    monkeypatch.setattr(deadlines, "HEAD_SECONDS", 0.05)
    line = await here.line()
    line.writer.write(sent)
    assert await closed(line)


class Inner(asyncio.Protocol):
    """A server that answers nothing."""


class Ended(asyncio.Transport):
    """A transport that notes whether it was aborted."""

    aborted = False
    #: bytes that the client has not taken
    unsent = 0

    def get_write_buffer_size(self) -> int:
        return self.unsent

    def abort(self) -> None:
        self.aborted = True


class Bodiless:
    """As much of a request as a connection looks at."""

    content_length = None
    content = EMPTY_PAYLOAD


@pytest.fixture
async def watched() -> Any:
    """A connection, its transport, and a function that lets time pass and looks."""
    instant = 0.0
    made = Connection(Inner(), lambda: instant)
    transport = Ended()
    made.connection_made(transport)

    def forward(seconds: float) -> bool:
        nonlocal instant
        instant += seconds
        if made._deadlines._timer is not None:
            made._deadlines._timer.cancel()
        made._deadlines.look()
        return transport.aborted

    yield made, forward
    made.connection_lost(None)


async def test_a_drip_of_a_head_ends(watched: Any) -> None:
    """The deadline of a head does not move with its bytes."""
    made, forward = watched
    for _ in range(5):
        made.receive(b"x")
        assert not forward(HEAD_SECONDS / 6)
    assert forward(HEAD_SECONDS / 6 + 1)


async def test_idling_after_an_answer_is_no_unfinished_head(watched: Any) -> None:
    """Between requests a connection may idle for as long as aiohttp's keep-alive; the next head has its own time."""
    made, forward = watched
    made.receive(START + b"\r\n")
    made.begin(Bodiless())
    assert not forward(10 * HEAD_SECONDS)
    assert made.end()
    assert not forward(10 * HEAD_SECONDS)
    made.receive(b"OPTIONS")
    assert not forward(HEAD_SECONDS - 1)
    assert forward(1)


async def test_a_request_that_is_never_begun_ends(watched: Any) -> None:
    """The deadline runs until a handler begins, so nothing can stay between a head and its handler."""
    made, forward = watched
    made.receive(START + b"\r\n")
    assert not forward(HEAD_SECONDS - 1)
    assert forward(1)


async def test_an_answer_that_nobody_takes_ends(watched: Any) -> None:
    """The answer of which a client takes nothing ends its connection, and one that is taken bit by bit does not."""
    made, forward = watched
    made.receive(START + b"\r\n")
    made.begin(Bodiless())
    made._transport.unsent = 1000
    assert not forward(10 * ANSWER_SECONDS), "who sends it, sees to it"
    made.end()
    for _ in range(20):
        made._transport.unsent -= 1
        assert not forward(ANSWER_SECONDS - 1)
    assert not forward(ANSWER_SECONDS - 1)
    assert forward(1)


async def test_a_last_answer_that_nobody_takes_ends(watched: Any) -> None:
    """So it is for one behind which the connection is closed: its transport would wait for ever."""
    made, forward = watched
    made.receive(START + b"\r\n")
    made.begin(Bodiless())
    made._content = StreamReader(made._inner, 1000, loop=asyncio.get_running_loop())
    made._transport.unsent = 1000
    assert not made.end(), "its body was not read"
    assert not forward(0)
    assert forward(ANSWER_SECONDS)


# --- the operations listener, whose application is a plain one ----------------------------------


async def operations(here: Site) -> Line:
    host, port = str(here.service.operations).rsplit(":", 1)
    line = Line(*await asyncio.open_connection(host, int(port)))
    here.lines.append(line)
    return line


async def test_operations_keep_their_connections(here: Site) -> None:
    """The operations listener serves one request after the other on a connection, failed ones too."""
    line = await operations(here)
    for path, status in (("/livez", 200), ("/nowhere", 404), ("/metrics", 200)):
        await line.send(head("GET", path, [], None))
        async with asyncio.timeout(30):
            assert (await line.answer()).status == status


async def test_an_unknown_expectation_ends_the_connection(here: Site) -> None:
    """417 comes before any middleware (A-03); the connection says that it ends, and does."""
    line = await operations(here)
    await line.send(head("GET", "/livez", [("Expect", "something")], None))
    answer = await line.answer()
    assert (answer.status, answer.headers["Connection"]) == (417, "close")
    assert await closed(line)
