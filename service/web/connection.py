"""The protocol object of a connection: aiohttp's own, with an eye on the raw bytes.

It owns the transport and passes everything on. It is found from a request by the public
`request.transport.get_protocol()`, and is the place for whatever aiohttp has no API for: the
trailer section of a chunked body, which aiohttp parses and drops (A-01), and not reading the rest
of a refused body, which aiohttp would do as fast as it comes (A-12, lesson A3).
"""

from __future__ import annotations

import asyncio
import re
from typing import Final, cast

from aiohttp import web

#: raw bytes kept for the trailer section
TAIL_BYTES: Final = 16 * 1024
#: what is still read of a refused body: a small one ends, so that its connection closes at once
REFUSED_BYTES: Final = 128 * 1024
_LAST_CHUNK: Final = re.compile(rb"0+[ \t]*(;[^\r\n]*)?")


class Connection(asyncio.Protocol):
    """Stands before an aiohttp connection handler made by the public `AppRunner.server`."""

    def __init__(self, inner: asyncio.Protocol) -> None:
        self._inner = inner
        #: the last bytes received, at least TAIL_BYTES of them if there were so many
        self._tail: list[bytes] = []
        self._tail_bytes = 0
        self._transport: asyncio.Transport | None = None
        #: bytes of a refused body that are still passed on
        self._left: int | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's are none by class
        self._transport = cast(asyncio.Transport, transport)
        self._inner.connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._inner.connection_lost(exc)

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()

    def eof_received(self) -> bool | None:
        return self._inner.eof_received()

    def data_received(self, data: bytes) -> None:
        if self._left is not None and not self._take_refused(len(data)):
            return
        if len(data) >= TAIL_BYTES:
            self._tail, self._tail_bytes = [data[-TAIL_BYTES:]], TAIL_BYTES
        else:
            self._tail.append(data)
            self._tail_bytes += len(data)
            while self._tail_bytes - len(self._tail[0]) >= TAIL_BYTES:
                self._tail_bytes -= len(self._tail.pop(0))
        self._inner.data_received(data)

    def refuse_rest(self) -> None:
        """The rest of the request's body is not read; the client has aiohttp's lingering time to see its answer."""
        self._left = REFUSED_BYTES

    def _take_refused(self, size: int) -> bool:
        """Whether these bytes of a refused body are passed on. What is not cannot make aiohttp go on reading."""
        self._left = (self._left or 0) - size
        if self._left >= 0:
            return True
        if self._transport is not None:
            self._transport.pause_reading()
        return False

    def trailers(self) -> dict[str, str]:
        """The trailer fields that ended the bytes received so far, names in lower case.

        Empty where the bytes do not end in a trailer section after a last chunk: a section over
        16 KiB, or one with the next request already behind it, counts as not sent (A-01).
        """
        return parse_trailers(b"".join(self._tail)[-TAIL_BYTES:])


# trailer-section = *( field-line CRLF ); it stands between the last chunk and an empty line (RFC 9112 7.1)
def parse_trailers(tail: bytes) -> dict[str, str]:
    """Walks back from the empty line to the last-chunk line; anything else means no trailer."""
    lines = tail.split(b"\r\n")
    if lines[-2:] != [b"", b""]:
        return {}
    fields: dict[str, str] = {}
    for line in reversed(lines[:-2]):
        if _LAST_CHUNK.fullmatch(line):
            return fields
        name, colon, value = line.partition(b":")
        if not colon or not name or name != name.strip():
            return {}
        fields[name.decode("latin-1").lower()] = value.strip(b" \t").decode("latin-1")
    return {}


def trailer_of(request: web.Request, name: str) -> str | None:
    """A trailer of the request's chunked body, once that was read to its end."""
    connection = _connection_of(request)
    return connection.trailers().get(name.lower()) if connection is not None else None


def refuse_rest(request: web.Request) -> None:
    """What has not come yet of the request's body is not read. The connection must end with the answer."""
    connection = _connection_of(request)
    if connection is not None:
        connection.refuse_rest()


def _connection_of(request: web.Request) -> Connection | None:
    protocol = request.transport.get_protocol() if request.transport is not None else None
    return protocol if isinstance(protocol, Connection) else None
