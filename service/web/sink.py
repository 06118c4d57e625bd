"""Where a connection receives into: the memory of whoever takes a body, or a place from which all else is copied."""

from __future__ import annotations

import threading
from typing import Final, Protocol

#: received at once of a body that aiohttp reads, and of all else: the less of a body comes with its
#: head, the less is copied
_PLAIN_BYTES: Final = 256 * 1024
_HEAD_BYTES: Final = 64 * 1024


class Sink(Protocol):
    """Takes the bytes of one body, in order."""

    def space(self, most: int) -> memoryview | None:
        """Where the next bytes go, `most` of them at most; None: there is no room, `take` those that come all the same.

        It must not pause or resume the connection: the loop is about to receive (uvloop crashes).
        """
        ...

    def filled(self, count: int) -> None:
        """So many have been received there."""
        ...

    def take(self, data: bytes) -> None:
        """These came another way."""
        ...

    def end(self, *, whole: bool) -> None:
        """No more come."""
        ...


class Scratch(threading.local):
    """One for all connections of a thread: between a receipt and the copy nobody else gets to run."""

    def __init__(self) -> None:
        self.large = memoryview(bytearray(_PLAIN_BYTES))
        self.small = self.large[:_HEAD_BYTES]
