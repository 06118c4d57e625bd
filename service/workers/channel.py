"""Short messages between a supervisor and a worker: one JSON object a line, over a socket pair."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
from collections.abc import AsyncIterator
from typing import Any, Final, Literal, TypeAlias

#: what the worker says: it serves; it cannot start (`detail`); it is not stuck; what it cannot use now
#: (`failed`); the leases of a process are free (`process`); it got a signal to end
FromWorker: TypeAlias = Literal["started", "refused", "beat", "checked", "released", "signalled"]
#: what it is told: end (`succeeded`); say what cannot be used now; free the leases of a process that died
ToWorker: TypeAlias = Literal["drain", "check", "release"]

_LIMIT_BYTES: Final = 2**16


class Channel:
    """One end."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def over(cls, connected: socket.socket) -> Channel:
        """The end that the socket is."""
        return cls(*await asyncio.open_connection(sock=connected, limit=_LIMIT_BYTES))

    def tell(self, kind: FromWorker | ToWorker, **what: Any) -> None:
        """The other side gets the message, if it is still there."""
        if not self._writer.is_closing():
            self._writer.write(json.dumps({"kind": kind, **what}).encode() + b"\n")

    async def told(self) -> AsyncIterator[dict[str, Any]]:
        """Each message of the other side, until it is gone."""
        with contextlib.suppress(ConnectionError):
            while (line := await self._reader.readline()).endswith(b"\n"):
                yield json.loads(line)

    async def close(self) -> None:
        """What was told has been sent, if the other side still listens."""
        self._writer.close()
        with contextlib.suppress(ConnectionError):
            await self._writer.wait_closed()
