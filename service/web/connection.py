"""The protocol object of a connection: aiohttp's own, with an eye on the raw bytes.

It owns the transport and passes the bytes on, one request at a time: a head, and once a handler
has begun the request, its body; what comes behind waits here with the socket paused. So a head is
bounded as a whole and in time (aiohttp bounds its fields one by one), and pipelined requests cost
nothing before their turn.

A body whose length the head leaves no doubt about (`heads`) is not passed on: once its handler
asks for it, it goes from the socket straight into the memory of a `Sink`. To aiohttp that request
is one with an open end, which it hears of when the body is whole; so all it does about a body that
is not read to its end stays right.

It is also the place for whatever aiohttp has no API for: the trailer section of a chunked body,
which aiohttp parses and drops (A-01); not reading the rest of a refused body, which aiohttp would
do as fast as it comes (A-12, lesson A3); the bytes that aiohttp has buffered and throws away when
the peer vanishes (A-09); the answer to a client that has finished sending and says so (A-08), be it
in the middle of a body; and an end for a client that never reads its answer, for which aiohttp, and
a transport that is closed, would wait for ever.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from enum import Enum, auto
from typing import Final, cast

from aiohttp import StreamReader, web

from service.web import heads
from service.web.crowd import Crowd, everybody
from service.web.deadlines import Deadlines
from service.web.sink import Scratch, Sink
from service.web.trailers import Tail
from service.web.unsent import unsent

#: bytes of a request's head as a whole: a field and a request line of 64 KiB each fit (A-04, T-0CE)
HEAD_BYTES: Final = 256 * 1024
#: what is still read of a refused body: a small one ends, so that its connection closes at once
REFUSED_BYTES: Final = 128 * 1024
#: bytes that wait for their turn before the socket pauses; a small body behind its head never does
HELD_BYTES: Final = 64 * 1024
_HEAD_END: Final = b"\r\n\r\n"
#: ends the body of a request that `heads.direct` made
_LAST_CHUNK: Final = b"0\r\n\r\n"
#: whether bodies are received without a parser where that can be; tests look at the other way too
DIRECT = True
_SCRATCH: Final = Scratch()


class _Turn(Enum):
    """Whose bytes come now."""

    #: of a head, or nothing yet
    HEAD = auto()
    #: a head is complete and its handler has not begun
    WAIT = auto()
    #: of the body that is handled
    BODY = auto()
    #: that body is whole
    WHOLE = auto()


class Connection(asyncio.BufferedProtocol):
    """Stands before an aiohttp connection handler made by the public `AppRunner.server`."""

    def __init__(
        self, inner: asyncio.Protocol, now: Callable[[], float] = time.monotonic, crowd: Crowd | None = None
    ) -> None:
        self._inner = inner
        self._crowd = everybody() if crowd is None else crowd
        self._transport: asyncio.Transport | None = None
        self._turn = _Turn.HEAD
        #: of the head that is coming
        self._head_bytes = 0
        self._head_seam = b""
        #: all of it so far, while it may be one with a direct body; None: it has been passed on
        self._head: bytearray | None = None
        self._deadlines = Deadlines(now, self._unsent, self._abort)
        #: of the request that is handled: its body, and how many bytes of it are to come, None if chunked
        self._content: StreamReader | None = None
        self._body_left: int | None = None
        self._body_idle_bytes = 0
        self._tail = Tail()
        #: how long its body is if that is a direct one, what came of it without a sink, and where it goes
        self._direct: int | None = None
        self._early = bytearray()
        self._sink: Sink | None = None
        #: where the sink wants what is being received
        self._space: memoryview | None = None
        #: came before its turn
        self._held = bytearray()
        self._paused = False
        #: what of the body aiohttp had buffered when the peer went away
        self._saved = b""
        self._half_closed = False
        #: whether the peer ended its side in the middle of a body
        self._broken = False
        #: bytes of a refused body that are still passed on
        self._left: int | None = None

    # --- for the loop -----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's are none by class
        self._transport = cast(asyncio.Transport, transport)
        self._inner.connection_made(transport)
        self._deadlines.expect_head()
        self._crowd.enter(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._crowd.leave(self)
        self._deadlines.close()
        self._save()
        self._inner.connection_lost(exc)
        self._transport = None
        self._end_sink(whole=False)

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()

    def eof_received(self) -> bool | None:
        """A client that has sent a request's head may still hear the answer; any other is gone (A-08)."""
        self._half_closed = True
        if self._turn is _Turn.HEAD:
            return self._inner.eof_received()
        if self._turn is _Turn.BODY:
            self._break_off()
        return True

    def get_buffer(self, sizehint: int) -> memoryview:
        self._space = None
        if self._turn is not _Turn.BODY:
            return _SCRATCH.small
        if self._sink is None or self._body_left is None:
            return _SCRATCH.large
        # never more than the body: what is behind it needs no copy back
        self._space = self._sink.space(self._body_left)
        return _SCRATCH.small if self._space is None else self._space

    def buffer_updated(self, nbytes: int) -> None:
        if self._space is None or self._sink is None or self._body_left is None:
            self.receive(bytes(_SCRATCH.large[:nbytes]))
            return
        self._space = None
        self._body_left -= nbytes
        self._sink.filled(nbytes)
        if not self._body_left:
            self._be_whole()

    def receive(self, data: bytes) -> None:
        """Takes bytes from the socket that are not for a sink."""
        if self._left is not None and not self._take_refused(len(data)):
            return
        if self._turn is _Turn.HEAD:
            self._take_head(data)
        elif self._turn is _Turn.BODY:
            self._take_body(data)
        else:
            self._hold(data)

    @property
    def half_closed(self) -> bool:
        """Whether the peer sends nothing more."""
        return self._half_closed

    @property
    def broken(self) -> bool:
        """Whether it stopped in the middle of the body that is handled."""
        return self._broken

    def drop(self) -> None:
        """See `crowd.Member`."""
        self._abort()

    # --- one request at a time --------------------------------------------------------------

    def begin(self, request: web.BaseRequest) -> None:
        """The request's handler begins: its body is passed on."""
        self._content = request.content
        self._body_left = request.content_length if self._direct is None else self._direct
        self._body_idle_bytes = 0
        self._tail = Tail()
        self._deadlines.begin()
        self._turn = _Turn.WHOLE if self._content.is_eof() else _Turn.BODY
        if self._turn is _Turn.BODY and self._held:
            self._take_body(self._take_held())
        if self._turn is _Turn.BODY:
            if len(self._early) <= HELD_BYTES:
                self.resume()
            if self._half_closed:
                self._break_off()

    def _break_off(self) -> None:
        """No more of the body comes, and the client waits for what is said of that."""
        # aiohttp may have put off some of what came, and takes no bytes behind an end
        self._save()
        if self._content is not None and not self._content.is_eof():
            self._broken = True
            self._content.feed_eof()
        self._turn = _Turn.WHOLE
        self._end_sink(whole=False)

    def end(self) -> bool:
        """The handler has its answer. Whether another request may come on this connection."""
        self._deadlines.end()
        if self._content is None or not self._content.is_eof():
            return False
        self._content, self._saved, self._direct = None, b"", None
        self._early.clear()
        if self._body_left is None and self._tail.seen and self._tail.trailers() is None:
            # bytes of a next request went along with the chunked body: where it begins is not known
            return False
        self._turn, self._head_bytes, self._head_seam = _Turn.HEAD, 0, b""
        self._crowd.wait(self)
        if self._held:
            self._take_head(self._take_held())
        if self._turn is _Turn.HEAD:
            self.resume()
        return self._turn is not _Turn.HEAD or not self._half_closed

    def _take_head(self, data: bytes) -> None:
        if not self._head_bytes:
            # empty lines before a request line are skipped, as aiohttp does (RFC 9112 2.2)
            data = data.lstrip(b"\r\n")
            if not data:
                self._deadlines.expect_head()
                return
            self._head = bytearray() if DIRECT and heads.may_be_direct(data) else None
        seen = self._head_seam + data
        at = seen.find(_HEAD_END)
        end = len(data) if at < 0 else at + len(_HEAD_END) - len(self._head_seam)
        self._head_bytes += end
        if self._head_bytes > HEAD_BYTES:
            self._abort()
            return
        self._head_seam = seen[1 - len(_HEAD_END) :]
        self._deadlines.expect_head()
        if at >= 0:
            self._turn = _Turn.WAIT
            self._crowd.work(self)
            self._hold(data[end:])
        else:
            self._crowd.begin_head(self, self._head_bytes)
        self._pass_head(data[:end], whole=at >= 0)

    def _pass_head(self, data: bytes, *, whole: bool) -> None:
        """Bytes of a head go to aiohttp, those of one that may have a direct body once they are all there."""
        if self._head is not None:
            self._head += data
            if not whole and len(self._head) <= heads.MOST_BYTES:
                return
            data, self._head = bytes(self._head), None
            made = heads.direct(data) if whole else None
            if made is not None:
                data, self._direct = made
        self._inner.data_received(data)

    def _take_body(self, data: bytes) -> None:
        content = self._content
        if content is None or content.is_eof():
            self._turn = _Turn.WHOLE
            self._hold(data)
        elif self._body_left is not None:
            mine = data if len(data) <= self._body_left else data[: self._body_left]
            self._body_left -= len(mine)
            if not self._body_left:
                self._turn = _Turn.WHOLE
                self._hold(data[len(mine) :])
            if self._direct is None:
                self._inner.data_received(mine)
            else:
                self._take_direct(mine)
        else:
            self._take_chunked(data, content)

    def _take_direct(self, data: bytes) -> None:
        """Keeps what has no sink yet; what has been refused is only counted."""
        if self._sink is not None:
            self._sink.take(data)
        elif self._left is None:
            self._early += data
            if len(self._early) > HELD_BYTES:
                self.pause()
        if not self._body_left:
            self._be_whole()

    def _be_whole(self) -> None:
        """The direct body has come to its end."""
        self._turn = _Turn.WHOLE
        self._inner.data_received(_LAST_CHUNK)
        self._end_sink(whole=True)

    def _take_chunked(self, data: bytes, content: StreamReader) -> None:
        """Where a chunked body ends only aiohttp knows."""
        before = content.total_bytes
        self._tail.add(data)
        self._inner.data_received(data)
        if content.is_eof():
            self._turn = _Turn.WHOLE
        elif content.total_bytes != before:
            self._body_idle_bytes = 0
        else:
            # extensions and trailers are bounded like a head
            self._body_idle_bytes += len(data)
            if self._body_idle_bytes > HEAD_BYTES:
                self._abort()

    def _hold(self, data: bytes) -> None:
        """Keeps bytes whose turn has not come. aiohttp may resume the socket: it is paused each time."""
        self._held += data
        if len(self._held) > HELD_BYTES:
            self.pause()

    def _take_held(self) -> bytes:
        held = bytes(self._held)
        self._held.clear()
        return held

    def pause(self) -> None:
        """Nothing more is read until `resume`."""
        if self._transport is not None:
            self._paused = True
            self._transport.pause_reading()

    def resume(self) -> None:
        """Reading goes on."""
        if self._paused and self._transport is not None and not self._transport.is_closing():
            self._paused = False
            self._transport.resume_reading()

    def _abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()

    def _unsent(self) -> int:
        return 0 if self._transport is None else unsent(self._transport)

    # --- a direct body ----------------------------------------------------------------------

    @property
    def direct(self) -> int | None:
        """How many bytes the body that is handled has, if it is for a sink and not for aiohttp."""
        return self._direct

    def attach(self, sink: Sink) -> None:
        """The direct body goes there from now on; first what of it has come."""
        early = bytes(self._early)
        self._early.clear()
        if early:
            sink.take(early)
        self._sink = sink
        if self._turn is not _Turn.BODY or self._transport is None:
            self._end_sink(whole=not self._body_left)

    def detach(self) -> None:
        """It goes nowhere."""
        self._sink = None

    def _end_sink(self, *, whole: bool) -> None:
        sink, self._sink = self._sink, None
        if sink is not None:
            sink.end(whole=whole)

    # --- what aiohttp has no API for --------------------------------------------------------

    def _save(self) -> None:
        """Takes over what aiohttp holds of the body: it raises instead of handing it out once it knows (A-09)."""
        if self._content is not None and self._turn in (_Turn.BODY, _Turn.WHOLE):
            self._saved += drain(self._content)

    def saved(self) -> bytes:
        """What of the body had been received and not been read when the peer went away; once."""
        saved, self._saved = self._saved, b""
        return saved

    def refuse_rest(self) -> None:
        """The rest of the request's body is not read; the client has aiohttp's lingering time to see its answer."""
        self._left = REFUSED_BYTES
        if self._direct is not None:
            self._early.clear()
            self.resume()

    def _take_refused(self, size: int) -> bool:
        """Whether these bytes of a refused body are passed on. What is not cannot make aiohttp go on reading."""
        self._left = (self._left or 0) - size
        if self._left >= 0:
            return True
        if self._transport is not None:
            self._transport.pause_reading()
        return False

    def trailers(self) -> dict[str, str]:
        """The trailer fields behind the chunked body that is handled, names in lower case."""
        return self._tail.trailers() or {}


def drain(content: StreamReader) -> bytes:
    """All that aiohttp holds of a body, also what its parser had put off."""
    pieces: list[bytes] = []
    # raises while a read waits, which means that there is nothing, and once the client has gone
    with contextlib.suppress(Exception):
        while piece := content.read_nowait(-1):
            pieces.append(piece)
    return b"".join(pieces)
