"""Request bodies: straight from the socket where that can be, through aiohttp's stream elsewhere.

`Bodies.open` decides: it returns a `receiving.Body`, whichever suits the request.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import Final

import structlog
from aiohttp import web

from service.clock import Clock
from service.metrics import Metrics, TransferOutcome
from service.protocol.intents import Ending, Framing
from service.protocol.problems import refuse
from service.web.access import access_of
from service.web.buffers import BufferPool
from service.web.connection import drain
from service.web.direct import DirectBody
from service.web.gathering import Gathering
from service.web.pace import PaceRules
from service.web.turns import broken, direct_of, saved_of, trailer_of

log = structlog.get_logger(__name__)

_OUTCOMES: Final[dict[Ending, TransferOutcome]] = {
    Ending.WHOLE: "ok",
    Ending.CUT: "client_abort",
    Ending.TIMEOUT: "timeout",
    Ending.TAKEN_OVER: "taken_over",
    Ending.DRAINED: "drained",
}


class StreamBody(Gathering):
    """A body read through aiohttp's parser: works for every framing.

    From the first read on a pump moves bytes out of aiohttp's reader the moment they are there. What
    the reader holds when the peer vanishes, which aiohttp throws away (A-09), is saved by the
    connection.
    """

    def __init__(
        self, request: web.Request, framing: Framing, pool: BufferPool, rules: PaceRules, clock: Clock
    ) -> None:
        super().__init__(request, framing, pool, rules, clock)
        self._pump: asyncio.Task[None] | None = None
        self._room = asyncio.Event()

    def trailer(self, name: str) -> str | None:
        return trailer_of(self._request, name)

    def _start(self) -> None:
        self._pump = asyncio.create_task(self._run())
        self._pump.add_done_callback(self._over)

    def _has_room(self) -> None:
        self._room.set()

    def _break_off(self) -> None:
        if self._pump is None:
            self._rescue(memoryview(b""))
        else:
            self._pump.cancel()

    async def _cease(self) -> None:
        if self._pump is not None and not self._pump.done():
            self._pump.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._pump

    def _over(self, _pump: asyncio.Task[None]) -> None:
        # a task that is cancelled before its first step never gets to its own handler
        if self._ending is None:
            self._rescue(memoryview(b""))

    async def _run(self) -> None:
        chunk = memoryview(b"")
        try:
            await self._send_continue()
            while data := await self._more_with_room():
                self._count(len(data))
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
        wanted = self._left() + arrived
        if not self._ready:
            self._filling = self._pool.take_now(wanted)
        if self._filling is None:
            self._holding_up = True
            await self._until_read()
            self._filling = await self._pool.take(wanted)
            self._go_on()

    def _rescue(self, chunk: memoryview) -> None:
        """Stopped: what aiohttp has buffered counts as arrived too (A-16)."""
        content = self._request.content
        late = saved_of(self._request) + drain(content)
        self.received += len(late)
        self._put(memoryview(bytes(chunk) + late))
        whole = content.is_eof() and not broken(self._request) and self._stopped is not Ending.CUT
        self._end(Ending.WHOLE if whole else self._stopped or Ending.CUT)


class EmptyBody:
    """The body of a request that has none."""

    received = 0
    ending = Ending.WHOLE
    over = True
    waited = False

    async def read(self) -> memoryview | None:
        return None

    def keep(self) -> None:
        return None

    async def whole(self) -> memoryview | None:
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
        self._open: set[Gathering] = set()
        self.draining = False
        #: downloads that are being sent
        self.downloads = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @contextlib.asynccontextmanager
    async def open(
        self, request: web.Request, framing: Framing, *, transfer: bool = True
    ) -> AsyncIterator[Gathering | EmptyBody]:
        """The request's body; reading has not begun, and `100 Continue` is not sent before it does.

        Args:
            transfer: whether its bytes are a file's; a few others need no room among the transfers, and are not
                measured as one.

        Raises:
            Refusal: draining, overloaded; both worth a retry.
        """
        if framing.empty:
            yield EmptyBody()
            return
        self.admit(crowded=transfer)
        body = self._made(request, framing)
        if transfer:
            body.on_start = partial(self._metrics.transfer_started, "in")
        began = self._clock.monotonic()
        self._open.add(body)
        failed, abandoned = True, False
        try:
            yield body
            failed = False
        except asyncio.CancelledError:
            # what the use-case drives goes on without us, perhaps with a thread in a buffer
            abandoned = True
            raise
        finally:
            self._open.discard(body)
            await body.close(abandoned=abandoned)
            if body.started and transfer:
                outcome = "error" if failed else _OUTCOMES[body.ending]
                self._metrics.transfer_ended("in", outcome, body.received, self._clock.monotonic() - began)
                if outcome not in {"ok", "client_abort"}:
                    # these two are seen by the status, and by who is still there to hear it
                    access_of(request).outcome = outcome

    def _made(self, request: web.Request, framing: Framing) -> Gathering:
        connection = direct_of(request)
        if connection is None:
            return StreamBody(request, framing, self._pool, self._rules, self._clock)
        return DirectBody(connection, request, framing, self._pool, self._rules, self._clock)

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

    def admit(self, *, crowded: bool = True) -> None:
        """Raises unless another transfer may begin (contract, section 5, rule 7; section 12).

        Args:
            crowded: also where there are too many.
        """
        if self.draining:
            raise refuse("draining", "the service is stopping; try again", retry_after=1, close=True)
        if crowded and (len(self._open) + self.downloads >= self._max_transfers or self._pool.exhausted):
            raise refuse("overloaded", "too many transfers; try again", retry_after=2, close=True)

    def drain(self) -> None:
        """Every running body ends with what it has; no new one begins (T-0D6)."""
        self.draining = True
        for body in tuple(self._open):
            body.stop(Ending.DRAINED)
