"""A body's bytes in pooled buffers: one that fills while another is written, whichever way they come.

An early end of any kind is an end of body, not an error: `read` first hands out all that arrived,
then says None, and `ending` tells how it was. While both buffers are full nothing is read and the
socket pauses; that is our delay and not the client's silence.
"""

from __future__ import annotations

import asyncio
import contextlib
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable
from typing import Final

from aiohttp import HttpVersion11, web

from service.clock import Clock
from service.protocol.intents import Ending, Framing
from service.web.buffers import BUFFER_BYTES, Buffer, BufferPool
from service.web.pace import Pace, PaceRules

#: how long a few bytes wait for more before they are handed on
_LINGER_SECONDS: Final = 0.05
_TICK_SECONDS: Final = 1.0
#: how long a small body may take to be there as a whole
_MOMENT_SECONDS: Final = 0.1
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"


def _nothing() -> None:
    """Nobody wants to know."""


class Gathering(ABC):
    """A request's body, as `receiving.Body` wants it."""

    def __init__(
        self, request: web.Request, framing: Framing, pool: BufferPool, rules: PaceRules, clock: Clock
    ) -> None:
        self.received = 0
        #: whether anybody asked for a byte: a refused request's body is no transfer
        self.started = False
        self.waited = False
        #: called when the first byte is asked for
        self.on_start: Callable[[], None] = _nothing
        self._request = request
        self._framing = framing
        self._pool = pool
        self._clock = clock
        self._pace = Pace(rules, clock.monotonic())
        #: whether we are not reading: no silence is the client's then
        self._holding_up = True
        self._tick_seconds = min(_TICK_SECONDS, rules.idle_seconds / 4)
        #: bytes to hand out, oldest first, each with the pool's buffer that they are in, if they are in one
        self._ready: deque[tuple[memoryview, Buffer | None]] = deque()
        self._filling: Buffer | None = None
        self._fill = 0
        self._lent: Buffer | None = None
        #: whether the bytes that were handed out last fill the buffer they are in
        self._lent_full = False
        #: the timer that hands on a part of a buffer, the buffer that it is for, and whether that is due
        self._linger: asyncio.TimerHandle | None = None
        self._lingering: Buffer | None = None
        self._overdue = False
        self._ending: Ending | None = None
        self._stopped: Ending | None = None
        self._ticker: asyncio.TimerHandle | None = None
        self._wanted = asyncio.Event()

    # --- for the use-cases ------------------------------------------------------------------

    async def read(self) -> memoryview | None:
        self._give_back()
        self._begin()
        if self._overdue and not self._ready:
            self._turn_over()
        while not self._ready:
            if self._ending is not None:
                return None
            self._wanted.clear()
            await self._wanted.wait()
        view, self._lent = self._ready.popleft()
        self._lent_full = self._lent is not None and len(view) == len(self._lent) == BUFFER_BYTES
        self._has_room()
        return view

    def keep(self) -> Callable[[], None] | None:
        # what is held counts by its bytes, so none of the room that goes with them may be empty
        if self._lent is None or not self._lent_full:
            return None
        buffer, self._lent = self._lent, None
        return self._pool.part_with(buffer)

    @property
    def over(self) -> bool:
        return self._ending is not None and not self._ready

    async def whole(self) -> memoryview | None:
        if "Expect" in self._request.headers:
            # who asks before it sends is to be told what can be told before
            return None
        self._begin()
        if self._ending is None and not self._holding_up:
            lapse = asyncio.get_running_loop().call_later(_MOMENT_SECONDS, self._wanted.set)
            self._wanted.clear()
            await self._wanted.wait()
            lapse.cancel()
            self.waited = self._ending is not Ending.WHOLE
        return self._ready[0][0] if self._ending is Ending.WHOLE and len(self._ready) == 1 else None

    def _begin(self) -> None:
        """The first to ask for a byte begins the transfer."""
        if self.started or self._ending is not None:
            return
        self.started = True
        self.on_start()
        self._go_on()
        self._schedule()
        self._start()

    @property
    def ending(self) -> Ending:
        return self._ending or self._stopped or Ending.WHOLE

    def stop(self, ending: Ending) -> None:
        if self._stopped is None and self._ending is None:
            self._stopped = ending
            self._break_off()

    def silent_seconds(self) -> float:
        return 0.0 if self._holding_up else self._pace.silent_seconds(self._clock.monotonic())

    @abstractmethod
    def trailer(self, name: str) -> str | None: ...

    # --- for the web layer ------------------------------------------------------------------

    async def close(self, *, abandoned: bool = False) -> None:
        """Gives back what is held; nothing is read any more.

        Args:
            abandoned: whoever read it may be at it still; so nobody else gets its buffers.
        """
        give = self._pool.part_with if abandoned else self._pool.give
        for timer in (self._ticker, self._linger):
            if timer is not None:
                timer.cancel()
        self._stopped = self._stopped or Ending.CUT
        await self._cease()
        held = [self._lent, self._filling, *(buffer for _, buffer in self._ready)]
        self._ready.clear()
        self._lent = self._filling = None
        for buffer in held:
            if buffer is not None:
                give(buffer)

    # --- how bytes come ---------------------------------------------------------------------

    @abstractmethod
    def _start(self) -> None:
        """The first read: bytes may come."""

    @abstractmethod
    def _has_room(self) -> None:
        """The reader has taken a buffer."""

    @abstractmethod
    def _break_off(self) -> None:
        """The body was stopped: what has arrived is put behind the rest, and it ends."""

    @abstractmethod
    async def _cease(self) -> None:
        """Nothing touches the buffers any more."""

    # --- what they have in common -----------------------------------------------------------

    def _schedule(self) -> None:
        self._ticker = asyncio.get_running_loop().call_later(self._tick_seconds, self._tick)

    def _tick(self) -> None:
        if self._ending is None:
            if not self._holding_up and self._pace.too_slow(self._clock.monotonic()):
                self.stop(Ending.TIMEOUT)
            else:
                self._schedule()

    def _count(self, size: int) -> None:
        self.received += size
        self._pace.progress(self.received, self._clock.monotonic())

    def _left(self) -> int:
        """So many bytes may still come."""
        length = self._framing.length
        return BUFFER_BYTES if length is None else length - self.received

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
        self._filled(size)
        return size

    def _filled(self, size: int) -> None:
        self._fill += size
        if self._filling is not None and self._fill == len(self._filling):
            self._turn_over()
        elif self._linger is None:
            self._lingering = self._filling
            self._linger = asyncio.get_running_loop().call_later(_LINGER_SECONDS, self._hand_on)

    def _hand_on(self) -> None:
        """A buffer that fills slowly goes to the reader as it is, or will when that comes back."""
        self._linger = None
        if not self._fill:
            return
        if self._filling is not self._lingering:
            self._filled(0)
        elif self._lent is None:
            self._turn_over()
            self._has_room()
        else:
            self._overdue = True

    def _turn_over(self) -> None:
        if self._filling is not None and self._fill:
            self._ready.append((memoryview(self._filling)[: self._fill], self._filling))
            self._filling, self._fill, self._overdue = None, 0, False
            self._wanted.set()

    def _put(self, view: memoryview) -> None:
        """Bytes that are in no buffer of the pool, behind those that are."""
        if view:
            self._turn_over()
            self._ready.append((view, None))
            self._wanted.set()

    def _end(self, ending: Ending) -> None:
        self._turn_over()
        self._ending = ending
        self._wanted.set()

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
