"""Request bodies: from aiohttp's stream into pooled buffers, eagerly.

From the first read on a pump moves bytes out of aiohttp's reader the moment they are there, and
storage consumes what the pump gathered: two buffers, one filling while the other is written. When
both are full the pump stops reading and the socket pauses. What the reader holds when the peer
vanishes, which aiohttp throws away (A-09), is saved by the connection. An early end of any kind is
an end of body, not an error: `read` first hands out all that arrived, then says None, and `ending`
tells how it was.

`Bodies.open` is the seam for another way to read: it returns a `receiving.Body`, whichever suits
the request.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from typing import Final

import structlog
from aiohttp import HttpVersion11, web

from service.clock import Clock
from service.metrics import Metrics, TransferOutcome
from service.protocol.intents import Ending, Framing
from service.protocol.problems import refuse
from service.web.buffers import BUFFER_BYTES, BufferPool
from service.web.connection import broken, drain, saved_of, trailer_of
from service.web.pace import Pace, PaceRules

log = structlog.get_logger(__name__)

#: how long a few bytes wait for more before they are handed on
_LINGER_SECONDS: Final = 0.05
_TICK_SECONDS: Final = 1.0
_OUTCOMES: Final[dict[Ending, TransferOutcome]] = {
    Ending.WHOLE: "ok",
    Ending.CUT: "client_abort",
    Ending.TIMEOUT: "timeout",
    Ending.TAKEN_OVER: "taken_over",
    Ending.DRAINED: "drained",
}
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


def _nothing() -> None:
    """Nobody wants to know."""


class StreamBody:
    """A body read through aiohttp's parser: works for every framing."""

    def __init__(
        self, request: web.Request, framing: Framing, pool: BufferPool, rules: PaceRules, clock: Clock
    ) -> None:
        self.received = 0
        self._request = request
        self._framing = framing
        self._pool = pool
        self._clock = clock
        self._pace = Pace(rules, clock.monotonic())
        #: whether we are not reading: no silence is the client's then
        self._holding_up = True
        self._tick_seconds = min(_TICK_SECONDS, rules.idle_seconds / 4)
        #: filled buffers, oldest first, with the bytes in each; and the one that is filling
        self._ready: deque[tuple[bytearray, int]] = deque()
        self._filling: bytearray | None = None
        self._fill = 0
        self._lent: bytearray | None = None
        #: what arrived beyond the buffers when the body was stopped
        self._rest = b""
        self._ending: Ending | None = None
        self._stopped: Ending | None = None
        self._pump: asyncio.Task[None] | None = None
        #: called when the first byte is asked for
        self.on_start: Callable[[], None] = _nothing
        self._ticker: asyncio.TimerHandle | None = None
        self._wanted = asyncio.Event()
        self._room = asyncio.Event()

    # --- for the use-cases ------------------------------------------------------------------

    async def read(self) -> memoryview | None:
        self._give_back()
        if self._pump is None and self._ending is None:
            self._start()
        while not self._ready:
            if self._ending is not None:
                return self._last()
            self._wanted.clear()
            if self._fill:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(_LINGER_SECONDS):
                        await self._wanted.wait()
                if not self._ready:
                    self._turn_over()
            else:
                await self._wanted.wait()
        self._lent, size = self._ready.popleft()
        self._room.set()
        return memoryview(self._lent)[:size]

    @property
    def ending(self) -> Ending:
        return self._ending or self._stopped or Ending.WHOLE

    def stop(self, ending: Ending) -> None:
        if self._stopped is None and self._ending is None:
            self._stopped = ending
            if self._pump is None:
                self._rescue(memoryview(b""))
            else:
                self._pump.cancel()

    def silent_seconds(self) -> float:
        return 0.0 if self._holding_up else self._pace.silent_seconds(self._clock.monotonic())

    def trailer(self, name: str) -> str | None:
        return trailer_of(self._request, name)

    # --- for the web layer ------------------------------------------------------------------

    async def close(self) -> None:
        """Gives back what is held; nothing is read any more."""
        if self._ticker is not None:
            self._ticker.cancel()
        if self._pump is not None and not self._pump.done():
            self._stopped = self._stopped or Ending.CUT
            self._pump.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._pump
        self._give_back()
        for buffer, _ in self._ready:
            self._pool.give(buffer)
        self._ready.clear()
        if self._filling is not None:
            self._pool.give(self._filling)
            self._filling = None

    # --- the pump ---------------------------------------------------------------------------

    @property
    def started(self) -> bool:
        """Whether anybody asked for a byte: a refused request's body is no transfer."""
        return self._pump is not None

    def _start(self) -> None:
        self.on_start()
        self._go_on()
        self._pump = asyncio.create_task(self._run())
        self._pump.add_done_callback(self._over)
        self._schedule()

    def _over(self, _pump: asyncio.Task[None]) -> None:
        # a task that is cancelled before its first step never gets to its own handler
        if self._ending is None:
            self._rescue(memoryview(b""))

    def _schedule(self) -> None:
        self._ticker = asyncio.get_running_loop().call_later(self._tick_seconds, self._tick)

    def _tick(self) -> None:
        if self._ending is None:
            if not self._holding_up and self._pace.too_slow(self._clock.monotonic()):
                self.stop(Ending.TIMEOUT)
            else:
                self._schedule()

    async def _run(self) -> None:
        chunk = memoryview(b"")
        try:
            await self._send_continue()
            while data := await self._more_with_room():
                self.received += len(data)
                self._pace.progress(self.received, self._clock.monotonic())
                chunk = memoryview(data)
                while chunk:
                    if self._filling is None:
                        await self._take_buffer(len(chunk))
                    chunk = chunk[self._copy(chunk) :]
            self._end(Ending.CUT if broken(self._request) else Ending.WHOLE)
        except asyncio.CancelledError:
            self._rescue(chunk)
        except Exception as error:  # noqa: BLE001 - aiohttp has many names for a body that broke off (A-08)
            log.debug("body_cut", error=repr(error))
            self._end(Ending.CUT)

    async def _more_with_room(self) -> bytes:
        """The next bytes, once there is room for them: until then they stay with aiohttp, which stops the client."""
        if self._ready and self._filling is None:
            self._holding_up = True
            await self._until_read()
            self._go_on()
        return await self._more()

    async def _until_read(self) -> None:
        while self._ready:
            self._room.clear()
            await self._room.wait()

    async def _more(self) -> bytes:
        """The next bytes; empty at the end of a whole body. Raises if it broke off (A-08)."""
        content = self._request.content
        data = saved_of(self._request)
        if not data and not content.at_eof():
            try:
                data = await content.readany()
            except Exception:
                data = saved_of(self._request)
                if not data and not content.is_eof():
                    raise
        return data

    async def _take_buffer(self, arrived: int) -> None:
        """Waits for room: one buffer ready, one filling. Meanwhile the socket pauses by itself."""
        length = self._framing.length
        wanted = BUFFER_BYTES if length is None else length - self.received + arrived
        if not self._ready:
            self._filling = self._pool.take_now(wanted)
        if self._filling is None:
            self._holding_up = True
            await self._until_read()
            self._filling = await self._pool.take(wanted)
            self._go_on()

    def _go_on(self) -> None:
        """We read again: from now on silence is the client's."""
        self._holding_up = False
        self._pace.paused(self._clock.monotonic())

    def _copy(self, chunk: memoryview) -> int:
        """As much of chunk as fits; a full buffer is ready."""
        buffer = self._filling
        if buffer is None:
            return 0
        size = min(len(chunk), len(buffer) - self._fill)
        buffer[self._fill : self._fill + size] = chunk[:size]
        self._fill += size
        if self._fill == len(buffer):
            self._turn_over()
        else:
            self._wanted.set()
        return size

    def _turn_over(self) -> None:
        if self._filling is not None and self._fill:
            self._ready.append((self._filling, self._fill))
            self._filling, self._fill = None, 0
            self._wanted.set()

    def _rescue(self, chunk: memoryview) -> None:
        """Stopped: what aiohttp has buffered counts as arrived too (A-16)."""
        content = self._request.content
        late = saved_of(self._request) + drain(content)
        self.received += len(late)
        self._rest = bytes(chunk) + late
        whole = content.is_eof() and not broken(self._request) and self._stopped is not Ending.CUT
        self._end(Ending.WHOLE if whole else self._stopped or Ending.CUT)

    def _end(self, ending: Ending) -> None:
        self._turn_over()
        self._ending = ending
        self._wanted.set()

    def _last(self) -> memoryview | None:
        rest, self._rest = self._rest, b""
        return memoryview(rest) if rest else None

    def _give_back(self) -> None:
        if self._lent is not None:
            self._pool.give(self._lent)
            self._lent = None

    async def _send_continue(self) -> None:
        """The one 1xx that clients of an upload wait for; aiohttp's own comes before any check (A-03, A-13)."""
        request = self._request
        if request.headers.get("Expect", "").lower() == "100-continue" and request.version >= HttpVersion11:
            writer = request.writer
            # a client that has gone may have sent the body all the same
            with contextlib.suppress(ConnectionError):
                await writer.write(_CONTINUE)
            # else an exception later on would close the connection without a response (A-13b)
            writer.output_size = 0


class EmptyBody:
    """The body of a request that has none."""

    received = 0
    ending = Ending.WHOLE

    async def read(self) -> memoryview | None:
        return None

    def stop(self, ending: Ending) -> None:
        """Nothing to stop: it has ended."""

    def silent_seconds(self) -> float:
        return 0.0

    def trailer(self, name: str) -> str | None:
        return None


class Bodies:
    """All open bodies of a process: admission, the pool, and the stop at the end."""

    def __init__(self, pool: BufferPool, rules: PaceRules, max_transfers: int, clock: Clock, metrics: Metrics) -> None:
        self._pool = pool
        self._rules = rules
        self._max_transfers = max_transfers
        self._clock = clock
        self._metrics = metrics
        self._open: set[StreamBody] = set()
        self.draining = False
        #: downloads that are being sent
        self.downloads = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @contextlib.asynccontextmanager
    async def open(self, request: web.Request, framing: Framing) -> AsyncIterator[StreamBody | EmptyBody]:
        """The request's body; reading has not begun, and `100 Continue` is not sent before it does.

        Raises:
            Refusal: draining, overloaded; both worth a retry.
        """
        if framing.empty:
            yield EmptyBody()
            return
        self.admit()
        body = StreamBody(request, framing, self._pool, self._rules, self._clock)
        body.on_start = partial(self._metrics.transfer_started, "in")
        began = self._clock.monotonic()
        self._open.add(body)
        failed = True
        try:
            yield body
            failed = False
        finally:
            self._open.discard(body)
            await body.close()
            if body.started:
                outcome = "error" if failed else _OUTCOMES[body.ending]
                self._metrics.transfer_ended("in", outcome, body.received, self._clock.monotonic() - began)

    @contextlib.contextmanager
    def sending(self) -> Iterator[None]:
        """A download counts against the same limit, but is not cut off by a drain.

        Raises:
            Refusal: draining, overloaded; both worth a retry.
        """
        self.admit()
        self.downloads += 1
        self._idle.clear()
        try:
            yield
        finally:
            self.downloads -= 1
            if not self.downloads:
                self._idle.set()

    async def idle(self) -> None:
        """Returns once no download is being sent."""
        await self._idle.wait()

    def admit(self) -> None:
        """Raises unless another transfer may begin (contract, section 5, rule 7; section 12)."""
        if self.draining:
            raise refuse("draining", "the service is stopping; try again", retry_after=1, close=True)
        if len(self._open) + self.downloads >= self._max_transfers or self._pool.exhausted:
            raise refuse("overloaded", "too many transfers; try again", retry_after=2, close=True)

    def drain(self) -> None:
        """Every running body ends with what it has; no new one begins (T-0D6)."""
        self.draining = True
        for body in tuple(self._open):
            body.stop(Ending.DRAINED)
