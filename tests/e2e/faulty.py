"""A TCP proxy that cuts, stalls, slows and damages what passes, the same way each time.

It stands on 127.0.0.1 before a target and knows nothing of HTTP but how to spot request lines.
Each connection takes the next plan; when none is left, the default one. What a plan says is counted in
bytes of that connection, so a run repeats as long as the client does.

    async with FaultyProxy(("127.0.0.1", 8080), [Plan(cut_up=1000, ending=Ending.RST)]) as proxy:
        ...  # the first connection is reset after the client sent 1000 bytes, the others are left alone
        proxy.requests(rb"POST /files")
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import re
import socket
import struct
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Final, Self

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator
    from types import TracebackType

PIECE: Final = 64 * 1024
#: a request line holds a token of up to 4 KiB
LONGEST_LINE: Final = 8 * 1024
REQUEST_LINE: Final = re.compile(rb"(?:GET|HEAD|POST|PATCH|PUT|DELETE|OPTIONS) /[^ \r\n]* HTTP/1\.[01](?=\r\n)")
#: seconds in which both ends may answer a FIN before they are reset
LAST_WORDS: Final = 5.0


class Ending(StrEnum):
    """How a connection ends when its plan says so."""

    #: both ends see an orderly end of stream
    FIN = "fin"
    #: both ends see a reset
    RST = "rst"
    #: neither end hears anything again, and neither is told
    STALL = "stall"


@dataclass(frozen=True, slots=True)
class Plan:
    """What happens to one connection. None: nothing of that kind."""

    #: bytes from client to server, or from server to client, that still pass before the end
    cut_up: int | None = None
    cut_down: int | None = None
    ending: Ending = Ending.FIN
    #: seconds added before each piece, in each direction
    latency_seconds: float = 0.0
    #: bytes per second, in each direction
    rate: int | None = None
    #: index of a byte from client to server in which one bit is flipped
    flip: int | None = None
    #: reset right after it was accepted
    refuse: bool = False


def random_cuts(seed: int, count: int, size: int) -> list[Plan]:
    """`count` plans that cut uploads of `size` bytes anywhere, by each kind of ending; the same for a seed."""
    chance = random.Random(seed)
    # Some way into the head and past the last byte of the body: cuts of a request and of its answer.
    return [
        Plan(cut_up=chance.randrange(1, size + 1000), ending=chance.choice((Ending.FIN, Ending.RST)))
        for _ in range(count)
    ]


class FaultyProxy:
    """Listens on a port of its own while the context lasts."""

    def __init__(self, target: tuple[str, int], plans: Iterable[Plan] = (), *, default: Plan | None = None) -> None:
        self.target = target
        self.default = default or Plan()
        self._plans: Iterator[Plan] = iter(plans)
        self._server: asyncio.Server | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._request_lines: list[bytes] = []
        self._eat: list[re.Pattern[bytes]] = []
        self._answers: list[tuple[re.Pattern[bytes], bytes]] = []
        #: connections accepted, refused ones included
        self.connections = 0
        #: connections ended as planned
        self.cuts = 0
        #: bytes that passed, client to server and server to client
        self.bytes_up = 0
        self.bytes_down = 0
        #: set at the first stall
        self.stalled = asyncio.Event()

    def then(self, *plans: Plan) -> None:
        """The next connections take these plans, before what was planned already."""
        rest = self._plans
        self._plans = (plan for source in (plans, rest) for plan in source)

    def eat(self, pattern: bytes, times: int = 1) -> None:
        """The next responses that begin like pattern, on whatever connection, never come; it ends instead."""
        self._eat += [re.compile(pattern)] * times

    def answer(self, pattern: bytes, response: bytes, times: int = 1) -> None:
        """The next requests whose line begins like pattern get this response and never reach the server."""
        self._answers += [(re.compile(pattern), response)] * times

    def requests(self, pattern: bytes = b"") -> int:
        """How many request lines seen so far match pattern from their beginning."""
        return sum(1 for line in self._request_lines if re.match(pattern, line))

    @property
    def port(self) -> int:
        assert self._server is not None
        return int(self._server.sockets[0].getsockname()[1])

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._server is not None
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        self.connections += 1
        plan = next(self._plans, self.default)
        if plan.refuse:
            self.cuts += 1
            _reset(writer)
            return
        try:
            upstream = await asyncio.open_connection(*self.target)
        except OSError:
            _reset(writer)
            return
        try:
            await self._run(_Connection(plan, reader, writer, *upstream))
        except asyncio.CancelledError:
            # The proxy closes. Swallowed, since asyncio's own callback would log it as an error.
            pass
        finally:
            _reset(writer)
            _reset(upstream[1])

    async def _run(self, connection: _Connection) -> None:
        pumps = [asyncio.create_task(self._up(connection)), asyncio.create_task(self._down(connection))]
        try:
            for done in asyncio.as_completed(pumps):
                if await done:
                    break
            else:
                return
        finally:
            for pump in pumps:
                pump.cancel()
            await asyncio.gather(*pumps, return_exceptions=True)
        self.cuts += 1
        if connection.plan.ending is Ending.STALL:
            self.stalled.set()
            await asyncio.Event().wait()
        if connection.plan.ending is Ending.FIN:
            await connection.finish()

    async def _up(self, connection: _Connection) -> bool:
        """Client to server, until the end of stream (False) or as far as planned (True)."""
        plan, carry, passed = connection.plan, b"", 0
        while piece := await connection.read(connection.client_reader, _left(plan.cut_up, passed)):
            seen = len(self._request_lines)
            carry = self._look_for_requests(carry + piece)
            if response := self._own_answer(self._request_lines[seen:]):
                await connection.write(connection.client_writer, response)
                return True
            if plan.flip is not None and passed <= plan.flip < passed + len(piece):
                damaged = bytearray(piece)
                damaged[plan.flip - passed] ^= 1
                piece = bytes(damaged)
            passed += len(piece)
            self.bytes_up += len(piece)
            if not await connection.write(connection.server_writer, piece):
                return False
            if passed == plan.cut_up:
                return True
        return connection.end(connection.server_writer)

    async def _down(self, connection: _Connection) -> bool:
        """Server to client, until the end of stream (False) or as far as planned (True)."""
        plan, passed = connection.plan, 0
        while piece := await connection.read(connection.server_reader, _left(plan.cut_down, passed)):
            if eaten := next((pattern for pattern in self._eat if pattern.match(piece)), None):
                self._eat.remove(eaten)
                return True
            passed += len(piece)
            self.bytes_down += len(piece)
            if not await connection.write(connection.client_writer, piece):
                return False
            if passed == plan.cut_down:
                return True
        return connection.end(connection.client_writer)

    def _look_for_requests(self, seen: bytes) -> bytes:
        """Note the request lines in what was seen; what may be the beginning of the next one."""
        end = 0
        if b" HTTP/1." in seen:
            for match in REQUEST_LINE.finditer(seen):
                self._request_lines.append(match.group())
                end = match.end()
        return seen[max(end, len(seen) - LONGEST_LINE) :]

    def _own_answer(self, request_lines: list[bytes]) -> bytes | None:
        for rule in self._answers:
            if any(rule[0].match(line) for line in request_lines):
                self._answers.remove(rule)
                return rule[1]
        return None


@dataclass(frozen=True, slots=True)
class _Connection:
    """Both ends of one connection and what is to happen to it."""

    plan: Plan
    client_reader: asyncio.StreamReader
    client_writer: asyncio.StreamWriter
    server_reader: asyncio.StreamReader
    server_writer: asyncio.StreamWriter

    def __post_init__(self) -> None:
        # A drain then means that the kernel has everything, so that a reset does not take bytes
        # along that were to pass.
        for writer in (self.client_writer, self.server_writer):
            writer.transport.set_write_buffer_limits(0)

    async def read(self, reader: asyncio.StreamReader, left: int | None) -> bytes:
        limit = PIECE if self.plan.rate is None else max(1, min(PIECE, self.plan.rate // 10))
        if left is not None:
            limit = min(limit, left)
        try:
            piece = await reader.read(limit)
        except OSError:
            return b""
        if piece and self.plan.latency_seconds:
            await asyncio.sleep(self.plan.latency_seconds)
        if piece and self.plan.rate is not None:
            await asyncio.sleep(len(piece) / self.plan.rate)
        return piece

    async def write(self, writer: asyncio.StreamWriter, piece: bytes) -> bool:
        try:
            writer.write(piece)
            await writer.drain()
        except OSError:
            return False
        return True

    def end(self, writer: asyncio.StreamWriter) -> bool:
        with contextlib.suppress(OSError):
            writer.write_eof()
        return False

    async def finish(self) -> None:
        """Both ends have seen a FIN and, within bounds, sent theirs; what they still said is lost.

        Closing with unread bytes would send a reset, so the bytes are read.
        """
        self.end(self.client_writer)
        self.end(self.server_writer)
        with contextlib.suppress(OSError, TimeoutError):
            async with asyncio.timeout(LAST_WORDS):
                await asyncio.gather(_discard(self.client_reader), _discard(self.server_reader))


async def _discard(reader: asyncio.StreamReader) -> None:
    while await reader.read(PIECE):
        pass


def _left(limit: int | None, passed: int) -> int | None:
    return None if limit is None else limit - passed


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with a reset; where both ends have seen their FIN that is a plain close."""
    sock = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
