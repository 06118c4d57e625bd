"""clamd's protocol: every answer, however the content is cut, and every way in which it can fail."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from service import clamd
from service.clamd import Clamd
from service.scanner import ScanError, ScanTooLarge
from service.setting_types import TcpAddress, UnixAddress
from tests.scanners.double import EICAR, SIGNATURE, Double

MIB = 2**20


@pytest.fixture(params=["tcp", "unix"])
async def double(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Double]:
    """A scanner on either kind of socket."""
    async with Double().serving(tmp_path / "clamd.sock" if request.param == "unix" else None) as serving:
        yield serving


def client(double: Double) -> Clamd:
    kind, _, rest = double.address.partition(":")
    return Clamd(UnixAddress(Path(rest)) if kind == "unix" else TcpAddress(kind, int(rest)))


async def cut(content: bytes, size: int) -> AsyncIterator[bytes]:
    """The content in pieces of that size."""
    for start in range(0, len(content), size):
        yield content[start : start + size]


@pytest.mark.parametrize("size", [1, 7, 68, 4096, MIB])
async def test_content_is_found_clean_or_not_however_it_is_cut(double, size):
    """The verdict is of the whole content, and all of it arrives."""
    infected = bytes(50) + EICAR + bytes(50)
    assert await client(double).scan(cut(infected, size)) == SIGNATURE
    assert await client(double).scan(cut(bytes(168), size)) is None
    assert double.scanned == [infected, bytes(168)]


async def test_nothing_is_clean(double):
    """Empty content is answered for too."""
    assert await client(double).scan(cut(b"", 1)) is None


async def test_large_pieces_are_sent_in_small_chunks(double):
    """clamd holds a chunk at a time, so none is larger than it needs."""
    content = bytes(5 * MIB)
    assert await client(double).scan(cut(content, 4 * MIB)) is None
    assert double.scanned == [content]
    assert double.largest_chunk <= 256 * 1024


async def test_it_says_which_version_it_is(double):
    """The doctor's question has an answer."""
    assert (await client(double).version()).startswith("ClamAV ")


async def test_more_than_it_takes_is_told(double):
    """Over its own limit clamd answers and closes in the middle; that is no failure of the connection."""
    double.most = MIB
    with pytest.raises(ScanTooLarge, match="size limit exceeded"):
        await client(double).scan(cut(bytes(8 * MIB), 64 * 1024))


@pytest.mark.parametrize("manner", ["dies", "garbage", "no end", "endless", "error"])
@pytest.mark.parametrize("size", [100, 3 * MIB])
async def test_a_scanner_out_of_order_is_not_believed(double, manner, size):
    """What is not exactly an answer is a failure, never a verdict."""
    double.manner = manner
    with pytest.raises(ScanError) as failed:
        await client(double).scan(cut(bytes(size), 4096))
    assert not isinstance(failed.value, ScanTooLarge)


@pytest.mark.parametrize("answer", [b"stream: OK\n", b"stream: OK FOUND of", b"OK", b"", b"stream: FOUND"])
async def test_an_answer_that_is_nearly_right_is_wrong(answer):
    """Only the two answers of the protocol say clean and infected; blanks at the end do not matter."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(bytes(4))
        writer.write(answer + b"\0")
        writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
        scanning = Clamd(TcpAddress("127.0.0.1", server.sockets[0].getsockname()[1])).scan(cut(b"x", 1))
        if answer.strip() == b"stream: OK":
            assert await scanning is None
        else:
            with pytest.raises(ScanError):
                await scanning


@pytest.mark.parametrize("address", [TcpAddress("127.0.0.1", 1), UnixAddress(Path("/nonexistent/clamd.sock"))])
async def test_a_scanner_that_is_not_there_is_named(address):
    """The failure says which address was tried."""
    with pytest.raises(ScanError, match=r"127\.0\.0\.1:1|clamd\.sock"):
        await Clamd(address).scan(cut(b"x", 1))


async def test_a_scanner_that_hangs_is_left(double):
    """Whoever loses patience leaves no connection behind."""
    double.manner = "hangs"
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await client(double).scan(cut(bytes(MIB), 4096))
    double.manner = "honest"
    for _ in range(100):
        if not double._open:
            break
        await asyncio.sleep(0.01)
    assert await client(double).scan(cut(b"x", 1)) is None


async def test_a_scanner_that_reads_nothing_is_left(monkeypatch):
    """A full socket that is not emptied ends the scan as well."""
    monkeypatch.setattr(clamd, "_SEND_SECONDS", 0.2)
    stop = asyncio.Event()

    async def serve(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await stop.wait()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0, limit=1024)
    port = server.sockets[0].getsockname()[1]
    with pytest.raises(ScanError, match="TimeoutError"):
        await Clamd(TcpAddress("127.0.0.1", port)).scan(cut(bytes(64 * MIB), MIB))
    stop.set()
    server.close()


async def test_content_that_cannot_be_read_is_no_failure_of_the_scanner(double):
    """What reading raises comes through, and the scanner gives no verdict on half of the content."""

    async def broken() -> AsyncIterator[bytes]:
        yield b"half"
        raise LookupError("away")

    with pytest.raises(LookupError, match="away"):
        await client(double).scan(broken())
    assert double.scanned == []
