"""Bodies that are open at the same time: most of each has come, and the rest of all is held back."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import Final

from tests.bench.client import OCTETS, Connection, Source, head
from tests.bench.machine import unread_bytes

#: of each body, what is held back until all of them are open
HELD: Final = 1 / 8
#: seconds in which a side should have read what has come; what it leaves in the sockets is its own affair
READ_SECONDS: Final = 20.0
LOOK_SECONDS: Final = 0.05


def finish_together(address: tuple[str, int], paths: Sequence[str], source: Source, size: int) -> None:
    """Every upload is finished by one PATCH of `size` bytes, and no PATCH ends before each has begun.

    Raises:
        Unexpected: one was answered early, or otherwise than with 204.
    """
    first = size - int(size * HELD)
    with ExitStack() as stack:
        connections = [stack.enter_context(Connection(address)) for _ in paths]
        for connection, path in zip(connections, paths, strict=True):
            connection.send(head("PATCH", path, address, upload_offset=0, content_length=size, content_type=OCTETS))
            source.send(connection, 0, first)
        deadline = time.monotonic() + READ_SECONDS
        while unread_bytes(address[1]) and time.monotonic() < deadline:
            time.sleep(LOOK_SECONDS)
        for connection in connections:
            source.send(connection, first, size)
        for connection in connections:
            connection.answer().expect(204, offset=size)
