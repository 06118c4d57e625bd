"""The protocol object of a connection: aiohttp's own, with an eye on the raw bytes.

It owns the transport and passes everything on. It is found from a request by the public
`request.transport.get_protocol()`, and is the place for whatever aiohttp has no API for: today
the trailer section of a chunked body, which aiohttp parses and drops (A-01).
"""

from __future__ import annotations

import asyncio
import re
from typing import Final

from aiohttp import web

#: raw bytes kept for the trailer section
TAIL_BYTES: Final = 16 * 1024
_LAST_CHUNK: Final = re.compile(rb"0+[ \t]*(;[^\r\n]*)?")


class Connection(asyncio.Protocol):
    """Stands before an aiohttp connection handler made by the public `AppRunner.server`."""

    def __init__(self, inner: asyncio.Protocol) -> None:
        self._inner = inner
        #: the last bytes received, at least TAIL_BYTES of them if there were so many
        self._tail: list[bytes] = []
        self._tail_bytes = 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
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
        if len(data) >= TAIL_BYTES:
            self._tail, self._tail_bytes = [data[-TAIL_BYTES:]], TAIL_BYTES
        else:
            self._tail.append(data)
            self._tail_bytes += len(data)
            while self._tail_bytes - len(self._tail[0]) >= TAIL_BYTES:
                self._tail_bytes -= len(self._tail.pop(0))
        self._inner.data_received(data)

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
    protocol = request.transport.get_protocol() if request.transport is not None else None
    return protocol.trailers().get(name.lower()) if isinstance(protocol, Connection) else None
