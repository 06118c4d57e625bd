"""A body that goes from the socket into pooled buffers, with no parser and no copy in between."""

from __future__ import annotations

import asyncio
import contextlib

from aiohttp import web

from service.clock import Clock
from service.protocol.intents import Ending, Framing
from service.web.buffers import BufferPool
from service.web.connection import Connection
from service.web.gathering import Gathering
from service.web.pace import PaceRules


class DirectBody(Gathering):
    """A body of known length that the connection's socket is read into; see `connection.Sink`.

    Before its first read, what comes waits with the connection, which soon pauses its socket.
    """

    def __init__(
        self,
        connection: Connection,
        request: web.Request,
        framing: Framing,
        pool: BufferPool,
        rules: PaceRules,
        clock: Clock,
    ) -> None:
        super().__init__(request, framing, pool, rules, clock)
        self._connection = connection
        #: says `100 Continue`, or waits for a buffer
        self._task: asyncio.Task[None] | None = None

    def trailer(self, name: str) -> str | None:
        """None: only a chunked body has trailers."""
        return None

    # --- for the connection -----------------------------------------------------------------

    def space(self, most: int) -> memoryview | None:
        if self._filling is None:
            # only now: if its reader has written the last one meanwhile, it is still in the processor's cache
            self._filling = self._pool.take_now(self._left())
        return memoryview(self._filling)[self._fill : self._fill + most] if self._filling is not None else None

    def filled(self, count: int) -> None:
        self._count(count)
        self._filled(count)
        if self._filling is None and self._left():
            self._hold_up()

    def take(self, data: bytes) -> None:
        self._count(len(data))
        starved = False
        if self._filling is None and not self._ready and self._left():
            self._filling = self._pool.take_now(self._left() + len(data))
            starved = self._filling is None
        chunk = memoryview(data)
        self._put(chunk[self._copy(chunk) :])
        if self._filling is None and self._left():
            self._hold_up()
            if starved and self._task is None:
                self._task = asyncio.create_task(self._wait_for_room())

    def end(self, *, whole: bool) -> None:
        self._end(Ending.WHOLE if whole else self._stopped or Ending.CUT)

    # --- for the reader ---------------------------------------------------------------------

    def _start(self) -> None:
        if "Expect" in self._request.headers:
            self._task = asyncio.create_task(self._invite())
        else:
            self._take_up()

    async def _invite(self) -> None:
        await self._send_continue()
        self._task = None
        self._take_up()

    def _take_up(self) -> None:
        if self._ending is None:
            self._connection.attach(self)
            self._has_room()

    def _has_room(self) -> None:
        """The reader has what there is: while it writes that, the next buffer fills."""
        if self._ending is None and not self._ready and self._task is None:
            if self._holding_up:
                self._go_on()
            self._connection.resume()

    def _hold_up(self) -> None:
        self._holding_up = True
        self._connection.pause()

    async def _wait_for_room(self) -> None:
        buffer = await self._pool.take(self._left())
        self._task = None
        if self._ending is None and self._filling is None:
            self._filling = buffer
        else:
            self._pool.give(buffer)
        self._has_room()

    def _break_off(self) -> None:
        self._connection.attach(self)
        self._connection.detach()
        if self._ending is None:
            self.end(whole=False)

    async def _cease(self) -> None:
        self._connection.detach()
        if self._task is not None:
            self._task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._task
