"""The faulty proxy does to a connection what its plan says, and nothing else."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

import pytest

from tests.e2e.faulty import Ending, FaultyProxy, Plan, random_cuts

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Echo:
    """A server that keeps what it gets and sends it back; `ends` says how each connection ended."""

    def __init__(self) -> None:
        self.got = bytearray()
        self.ends: asyncio.Queue[str] = asyncio.Queue()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while piece := await reader.read(65536):
                self.got += piece
                writer.write(piece)
            self.ends.put_nowait("fin")
        except ConnectionResetError:
            self.ends.put_nowait("rst")
        finally:
            writer.close()


@asynccontextmanager
async def echo_behind(*plans: Plan) -> AsyncIterator[tuple[Echo, FaultyProxy]]:
    echo = Echo()
    server = await asyncio.start_server(echo.serve, "127.0.0.1", 0)
    async with FaultyProxy(server.sockets[0].getsockname(), plans) as proxy:
        yield echo, proxy
    server.close()


async def talk(proxy: FaultyProxy, sent: bytes) -> tuple[bytes, str]:
    """What came back for sent, and how the connection ended for the client."""
    reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
    got = bytearray()
    end = "fin"
    try:
        writer.write(sent)
        if not proxy.stalled.is_set():
            writer.write_eof()
        while piece := await reader.read(65536):
            got += piece
    except ConnectionResetError:
        end = "rst"
    finally:
        writer.close()
    return bytes(got), end


async def test_without_a_plan_everything_passes() -> None:
    """A connection without a plan carries all bytes both ways and ends as its ends do."""
    async with echo_behind() as (_, proxy):
        sent = bytes(range(256)) * 1000
        assert await talk(proxy, sent) == (sent, "fin")
        assert (proxy.connections, proxy.cuts, proxy.bytes_up, proxy.bytes_down) == (1, 0, 256_000, 256_000)


@pytest.mark.parametrize("ending", [Ending.FIN, Ending.RST])
async def test_a_cut_lets_exactly_so_many_bytes_through(ending: Ending) -> None:
    """The server gets the planned number of bytes, then the planned ending; so does the client."""
    async with echo_behind(Plan(cut_up=100_001, ending=ending)) as (echo, proxy):
        _, end = await talk(proxy, b"x" * 300_000)
        assert await echo.ends.get() == ending
        assert (len(echo.got), end, proxy.cuts) == (100_001, ending, 1)


async def test_a_cut_downstream_counts_what_the_client_gets() -> None:
    """The client gets the planned number of bytes and then an end of stream."""
    async with echo_behind(Plan(cut_down=70_000)) as (_, proxy):
        got, end = await talk(proxy, b"x" * 300_000)
        assert (len(got), end) == (70_000, "fin")


async def test_a_stall_is_silent() -> None:
    """After a stall neither end gets a byte or an end, until the proxy closes."""
    async with echo_behind(Plan(cut_up=1000, ending=Ending.STALL)) as (echo, proxy):
        talking = asyncio.create_task(talk(proxy, b"x" * 2000))
        await proxy.stalled.wait()
        assert not talking.done()
        assert echo.ends.empty()
    await talking
    assert len(echo.got) == 1000


async def test_a_refused_connection_reaches_nobody() -> None:
    """A refused connection is reset, and the target never hears of it."""
    async with echo_behind(Plan(refuse=True)) as (echo, proxy):
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()
        assert not echo.got
        assert (await talk(proxy, b"again"))[0] == b"again"


async def test_a_response_can_be_eaten() -> None:
    """A response that begins as planned never comes, as often as planned; its request was served."""
    async with echo_behind() as (echo, proxy):
        proxy.eat(rb"HTTP/1\.1 204", times=2)
        response = b"HTTP/1.1 204 No Content\r\n\r\n"
        assert [(await talk(proxy, response))[0] for _ in range(3)] == [b"", b"", response]
        assert (bytes(echo.got), proxy.cuts) == (response * 3, 2)


async def test_a_request_can_be_answered_by_the_proxy() -> None:
    """The planned request gets the planned response, and the server does not hear of it."""
    async with echo_behind() as (echo, proxy):
        request, response = b"PATCH /files/u_x HTTP/1.1\r\n\r\n", b"HTTP/1.1 423 Locked\r\n\r\n"
        proxy.answer(rb"PATCH /files/u_", response)
        assert await talk(proxy, request + b"body") == (response, "fin")
        assert not echo.got
        assert await talk(proxy, request) == (request, "fin")


async def test_one_bit_can_be_flipped() -> None:
    """Exactly the planned byte differs, by one bit."""
    async with echo_behind(Plan(flip=5)) as (_, proxy):
        assert (await talk(proxy, b"a" * 10))[0] == b"aaaaa`aaaa"


async def test_a_rate_is_kept() -> None:
    """200 kB at 1 MB/s take 0.2 s and more."""
    async with echo_behind(Plan(rate=1_000_000)) as (_, proxy):
        start = time.monotonic()
        await talk(proxy, b"x" * 200_000)
        assert time.monotonic() - start >= 0.2


async def test_latency_is_added() -> None:
    """Each direction takes at least its latency longer."""
    async with echo_behind(Plan(latency_seconds=0.05)) as (_, proxy):
        start = time.monotonic()
        await talk(proxy, b"x")
        assert time.monotonic() - start >= 0.1


async def test_request_lines_are_counted() -> None:
    """Request lines are found between bodies and across pieces, and each is counted once."""
    async with echo_behind() as (_, proxy):
        reader, writer = await asyncio.open_connection("127.0.0.1", proxy.port)
        for piece in (b"POST /files?sig=a HT", b"TP/1.1\r\nA: b\r\n\r\nbodyPATCH /files/u_x HTTP/1.1\r", b"\n\r\n"):
            writer.write(piece)
            await reader.readexactly(len(piece))
        writer.close()
        assert (proxy.requests(), proxy.requests(b"POST "), proxy.requests(b"PATCH /files/u_")) == (2, 1, 1)


async def test_plans_go_in_order_and_then_the_default() -> None:
    """Each connection takes one plan, first come first served; later ones are left alone."""
    async with echo_behind(Plan(cut_up=1), Plan(cut_up=2)) as (echo, proxy):
        for _ in range(3):
            await talk(proxy, b"1234")
            await echo.ends.get()
        assert len(echo.got) == 1 + 2 + 4


async def test_plans_can_be_put_first() -> None:
    """`then` puts plans before those that were made earlier."""
    async with echo_behind(Plan(cut_up=1)) as (echo, proxy):
        proxy.then(Plan(cut_up=3))
        await talk(proxy, b"1234")
        await echo.ends.get()
        assert len(echo.got) == 3


def test_random_cuts_repeat() -> None:
    """The same seed gives the same plans, another one others."""
    assert random_cuts(1, 20, 10_000) == random_cuts(1, 20, 10_000)
    assert random_cuts(1, 20, 10_000) != random_cuts(2, 20, 10_000)
